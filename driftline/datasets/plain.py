"""Data sets whose rows are events as they stand."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq

from driftline.recorded import Columns, LateLabel, Source


def stackoverflow(folder: Path) -> Source:
    """Badges; types are the badges' names."""
    home = folder / "tpp_stackoverflow_badges"
    types = pq.read_table(home / "types.parquet").to_pylist()
    return Source(
        name="stackoverflow",
        file=home / "events.parquet",
        columns=Columns(user="user_id", time="ts", type="type"),
        type_names={str(row["type"]): row["name"] for row in types},
    )


def taobao(folder: Path) -> Source:
    """Clicks on item categories; category 16 stands for all rare ones."""
    return Source(
        name="taobao",
        file=folder / "tpp_taobao" / "events.parquet",
        columns=Columns(user="seq_id", time="ts", type="type"),
        type_names={str(n): f"category-{n}" for n in range(16)} | {"16": "category-other"},
    )


def collegemsg(folder: Path) -> Source:
    """Private messages between students."""
    return Source(
        name="collegemsg",
        file=folder / "collegemsg" / "events.parquet",
        columns=Columns(user="src", time="ts", with_="dst", type="=message"),
    )


def fdh(folder: Path) -> Source:
    """Card payments at terminals; a fraud is known a week later. The currency is not stated: EUR."""
    return Source(
        name="fdh",
        file=folder / "fdh_payments" / "events.parquet",
        columns=Columns(user="user_id", time="ts", type="=payment", amount="amount", with_="merchant_id", id="tx_id"),
        label=LateLabel(column="is_fraud", task="fraud", delay=timedelta(days=7)),
    )
