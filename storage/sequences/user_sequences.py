"""Per-user sequences: written batch by batch, read as of a cursor and an event time.

A sequence is sorted by (event time, event id, topic, partition, offset). An as-of read sees what lies below
its cursor and strictly before its event time: whatever else is being written meanwhile, the same question
has the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pgpq import ArrowToPostgresBinaryEncoder
from sqlalchemy import Connection, text

from storage.dictionary import Dictionary, Space
from storage.engine import driver
from storage.log.offsets import Claim, Cursor
from storage.sequences import history_reader as columnar
from storage.sequences.history import (
    KIND_OF_TOPIC,
    PAYMENT,
    RELATION_ACTOR,
    RELATION_COUNTERPART,
    USER,
    History,
    SequenceEvent,
)
from storage.sequences.history_reader import HistoryAsk, below

__all__ = [
    "KIND_OF_TOPIC",
    "PAYMENT",
    "RELATION_ACTOR",
    "RELATION_COUNTERPART",
    "USER",
    "History",
    "HistoryAsk",
    "NewEvents",
    "SequenceEvent",
    "append",
    "confirmed",
    "driver",
    "histories",
    "newest_event_at",
]


@dataclass(frozen=True, kw_only=True)
class NewEvents:
    """What a batch adds to sequences, from one stream."""

    claim: Claim
    first_offset: int
    topic_kind: int
    """USER, PAYMENT or RELATION_ACTOR (each relation then also stands in its counterpart's sequence)."""
    rows: pa.Table
    """log.EVENT_ROWS."""


_COPY = (
    "COPY user_segment (user_id, stream_id, first_offset, epoch, at, kind, type, item, amount, currency, other,"
    " event_id, stream, position) FROM STDIN (FORMAT binary)"
)

_NEWEST = text("""
    SELECT max(e.at)
    FROM vocabulary u
    JOIN user_segment s ON s.user_id = u.id
    CROSS JOIN LATERAL unnest(s.at, s.stream, s.position) AS e(at, stream, position)
    JOIN unnest(CAST(:streams AS int[]), CAST(:offsets AS bigint[])) AS c(stream, next_offset) ON c.stream = e.stream
    WHERE u.space = 1 AND u.value = :user AND e.position < c.next_offset
""")

# A hit of the duplicate filter is confirmed by the very row it points at. Each user's arrays are unnested
# once, not once a hit: 50,000 hits of a user with 100,000 events would take minutes otherwise.
_CONFIRM = text("""
    WITH stored AS MATERIALIZED (
        SELECT s.user_id, e.stream, e.position, e.event_id
        FROM user_segment s
        CROSS JOIN LATERAL unnest(s.stream, s.position, s.event_id, s.kind) AS e(stream, position, event_id, kind)
        WHERE s.user_id = ANY(CAST(:users AS bigint[])) AND e.stream = ANY(CAST(:streams AS int[])) AND e.kind <> 4
    )
    SELECT DISTINCT a.n
    FROM unnest(CAST(:all_users AS bigint[]), CAST(:all_streams AS int[]), CAST(:offsets AS bigint[]),
                CAST(:event_ids AS text[])) WITH ORDINALITY AS a(user_id, stream, position, event_id, n)
    JOIN stored USING (user_id, stream, position, event_id)
""")


def append(connection: Connection, batch: Sequence[NewEvents], vocabulary: Dictionary) -> None:
    """Adds a batch's events to their users' sequences with one COPY."""
    parts = [_segments(events, vocabulary) for events in batch if events.rows.num_rows]
    if not parts:
        return
    encoder = ArrowToPostgresBinaryEncoder(parts[0].schema)
    with driver(connection).cursor().copy(_COPY) as copy:
        copy.write(encoder.write_header())
        for part in parts:
            copy.write(encoder.write_batch(part))
        copy.write(encoder.finish())


def histories(
    connection: Connection, asks: Sequence[HistoryAsk], cursor: Cursor, *, items_only: bool = False
) -> list[list[SequenceEvent]]:
    """`storage.sequences.history_reader.read` with an object an event, for those who change what they read."""
    return [list(history) for history in columnar.read(connection, asks, cursor, items_only=items_only)]


def newest_event_at(connection: Connection, user: str, cursor: Cursor) -> int | None:
    """Event time of a user's newest event below the cursor, in microseconds; None = there is none."""
    newest: int | None = connection.scalar(_NEWEST, {"user": user, **below(cursor)})
    return newest


def confirmed(connection: Connection, candidates: Mapping[int, tuple[int, int, int, str]]) -> set[int]:
    """Those candidates (user's vocabulary id, stream, offset, event id) whose row really is in a sequence."""
    numbers = list(candidates)
    columns = list(zip(*candidates.values(), strict=True))
    if not columns:
        return set()
    users, streams, offsets, event_ids = (list(column) for column in columns)
    values = {
        "users": sorted(set(users)),
        "streams": sorted(set(streams)),
        "all_users": users,
        "all_streams": streams,
        "offsets": offsets,
        "event_ids": event_ids,
    }
    return {numbers[row.n - 1] for row in connection.execute(_CONFIRM, values)}


def _segments(events: NewEvents, vocabulary: Dictionary) -> pa.RecordBatch:
    """One row a user, each column a list."""
    entries = _entries(events, vocabulary)
    users = entries.column("user").to_numpy()
    order = np.argsort(users, kind="stable")  # stable: log order inside a user
    users = users[order]
    # [U + 1] start of each user's run in the sorted entries
    starts = np.flatnonzero(np.concatenate(([True], users[1:] != users[:-1], [True]))).astype(np.int32)
    entries = entries.take(pa.array(order))
    n = len(starts) - 1

    def lists(name: str) -> pa.Array:
        values = entries.column(name)
        if values.null_count == len(values):  # arrays of NULLs would double the time of the COPY
            return pa.nulls(n, pa.list_(values.type))
        return pa.ListArray.from_arrays(pa.array(starts), values)

    return pa.record_batch(
        {
            "user_id": pa.array(users[starts[:-1]]),
            "stream_id": pa.repeat(pa.scalar(events.claim.stream_id, pa.int32()), n),
            "first_offset": pa.repeat(pa.scalar(events.first_offset, pa.int64()), n),
            "epoch": pa.repeat(pa.scalar(events.claim.epoch, pa.int64()), n),
            **{name: lists(name) for name in entries.schema.names if name != "user"},
        }
    )


def _entries(events: NewEvents, vocabulary: Dictionary) -> pa.RecordBatch:
    """One row an event and user; a relation has two users."""
    rows = events.rows.combine_chunks()
    relational = events.topic_kind == RELATION_ACTOR
    user = vocabulary.encode(Space.USER, rows["user"])
    other = vocabulary.encode(Space.USER if relational else Space.PARTY, rows["other"])
    n = rows.num_rows
    columns = {
        "user": user,
        "at": _array(rows["at"].cast(pa.int64())),
        "kind": pa.repeat(pa.scalar(events.topic_kind, pa.int16()), n),
        "type": vocabulary.encode(Space.NAME, rows["type"]),
        "item": vocabulary.encode(Space.ITEM, rows["item"]),
        "amount": _array(rows["amount"]),
        "currency": vocabulary.encode(Space.NAME, rows["currency"]),
        "other": other,
        "event_id": _array(rows["event_id"]),
        "stream": pa.repeat(pa.scalar(events.claim.stream_id, pa.int32()), n),
        "position": _array(rows["offset"]),
    }
    entries = pa.record_batch(columns)
    if not relational:
        return entries
    mirrored = {**columns, "user": other, "other": user, "kind": pa.repeat(pa.scalar(4, pa.int16()), n)}
    return pa.concat_batches([entries, pa.record_batch(mirrored)])


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()
