"""Berka: payments of Czech bank accounts, 1993 to 1998, and whether loans were paid back.

A row is a payment of an account, in Czech crowns. Its type is "kind / operation / purpose" as far as they are
stated; its payee is "bank:account" on the other side, where there is one. Amounts are above 0 both ways: the
kind (`credit`, `withdrawal`) says which way.
A loan gives a label of the account as a whole, task `loan_default`, 1 = not paid back or in debt: predicted
from what happened before the loan was granted, known when its contract ended or, for contracts that still ran,
at the end of the records.

Source: P. Berka, "Discovery Challenge", PKDD 1999. A part of it: 1,583 of 4,500 accounts have payments here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts import topics
from contracts.codec import encode
from contracts.records import Label
from driftline.recorded import Columns, Reshape, Source
from driftline.recorded.values import record_ms, time
from runtime.produce import Outgoing

NAME = "berka"
TASK = "loan_default"
RECORDS_END = datetime(1999, 1, 1, tzinfo=UTC)
"""The state of loans that still ran is the state of this day: no contract called finished ends later."""

_KIND = ("type", "operation", "k_symbol")


def source(folder: Path) -> Source:
    """The payments; `folder` holds the folder `berka_payments`."""
    home = folder / "berka_payments"
    return Source(
        name=NAME,
        file=home / "events.parquet",
        columns=Columns(user="user_id", time="ts", type="kind", amount="amount", currency="=CZK", with_="counterparty"),
        reshape=Reshape(reads=("user_id", "ts", "amount", "counterparty", *_KIND), make=_with_kind),
        beside=partial(_labels, home / "loans.parquet"),
    )


def _with_kind(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    for table in tables:
        parts = [pc.cast(table[name], pa.string()) for name in _KIND]
        yield table.append_column("kind", pc.binary_join_element_wise(*parts, " / ", null_handling="skip"))


def _labels(file: Path, first_at: datetime, last_at: datetime) -> Iterable[Outgoing]:
    labels = sorted(map(_label, pq.read_table(file).to_pylist()), key=lambda label: (label.known_at, label.event_id))
    for label in labels:
        yield Outgoing(topics.LABELS, label.user_id.encode(), encode(label), record_ms(label.known_at))


def _label(loan: dict[str, Any]) -> Label:
    granted_at = time(loan["ts"] * 1_000_000)
    return Label(
        event_id=f"{NAME}:loan-{loan['loan_id']}",
        user_id=f"{NAME}:{loan['user_id']}",
        task=TASK,
        ref_time=granted_at,
        known_at=min(_months_later(granted_at, loan["duration"]), RECORDS_END),
        value=float(loan["risk"]),
        source=NAME,
    )


def _months_later(at: datetime, months: int) -> datetime:
    years, month = divmod(at.month - 1 + months, 12)
    return at.replace(year=at.year + years, month=month + 1, day=min(at.day, 28))
