"""Replays a recording into Kafka, as fast as possible or at a multiple of the world's own pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from contracts import topics
from driftline.recorded import Columns, LateLabel, Recording, Source
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Stop, Usage
from runtime.produce import Outgoing, paced, produce

NAMES = ("stackoverflow", "taobao", "collegemsg", "fdh")


@dataclass(frozen=True, kw_only=True)
class ReplayReport:
    """What a replay sent."""

    rows: int
    """Rows of the file; each became one record."""
    malformed: int
    """Of these, rows that lack something an event needs; `ingest` refuses them, and perhaps others."""
    labels: int
    sent: Mapping[str, int]
    """Topic -> records the brokers acknowledged."""
    first_at: datetime | None
    """Time of the file's first event."""
    last_at: datetime | None
    seconds: float
    """The clock's."""


def replay(
    source: Source,
    config: KafkaConfig,
    *,
    speed: float = 0.0,
    limit: int | None = None,
    stop: Stop | None = None,
    show_progress: bool = True,
) -> ReplayReport:
    """Sends a file's events, and their labels when they became known.

    :param speed: seconds of event time per second of the clock; 0 = as fast as possible.
    :param limit: only the first so many rows in the order of time.
    :param stop: ends the replay between two records; the report says how far it came.
    :param show_progress: a bar on stderr, where that is a terminal.
    :raises Usage: the file cannot be read or lacks a column. :raises NotDelivered: Kafka refused records.
    """
    started = time.monotonic()
    recording = Recording(source, limit=limit)
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not (show_progress and console.is_terminal),
    )
    with bar:
        task = bar.add_task(f"replaying {source.name}", total=recording.total)
        records = paced(recording.records(), speed=speed, stop=stop)
        sent = produce(_ticking(records, lambda: bar.update(task, completed=recording.rows)), config)
    return ReplayReport(
        rows=recording.rows,
        malformed=recording.malformed,
        labels=sent[topics.LABELS],
        sent=dict(sent),
        first_at=recording.first_at,
        last_at=recording.last_at,
        seconds=time.monotonic() - started,
    )


def known_source(name: str, folder: Path) -> Source:
    """One of the data sets of `NAMES`, out of the folder that holds them all.

    :raises Usage: there is no such data set, or not in this folder.
    """
    builders = {"stackoverflow": _stackoverflow, "taobao": _taobao, "collegemsg": _collegemsg, "fdh": _fdh}
    if name not in builders:
        raise Usage(f"no data set {name!r}", todo=f"known: {', '.join(NAMES)}; or name a file and its columns")
    try:
        source = builders[name](folder)
    except FileNotFoundError as error:
        raise _absent(name, Path(str(error.filename or folder))) from None
    if not source.file.exists():
        raise _absent(name, source.file)
    return source


def _stackoverflow(folder: Path) -> Source:
    """Badges; types are the badges' names."""
    home = folder / "tpp_stackoverflow_badges"
    types = pq.read_table(home / "types.parquet").to_pylist()
    return Source(
        name="stackoverflow",
        file=home / "events.parquet",
        columns=Columns(user="user_id", time="ts", type="type"),
        type_names={str(row["type"]): row["name"] for row in types},
    )


def _taobao(folder: Path) -> Source:
    """Clicks on item categories; category 16 stands for all rare ones."""
    return Source(
        name="taobao",
        file=folder / "tpp_taobao" / "events.parquet",
        columns=Columns(user="seq_id", time="ts", type="type"),
        type_names={str(n): f"category-{n}" for n in range(16)} | {"16": "category-other"},
    )


def _collegemsg(folder: Path) -> Source:
    """Private messages between students."""
    return Source(
        name="collegemsg",
        file=folder / "collegemsg" / "events.parquet",
        columns=Columns(user="src", time="ts", with_="dst", type="=message"),
    )


def _fdh(folder: Path) -> Source:
    """Card payments at terminals; a fraud is known a week later. The currency is not stated: EUR."""
    return Source(
        name="fdh",
        file=folder / "fdh_payments" / "events.parquet",
        columns=Columns(user="user_id", time="ts", type="=payment", amount="amount", with_="merchant_id", id="tx_id"),
        label=LateLabel(column="is_fraud", task="fraud", delay=timedelta(days=7)),
    )


def _absent(name: str, file: Path) -> Usage:
    return Usage(f"no file of {name}", where=str(file), todo="give the folder that holds the data sets")


def _ticking(records: Iterable[Outgoing], tick: Callable[[], object], every: int = 1_000) -> Iterator[Outgoing]:
    for number, record in enumerate(records, start=1):
        yield record
        if number % every == 0:
            tick()
    tick()
