"""How much of the log must stay, and the removal of the rest (protocol, rule 12).

Age is measured in record time behind the newest record of the same stream, not by the clock: a replay of
records from 2012 is not old because of that. Whatever the age, a segment stays while somebody may read it:

- a learner, from the cursor of any snapshot it may start from;
- a repetition of a snapshot, from the cursor of its parent (or from its learner's birth);
- the duplicate filter, which is rebuilt from the log within its window;
- the context of an open label: one no learner's cursor has passed; no event from its reference time on goes;
- the context of a prediction without an outcome, or whose outcome a repetition learns again: likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import pyarrow.compute as pc
from sqlalchemy import Connection, text

from contracts import topics
from storage import log, offsets, predictions
from storage.offsets import Cursor

_LEARNT_TOPICS = frozenset({topics.USER, topics.PAYMENT, topics.RELATIONAL, topics.LABELS})
_NO_END = 2**63 - 1


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

# The first segment that must stay: one that is young, or holds an event an open label may speak of.
_FIRST_KEPT = text("""
    SELECT coalesce(min(first_offset), :none) FROM log_segment
    WHERE stream_id = :stream
      AND (last_record_at >= (SELECT max(last_record_at) FROM log_segment WHERE stream_id = :stream)
                             - CAST(:keep AS interval)
           OR last_event_at >= CAST(:open_from AS timestamptz))
""")

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
            first = pc.min(log.decode_rows(segment.rows)["ref_time"]).as_py()
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
        values = {"stream": row.stream_id, "keep": keep, "open_from": since, "none": 0}
        bound = min(
            connection.scalar(_FIRST_KEPT, values) or 0,
            row.next_offset - policy.duplicate_window,
            _learnt(row.stream.topic, row.stream_id, cursor, anybody=bool(cursor)),
        )
        gone = connection.execute(_REMOVE, {"stream": row.stream_id, "bound": bound, "limit": limit}).one()
        removed = Removed(segments=removed.segments + gone.segments, events=removed.events + gone.events)
    return removed


def _learnt(topic: str, stream_id: int, cursor: Cursor, *, anybody: bool) -> int:
    """Up to where all learners have read; no learner reads items from the log."""
    if topic not in _LEARNT_TOPICS or not anybody:
        return _NO_END
    return cursor.get(stream_id, 0)
