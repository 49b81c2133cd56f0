"""The log of all streams as one sequence of rows, the same after every restart (protocol, rule 13).

Of the streams' next rows the one with the smallest effective time is taken, ties by (topic, partition, offset).
That time is made of the row's own record time and of the rows that follow it in its stream (`streams.train.lookahead`),
so the cursor alone says where the merge stands. A stream that has nothing to offer yet is waited for, unless it was
passed by; then it is idle until it yields again. Who was idle is journalled, so waiting (which depends on the clock)
never decides twice.

How much of a stream is there to look at is a matter of the clock too: live, what is there decides, and the journal
keeps the order that came of it. A bounded run waits until all that a row's time depends on is there, or the end.
Rows that are repeated from the journal ask for no time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Container, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection

from contracts import topics
from contracts.identity import event_key
from storage.learning.journal import Run
from storage.log import event_log, offsets
from storage.log.offsets import Cursor, StreamRow
from storage.sequences import user_sequences
from storage.sequences.user_sequences import SequenceEvent
from streams.train.lookahead import LONGEST, Lookahead

_SLICE = 1024  # rows made into Python objects at once
_READ_AHEAD = 2 * LONGEST
_NO_END = 2**63 - 1


class LogRow(NamedTuple):
    """An accepted event."""

    record_at: int
    """Record time, microseconds since 1970."""
    topic: str
    partition: int
    offset: int
    stream_id: int
    user: str
    event: SequenceEvent
    """As it stands in the user's own sequence."""


class LabelRow(NamedTuple):
    """An accepted label. The leading four fields are the same as those of events."""

    record_at: int
    topic: str
    partition: int
    offset: int
    stream_id: int
    user: str
    known_at: int
    """When the outcome became known, microseconds since 1970."""
    task: str
    subject: str | None
    """Id of the user's event it speaks of; None: of the user as a whole."""
    ref_time: int
    """A prediction of it may use what happened strictly before this time."""
    value: float


Row = LogRow | LabelRow


class Reached(NamedTuple):
    """How far a stream was taken."""

    topic: str
    partition: int
    position: int
    """Below it nothing is left to take."""
    log_end: int
    """The log holds what lies below."""
    retired: bool
    """Nothing more will come."""


class Merge:
    """Where a learner stands in the log, and what comes next."""

    def __init__(self, cursor: Cursor, *, labels: bool = False) -> None:
        """
        :param cursor: stream id -> the next offset to take; streams not named start where their log starts.
        :param labels: labels are merged too, not events alone.
        """
        self.cursor: Cursor = dict(cursor)
        self.idle: set[int] = set()
        """Streams passed by."""
        self._readers: dict[int, _Reader] = {}
        self._topics = {*user_sequences.KIND_OF_TOPIC, *((topics.LABELS,) if labels else ())}
        self._bounded = False
        self._erased: Container[str] = frozenset()

    def exclude_users(self, erased: Container[str]) -> None:
        """From here on rows of or about these users are not there, whether or not the log still holds them."""
        self._erased = erased
        self._readers.clear()  # what they read ahead is read anew, from the cursor on

    def refresh(self, connection: Connection) -> bool:
        """Looks for new segments and streams; True if there is anything new to take."""
        starts: Cursor | None = None
        news = False
        for row in offsets.streams(connection):
            if row.stream.topic not in self._topics:
                continue
            reader = self._readers.get(row.stream_id)
            if reader is None:
                starts = event_log.starts(connection) if starts is None else starts
                start = self.cursor.setdefault(row.stream_id, starts.get(row.stream_id, row.next_offset))
                reader = self._readers[row.stream_id] = _Reader(row, start, self._erased, bounded=self._bounded)
            had_head, was_short = reader.head() is not None, reader.short
            reader.watermark = row.next_offset
            reader.retired = row.retired
            if reader.load(connection, _READ_AHEAD) and (was_short or not had_head):
                news = True
                self.idle.discard(row.stream_id)
        return news

    def behind(self) -> list[int]:
        """Streams that must yield, be passed by or be finished before the merge can go on."""
        return [
            stream_id
            for stream_id, reader in self._readers.items()
            if reader.head() is None and stream_id not in self.idle and not reader.finished
        ]

    def has_rows(self) -> bool:
        """Whether any stream has a row to offer."""
        return any(reader.head() is not None for reader in self._readers.values())

    def mark_idle(self, stream_ids: Collection[int]) -> None:
        """Goes on without these streams until they yield."""
        self.idle.update(stream_ids)

    def pop(self) -> Row | None:
        """Takes the next row; None while a stream is behind, or too little is in memory (see `refresh`)."""
        heads: list[_Place] = []
        for stream_id, reader in self._readers.items():
            if reader.short:
                return None
            if (place := reader.place()) is not None:
                heads.append(place)
            elif stream_id not in self.idle and not reader.finished:
                return None
        if not heads:
            return None
        first = min(heads)
        row = self._readers[first.stream_id].head()
        assert row is not None
        self._take(row)
        return row

    def pop_run(self, connection: Connection, run: Run, *, rows_erased: bool = False) -> list[Row]:
        """Takes the rows of a journalled run again.

        :param rows_erased: some may have been erased since.
        :raises BrokenChain: they are not all there.
        """
        stream_id, first, next_offset = run
        if stream_id not in self._readers:
            self.refresh(connection)
        reader = self._readers.get(stream_id)
        rows: list[Row] = []
        while reader is not None:
            reader.load(connection, 1)
            head = reader.head()
            if head is None or head.offset >= next_offset:
                break
            self._take(head)
            rows.append(head)
        if not rows_erased and (not rows or (rows[0].offset, rows[-1].offset + 1) != (first, next_offset)):
            raise event_log.BrokenChain(f"stream {stream_id}: the log no longer holds offsets {first} to {next_offset}")
        self.cursor[stream_id] = next_offset
        return rows

    def set_ends(self, ends: Cursor) -> None:
        """From now on a stream that reached its end is finished and waited for no more, and one that did not is
        waited for until all that its next row's time depends on is there."""
        self._bounded = True
        for stream_id, reader in self._readers.items():
            reader.set_end(ends.get(stream_id))

    def reached(self) -> dict[int, Reached]:
        """How far each stream was taken; what lies between two rows counts as taken with the first."""
        return {
            stream_id: Reached(*reader.where, reader.position, reader.watermark, reader.retired)
            for stream_id, reader in self._readers.items()
        }

    def settled(self) -> bool:
        """Whether each stream has a row to offer or is finished: then what was reached follows from the log alone."""
        return bool(self._readers) and all(
            reader.head() is not None or reader.finished for reader in self._readers.values()
        )

    def at_ends(self) -> bool:
        """Whether every stream is finished."""
        return bool(self._readers) and all(reader.finished for reader in self._readers.values())

    def rows_behind(self) -> int:
        """Offsets between the cursor and what the log holds."""
        return sum(max(0, r.watermark - self.cursor[stream_id]) for stream_id, r in self._readers.items())

    def _take(self, row: Row) -> None:
        self._readers[row.stream_id].drop_head()
        self.idle.discard(row.stream_id)
        self.cursor[row.stream_id] = row.offset + 1


class _Place(NamedTuple):
    """Where a stream's head stands in the merge."""

    effective_at: int
    topic: str
    partition: int
    offset: int
    stream_id: int


class _Reader:
    """One stream's rows from the cursor on, a segment at a time, and some of what follows them."""

    def __init__(self, row: StreamRow, start: int, erased: Container[str], *, bounded: bool) -> None:
        self._erased = erased
        self._stream_id = row.stream_id
        self._topic = row.stream.topic
        self._partition = row.stream.partition
        self._start = start
        self._loaded_to = start
        self._tables: deque[pa.Table] = deque()
        self._rows: deque[Row] = deque()  # made of the tables; empty only if all that was loaded is taken
        self._ahead = Lookahead()
        self._place: _Place | None = None  # of the head, once it was asked for
        self._limit = _NO_END
        self._bounded = bounded
        self.watermark = row.next_offset
        self.retired = row.retired

    @property
    def where(self) -> tuple[str, int]:
        """Topic and partition."""
        return self._topic, self._partition

    @property
    def position(self) -> int:
        """The offset of the next row, as far as it is known; below it nothing is left."""
        return self._rows[0].offset if self._rows else self._loaded_to

    @property
    def short(self) -> bool:
        """The next row's time may depend on what is not in memory: what the log has, or in a bounded run will have."""
        if self._ahead.rows >= LONGEST:
            return False
        if self._loaded_to < min(self.watermark, self._limit):
            return True
        return self._bounded and not self.retired and self._ahead.rows > 0 and self._loaded_to < self._limit

    @property
    def finished(self) -> bool:
        """Nothing more will come, or nothing more is wanted."""
        if self._rows:
            return self._rows[0].offset >= self._limit
        return self._loaded_to >= (self.watermark if self.retired else self._limit)

    def set_end(self, end: int | None) -> None:
        """From now on nothing is wanted from this offset on; None: the end known before stays."""
        self._bounded = True
        if end is not None:
            self._limit = end
            self._ahead.set_limit(end)
            self._place = None

    def load(self, connection: Connection, rows: int) -> bool:
        """Fetches more until so many rows are in memory, or all that the log has; True if that brought a row."""
        before = self._ahead.rows
        while self._ahead.rows < rows and self._loaded_to < min(self.watermark, self._limit):
            self._next_segment(connection)
        return self._ahead.rows > before

    def head(self) -> Row | None:
        return self._rows[0] if self._ahead.rows else None

    def place(self) -> _Place | None:
        """Of the head; None: there is none."""
        if self._place is None and (at := self._ahead.head()) is not None:
            self._place = _Place(at, self._topic, self._partition, self._rows[0].offset, self._stream_id)
        return self._place

    def drop_head(self) -> None:
        self._rows.popleft()
        self._ahead.drop()
        self._place = None
        self._make_rows()

    def _next_segment(self, connection: Connection) -> None:
        for segment in event_log.read(connection, self._stream_id, self._loaded_to, limit=1):
            self._loaded_to = segment.next
            if segment.rows is not None:
                at = int(np.searchsorted(segment.rows["offset"].to_numpy(), self._start))
                self._add(_without(self._erased, segment.rows.slice(at)))
            return
        raise event_log.BrokenChain(f"stream {self._stream_id}: no log segment covers offset {self._loaded_to}")

    def _add(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        self._ahead.add(table["record_at"].cast(pa.int64()).to_numpy(), table["offset"].to_numpy())
        self._place = None
        self._tables.append(table)
        self._make_rows()

    def _make_rows(self) -> None:
        if self._rows or not self._tables:
            return
        table = self._tables.popleft()
        if table.num_rows > _SLICE:
            self._tables.appendleft(table.slice(_SLICE))
        part = table.slice(0, _SLICE)
        self._rows.extend(self._labels_of(part) if self._topic == topics.LABELS else self._events_of(part))

    def _labels_of(self, table: pa.Table) -> list[LabelRow]:
        names = ("record_at", "offset", "user", "at", "task", "subject", "ref_time", "value")
        return [
            LabelRow(record_at, self._topic, self._partition, offset, self._stream_id, user, *label)
            for record_at, offset, user, *label in zip(*_columns(table, names), strict=True)
        ]

    def _events_of(self, table: pa.Table) -> list[LogRow]:
        names = ("record_at", "at", "offset", "event_id", "user", "type", "item", "amount", "currency", "other")
        columns = _columns(table, names)
        topic, partition, stream_id, kind = (
            self._topic,
            self._partition,
            self._stream_id,
            user_sequences.KIND_OF_TOPIC[self._topic],
        )
        return [
            LogRow(
                record_at, topic, partition, offset, stream_id, user,
                SequenceEvent(
                    at, event_id, topic, partition, offset, stream_id, kind, type_, item, amount, currency, other,
                    event_key(topic, user, event_id),
                ),
            )
            for record_at, at, offset, event_id, user, type_, item, amount, currency, other
            in zip(*columns, strict=True)
        ]  # fmt: skip


def _columns(table: pa.Table, names: Sequence[str]) -> list[list[Any]]:
    """Python values; times in microseconds."""
    times = {"record_at", "at", "ref_time"}
    return [(table[name].cast(pa.int64()) if name in times else table[name]).to_pylist() for name in names]


def _without(users: Container[str], table: pa.Table) -> pa.Table:
    """The rows that are neither of nor about any of `users`."""
    for name in ("user", "other"):
        if name in table.column_names:
            gone = [user for user in pc.unique(table[name]).to_pylist() if user in users]
            if gone:
                table = table.filter(pc.invert(pc.is_in(table[name], value_set=pa.array(gone, pa.string()))))
    return table


def concerns(users: Container[str], user: str, other: str | None) -> bool:
    """Whether an event of `user`, which may name somebody else, is of or about one of `users`."""
    return user in users or other in users


def runs_of(rows: Iterable[Row]) -> tuple[Run, ...]:
    """Rows as the journal keeps them: neighbours of one stream become one run."""
    runs: list[Run] = []
    for row in rows:
        if runs and runs[-1][0] == row.stream_id:
            runs[-1] = (row.stream_id, runs[-1][1], row.offset + 1)
        else:
            runs.append((row.stream_id, row.offset, row.offset + 1))
    return tuple(runs)
