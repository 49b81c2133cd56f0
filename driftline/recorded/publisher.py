"""Replays a recording into Kafka, as fast as possible or at a multiple of the world's own pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from contracts import topics
from driftline.output import note
from driftline.recorded import Recording, Source
from driftline.sending import check_topics
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
    """Record time of the first row sent: that of its event, to the millisecond. None = no row was sent."""
    last_at: datetime | None
    """Of the last one."""
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
    despite_settings: bool = False,
) -> ReplayReport:
    """Sends a file's events, and their labels when they became known.

    :param speed: seconds of event time per second of the clock; 0 = as fast as possible.
    :param limit: only the first so many rows in the order of time.
    :param stop: ends the replay between two records; the report says how far it came.
    :param show_progress: a bar on stderr, where that is a terminal.
    :param despite_settings: send though a topic's settings would delete or refuse such records.
    :raises Usage: the file cannot be read or lacks a column; or the topics do not fit its times: nothing was sent.
    :raises NotDelivered: Kafka refused records.
    """
    started = time.monotonic()
    recording, span = Recording(source, limit=limit), _Span(source.columns.topic)
    if not despite_settings:
        _check_topics(recording, config)
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not (show_progress and console.is_terminal),
    )
    with bar:
        task = bar.add_task(f"replaying {source.name}", total=recording.total)
        records = span.over(paced(recording.records(), speed=speed, stop=stop))
        sent = produce(_ticking(records, lambda: bar.update(task, completed=recording.rows)), config)
    return ReplayReport(
        rows=recording.rows,
        malformed=recording.malformed,
        labels=sent[topics.LABELS],
        sent=dict(sent),
        first_at=_time(span.first_ms),
        last_at=_time(span.last_ms),
        seconds=time.monotonic() - started,
    )


def _check_topics(recording: Recording, config: KafkaConfig) -> None:
    """:raises Usage: a topic would delete or refuse what the recording holds."""
    source = recording.source
    if recording.first_at is None or recording.last_at is None:
        return
    names = {source.columns.topic}
    if source.label is not None:
        names.add(topics.LABELS)
    if source.beside is not None:
        names.update(topics.INPUTS)
    check_topics(
        config,
        names,
        first_at=recording.first_at,
        last_at=recording.last_at if source.label is None else recording.last_at + source.label.delay,
        unless="--despite-topic-settings sends all the same",
        tell=note,
    )


class _Span:
    """Between which times the rows lie that were taken; they come in the order of time."""

    def __init__(self, topic: str) -> None:
        """:param topic: of the rows; labels and what stands beside them go to others."""
        self.first_ms: int | None = None
        self.last_ms: int | None = None
        self._topic = topic

    def over(self, records: Iterable[Outgoing]) -> Iterator[Outgoing]:
        """The records as they are."""
        for record in records:
            if record.topic == self._topic:
                self.first_ms = record.at_ms if self.first_ms is None else self.first_ms
                self.last_ms = record.at_ms
            yield record


def _time(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms)


def _ticking(records: Iterable[Outgoing], tick: Callable[[], object], every: int = 1_000) -> Iterator[Outgoing]:
    for number, record in enumerate(records, start=1):
        yield record
        if number % every == 0:
            tick()
    tick()
