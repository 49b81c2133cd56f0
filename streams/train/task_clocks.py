"""How far the world of a task has come, stream by stream: what may end a silence, and what may not.

The clock of a stream is the lower median of the event times of its newest accepted rows below the cursor: of payments
when they happened, of labels (of the task) when the outcome became known. So it is a function of the log and the
cursor alone, one far row moves it nowhere, and no record time plays a part. It is not monotone: while the past flows
through, the clock stands in the past.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from contracts import topics
from storage.log import event_log
from storage.log.log_retention import CLOCK_ROWS
from storage.log.offsets import Cursor
from storage.sequences import user_sequences
from streams.train.merge import LabelRow, LogRow, Row

HOLDS: Final = -(2**62)
"""Earlier than every event: the bound of a stream of which nothing is known."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One stream of payments or of labels."""

    clock: int | None
    """Microseconds; None: it never yielded a row of the task."""
    drained: bool
    """Read to its end: nothing on its way could still break a silence."""


@dataclass(frozen=True, kw_only=True)
class Watermark:
    """Up to where the streams of a task have come, microseconds of event time."""

    payments: int | None
    """P; None: no payment was ever read."""
    until: int | None
    """W: the silence of a subject has lasted to its horizon if that lies not behind it; None: of no subject."""


def watermark(payments: Collection[Progress], labels: Collection[Progress]) -> Watermark:
    """P is the farthest clock of the payments, held back by those of them that are not drained; W is P held back by
    the labels that are not drained."""
    clocks = [one.clock for one in payments if one.clock is not None]
    if not clocks:
        return Watermark(payments=None, until=None)
    reached = min([max(clocks), *_bounds(payments)])
    return Watermark(payments=max(clocks) if reached == HOLDS else reached, until=min([reached, *_bounds(labels)]))


def _bounds(streams: Collection[Progress]) -> list[int]:
    return [HOLDS if one.clock is None else one.clock for one in streams if not one.drained]


class TaskClocks:
    """The clocks of one task's streams, kept as rows are taken; after a restart they are read from the log again."""

    def __init__(self, task: str) -> None:
        self._task: Final = task
        self._times: dict[int, deque[int]] = {}

    def take(self, rows: Iterable[Row]) -> None:
        """These rows lie below the cursor now, in this order."""
        for row in rows:
            at = self._time_of(row)
            if at is not None:
                self._times.setdefault(row.stream_id, deque(maxlen=CLOCK_ROWS)).append(at)

    def rebuild(
        self, connection: Connection, cursor: Cursor, topic_of: Iterable[tuple[int, str]], erased: Container[str]
    ) -> None:
        """The same from the log, read backwards from the cursor.

        :param topic_of: streams with their topics. :param erased: users whose rows are not there.
        """
        self._times.clear()
        for stream_id, topic in topic_of:
            if topic in (topics.PAYMENT, topics.LABELS) and stream_id in cursor:
                task = self._task if topic == topics.LABELS else None
                found = event_log.newest_below(
                    connection, stream_id, cursor[stream_id], count=CLOCK_ROWS, task=task, erased=erased
                )
                if found.times:
                    self._times[stream_id] = deque(found.times, maxlen=CLOCK_ROWS)

    def of(self, stream_id: int) -> int | None:
        """Where the stream's world stands, microseconds; None: it never yielded a row of the task."""
        times = self._times.get(stream_id)
        return lower_median(times) if times else None

    def _time_of(self, row: Row) -> int | None:
        if isinstance(row, LogRow):
            return row.event.at if row.event.kind == user_sequences.PAYMENT else None
        return row.known_at if isinstance(row, LabelRow) and row.task == self._task else None


def lower_median(times: Sequence[int]) -> int:
    """Of an even number of times the earlier of the two in the middle."""
    return sorted(times)[(len(times) - 1) // 2]
