"""Per-user sequences: written batch by batch, read as of a cursor and an event time.

A sequence is sorted by (event time, event id, topic, partition, offset). An as-of read sees what lies below
its cursor and strictly before its event time: whatever else is being written meanwhile, the same question
has the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import psycopg
import pyarrow as pa
from pgpq import ArrowToPostgresBinaryEncoder
from sqlalchemy import Connection, text

from contracts import topics
from contracts.identity import event_key
from storage.offsets import Claim, Cursor
from storage.vocabulary import Space, Vocabulary

USER, PAYMENT, RELATION_ACTOR, RELATION_COUNTERPART = 1, 2, 3, 4
"""Values of user_segment.kind."""

KIND_OF_TOPIC = {topics.USER: USER, topics.PAYMENT: PAYMENT, topics.RELATIONAL: RELATION_ACTOR}
"""Topics whose records stand in sequences, and as what in their own user's."""


class SequenceEvent(NamedTuple):
    """An event in a user's sequence. The leading five fields are the sort order of sequences."""

    at: int
    """Event time, microseconds since 1970."""
    event_id: str
    topic: str
    partition: int
    offset: int
    stream_id: int
    kind: int
    type: str
    item: str | None
    amount: int | None
    """Millionths of the currency unit."""
    currency: str | None
    other: str | None
    key: int
    """64-bit digest of the event's identity."""


@dataclass(frozen=True, kw_only=True)
class NewEvents:
    """What a batch adds to sequences, from one stream."""

    claim: Claim
    first_offset: int
    topic_kind: int
    """USER, PAYMENT or RELATION_ACTOR (each relation then also stands in its counterpart's sequence)."""
    rows: pa.Table
    """log.EVENT_ROWS."""


@dataclass(frozen=True, kw_only=True)
class HistoryAsk:
    """Whose history, and what it may see: at most `last_n` events strictly before `before`."""

    user: str
    before: int
    """Event time, microseconds since 1970."""
    last_n: int


_COPY = (
    "COPY user_segment (user_id, stream_id, first_offset, epoch, at, kind, type, item, amount, currency, other,"
    " event_id, stream, position) FROM STDIN (FORMAT binary)"
)

_HISTORIES = text("""
    WITH below AS MATERIALIZED (
        SELECT c.stream, c.next_offset, f.topic, f.partition
        FROM unnest(CAST(:streams AS int[]), CAST(:offsets AS bigint[])) AS c(stream, next_offset)
        JOIN stream_offset f ON f.stream_id = c.stream
    )
    SELECT a.n, e.at, e.event_id, e.topic, e.partition, e.position,
           e.stream, e.kind, t.value AS type, i.value AS item, e.amount, c.value AS currency, o.value AS other
    FROM unnest(CAST(:users AS text[]), CAST(:befores AS bigint[]), CAST(:last_ns AS int[])) WITH ORDINALITY
         AS a(user_id, before, last_n, n)
    -- A look-up per ask: joined, a vocabulary not yet analysed is scanned whole for each of them.
    CROSS JOIN LATERAL (SELECT id FROM vocabulary WHERE space = 1 AND value = a.user_id) AS u
    -- Sealed rows say what they hold. Of those wholly visible, the newest with `last_n` events between them tell from
    -- when on an event may be among the last: older rows are not opened. Rows of batches always are.
    CROSS JOIN LATERAL (
        SELECT coalesce(max(r.first_at), -9223372036854775808) AS at
        FROM (
            SELECT s.first_at, sum(s.events) OVER (ORDER BY s.first_at DESC) AS events
            FROM user_segment s
            WHERE s.user_id = u.id AND s.stream_id = 0 AND s.last_at < a.before AND NOT CAST(:items_only AS bool)
              AND NOT EXISTS (SELECT FROM unnest(s.streams, s.ends) AS h(stream, next)
                              LEFT JOIN below b ON b.stream = h.stream WHERE coalesce(b.next_offset, 0) < h.next)
        ) r
        WHERE r.events >= a.last_n
    ) AS since
    CROSS JOIN LATERAL (
        SELECT e.*, b.topic, b.partition
        FROM user_segment s
        CROSS JOIN LATERAL unnest(s.at, s.kind, s.type, s.item, s.amount, s.currency, s.other,
                                  s.event_id, s.stream, s.position)
             AS e(at, kind, type, item, amount, currency, other, event_id, stream, position)
        JOIN below b ON b.stream = e.stream
        WHERE s.user_id = u.id AND (s.last_at IS NULL OR (s.last_at >= since.at AND s.first_at < a.before))
          AND e.position < b.next_offset AND e.at >= since.at
          AND e.at < a.before AND (e.item IS NOT NULL OR NOT CAST(:items_only AS bool))
        ORDER BY e.at DESC, e.event_id COLLATE "C" DESC, b.topic COLLATE "C" DESC, b.partition DESC, e.position DESC
        LIMIT a.last_n
    ) e
    JOIN vocabulary t ON t.id = e.type
    LEFT JOIN vocabulary i ON i.id = e.item
    LEFT JOIN vocabulary c ON c.id = e.currency
    LEFT JOIN vocabulary o ON o.id = e.other
    ORDER BY a.n, e.at, e.event_id COLLATE "C", e.topic COLLATE "C", e.partition, e.position
""")

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


def append(connection: Connection, batch: Sequence[NewEvents], vocabulary: Vocabulary) -> None:
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
    """One history an ask, sorted; all from one statement.

    :param items_only: events without an item are passed over, and count towards no `last_n`.
    """
    found: list[list[SequenceEvent]] = [[] for _ in asks]
    values = {
        "users": [ask.user for ask in asks],
        "befores": [ask.before for ask in asks],
        "last_ns": [ask.last_n for ask in asks],
        "items_only": items_only,
        **_below(cursor),
    }
    for n, *event in connection.execute(_HISTORIES, values):
        found[n - 1].append(_event(asks[n - 1].user, event))
    return found


def newest_event_at(connection: Connection, user: str, cursor: Cursor) -> int | None:
    """Event time of a user's newest event below the cursor, in microseconds; None = there is none."""
    newest: int | None = connection.scalar(_NEWEST, {"user": user, **_below(cursor)})
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


def driver(connection: Connection) -> psycopg.Connection:
    """The psycopg connection below SQLAlchemy's, for COPY."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection)
    return raw


def _event(user: str, columns: Sequence[Any]) -> SequenceEvent:
    _, event_id, topic, *_, kind, _, _, _, _, other = columns
    actor = other if kind == RELATION_COUNTERPART else user
    return SequenceEvent._make((*columns, event_key(topic, actor, event_id)))


def _below(cursor: Cursor) -> dict[str, list[int]]:
    return {"streams": list(cursor), "offsets": list(cursor.values())}


def _segments(events: NewEvents, vocabulary: Vocabulary) -> pa.RecordBatch:
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


def _entries(events: NewEvents, vocabulary: Vocabulary) -> pa.RecordBatch:
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
