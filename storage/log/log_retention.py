"""How much of the log must stay, and the removal of the rest (protocol, rule 12).

Age is measured in record time behind the newest record of the same stream, not by the clock: a replay of
records from 2012 is not old because of that. Records far ahead of their stream (`contracts.clocks`) count for nothing:
one of the year 2100 neither makes all others old nor keeps the segments behind its own. Whatever the age, a segment
stays while somebody may read it:

- a learner, from the cursor of any snapshot it may start from;
- a repetition of a snapshot, from the cursor of its parent (or from its learner's birth);
- the duplicate filter, which is rebuilt from the log within its window;
- the context of an open label: one no learner's cursor has passed; no event from its reference time on goes;
- the context of a prediction without an outcome, or whose outcome a repetition learns again: likewise;
- the context of a silence that a label may still correct: for so long as learners are set behind the task clock;
- a task clock: the newest rows of payments and of each task's labels below the cursors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, text

from contracts import topics
from storage.learning import predictions
from storage.log import event_log, offsets
from storage.log.offsets import Cursor

_LEARNT_TOPICS = frozenset({topics.USER, topics.PAYMENT, topics.RELATIONAL, topics.LABELS})
_NO_END = 2**63 - 1
_EARLIEST, _LATEST = (time.replace(tzinfo=UTC) for time in (datetime.min, datetime.max))
SEGMENTS = 100
"""Segments looked at at once."""
AHEAD = timedelta(days=1)
"""A record further than this ahead of where its stream stands says nothing of how old its segment is."""
CLOCK_ROWS = 9
"""Newest rows of a stream whose event times say how far its world has come (foreign.md, W1)."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What may go."""

    keep: Mapping[str, timedelta]
    """Topic -> record time to keep behind the newest record; topics not named are kept for ever."""
    duplicate_window: int
    """Offsets a partition, as `ingest` is set."""


@dataclass(frozen=True, kw_only=True)
class Removed:
    """What went."""

    segments: int = 0
    events: int = 0


# From where a snapshot's holder reads: an irreproducible one is never repeated, so only from itself on; one
# whose parent was collected likewise; one without a parent from the beginning (an empty cursor).
_READ_FROM = text("""
    SELECT l.name, CASE WHEN s.irreproducible THEN s.cursor
                        WHEN s.parent IS NULL THEN '{}'::jsonb
                        ELSE coalesce(p.cursor, s.cursor) END AS cursor
    FROM learner l
    LEFT JOIN snapshot s ON s.learner = l.name AND s.status <> 'deleting'
    LEFT JOIN snapshot p ON p.id = s.parent
""")

_LABEL_SEGMENTS = text("""
    SELECT first_offset, rows FROM log_segment
    WHERE stream_id = :stream AND next_offset > :offset AND rows IS NOT NULL ORDER BY first_offset
""")

# Segments that may have to stay: young ones, and those with an event that an open label may speak of. The rows come
# with those that hold a record ahead of the stream: what their other rows say decides.
_KEPT = text("""
    SELECT first_offset, last_record_at > :ahead AS doubtful, CASE WHEN last_record_at > :ahead THEN rows END AS rows
    FROM log_segment
    WHERE stream_id = :stream AND first_offset > :after
      AND (last_record_at >= :young OR last_event_at >= CAST(:open_from AS timestamptz))
    ORDER BY first_offset, epoch LIMIT :limit
""")

_LAST_RECORD = text("SELECT max(last_record_at) FROM log_segment WHERE stream_id = :stream")

_REMOVE = text("""
    WITH old AS (
        SELECT first_offset, epoch FROM log_segment WHERE stream_id = :stream AND next_offset <= :bound
        ORDER BY first_offset, epoch LIMIT :limit
    ),
    gone AS (
        DELETE FROM log_segment g USING old o
        WHERE g.stream_id = :stream AND g.first_offset = o.first_offset AND g.epoch = o.epoch
        RETURNING g.next_offset, g.accepted
    ),
    moved AS (
        UPDATE stream_offset SET log_begins = greatest(log_begins, (SELECT max(next_offset) FROM gone))
        WHERE stream_id = :stream AND EXISTS (SELECT FROM gone)
    )
    SELECT count(*) AS segments, coalesce(sum(accepted), 0)::bigint AS events FROM gone
""")


_TASKS = text("""
    SELECT DISTINCT config ->> 'label' AS task FROM learner WHERE config ? 'label' ORDER BY 1
""")


def read_from(connection: Connection) -> Cursor | None:
    """The lowest offset of each stream that a learner or a repetition may still read; streams not named: all.

    None: some learner may have to start from the beginning.
    """
    lowest: Cursor | None = None
    for row in connection.execute(_READ_FROM):
        if not row.cursor:  # no snapshot, or one rebuilt from the learner's birth
            return None
        cursor = {int(stream): offset for stream, offset in row.cursor.items()}
        lowest = cursor if lowest is None else {s: min(lowest[s], cursor[s]) for s in lowest.keys() & cursor.keys()}
    return {} if lowest is None else lowest


def open_from(connection: Connection, cursor: Cursor) -> datetime | None:
    """Reference time of the oldest label that no learner's cursor has passed, or event time of the oldest prediction
    whose outcome is still to be learnt or repeated; None = nothing is open."""
    oldest = predictions.needed_from(connection)
    for row in offsets.streams(connection):
        if row.stream.topic != topics.LABELS:
            continue
        values = {"stream": row.stream_id, "offset": cursor.get(row.stream_id, 0)}
        for segment in connection.execute(_LABEL_SEGMENTS, values):
            first = pc.min(event_log.decode_rows(segment.rows)["ref_time"]).as_py()
            oldest = first if oldest is None else min(oldest, first)
    return oldest


def trim(connection: Connection, policy: Policy, *, limit: int = 100) -> Removed:
    """Removes at most `limit` segments a stream; call it in a transaction of its own, until nothing goes."""
    cursor = read_from(connection)
    if cursor is None or not policy.keep:
        return Removed()
    since = open_from(connection, cursor) if cursor else None  # without learners no label waits for anybody
    removed = Removed()
    for row in offsets.streams(connection):
        keep = policy.keep.get(row.stream.topic)
        if keep is None:
            continue
        bound = min(
            _first_kept(connection, row.stream_id, keep, since),
            row.next_offset - policy.duplicate_window,
            _learnt(row.stream.topic, row.stream_id, cursor, anybody=bool(cursor)),
            _clocked(connection, row.stream.topic, row.stream_id, cursor),
        )
        gone = connection.execute(_REMOVE, {"stream": row.stream_id, "bound": bound, "limit": limit}).one()
        removed = Removed(segments=removed.segments + gone.segments, events=removed.events + gone.events)
    return removed


def _first_kept(connection: Connection, stream_id: int, keep: timedelta, open_from: datetime | None) -> int:
    """Offset of the first segment that must stay; 0: all of them.

    :param open_from: segments with an event of this time or a later one stay.
    """
    newest = event_log.newest(connection, [stream_id], "record_at")
    if newest is None:
        return 0
    young, ahead = newest - min(keep, newest - _EARLIEST), _ahead(connection, stream_id, newest)
    values = {"stream": stream_id, "ahead": ahead, "young": young, "open_from": open_from, "limit": SEGMENTS}
    after = -1
    while found := connection.execute(_KEPT, {**values, "after": after}).all():
        for row in found:
            if not row.doubtful or (
                row.rows is not None and _stay(event_log.decode_rows(row.rows), ahead, young, open_from)
            ):
                return int(row.first_offset)
        after = found[-1].first_offset
    return 0


def _ahead(connection: Connection, stream_id: int, newest: datetime) -> datetime:
    """Records of a stream after this time say nothing of how old their segments are.

    A stream may stand in the past while that is brought in behind the present: what many rows say is not ahead.
    """
    last = connection.scalar(_LAST_RECORD, {"stream": stream_id})
    if last is not None and last - newest > AHEAD:
        newest = max(newest, event_log.highest(connection, stream_id) or newest)
    return min(newest, _LATEST - AHEAD) + AHEAD


def _stay(rows: pa.Table, ahead: datetime, young: datetime, open_from: datetime | None) -> bool:
    """Whether a segment must stay for one of its rows that are not ahead."""
    rows = rows.filter(pc.less_equal(rows["record_at"], ahead))
    kept = pc.greater_equal(rows["record_at"], young)
    if open_from is not None and "at" in rows.column_names:
        kept = pc.or_(kept, pc.greater_equal(rows["at"], open_from))
    return bool(pc.any(kept).as_py())


def _clocked(connection: Connection, topic: str, stream_id: int, cursor: Cursor) -> int:
    """Up to where no learner's task clock needs the rows."""
    if topic not in (topics.PAYMENT, topics.LABELS) or stream_id not in cursor:
        return _NO_END
    tasks = list(connection.scalars(_TASKS))
    wanted = tasks if topic == topics.LABELS else [None] if tasks else []
    found = (
        event_log.newest_below(connection, stream_id, cursor[stream_id], count=CLOCK_ROWS, task=task) for task in wanted
    )
    return min((one.first_segment for one in found if one.first_segment is not None), default=_NO_END)


def _learnt(topic: str, stream_id: int, cursor: Cursor, *, anybody: bool) -> int:
    """Up to where all learners have read; no learner reads items from the log."""
    if topic not in _LEARNT_TOPICS or not anybody:
        return _NO_END
    return cursor.get(stream_id, 0)
