"""Replays a recording into Kafka, as fast as possible or at a multiple of the world's own pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from contracts import topics
from driftline.recorded import Recording, Source
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Stop
from runtime.produce import Outgoing, paced, produce


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


def _ticking(records: Iterable[Outgoing], tick: Callable[[], object], every: int = 1_000) -> Iterator[Outgoing]:
    for number, record in enumerate(records, start=1):
        yield record
        if number % every == 0:
            tick()
    tick()
