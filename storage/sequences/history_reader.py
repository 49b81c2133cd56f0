"""Histories out of `user_segment`, as of a cursor and an event time.

Postgres chooses the rows that may hold the last events of each history; their arrays come as they are stored, and
numpy does the rest: unnested, sorted and joined there, a history of 100,000 events took ten times as long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sqlalchemy import Connection

from storage.engine import driver
from storage.log.offsets import Cursor
from storage.sequences import array_columns, compaction
from storage.sequences.array_columns import Ints, Texts
from storage.sequences.history import History
from storage.string_cache import NOTHING, Gone, Names, Places


@dataclass(frozen=True, kw_only=True)
class HistoryAsk:
    """Whose history, and what it may see: at most `last_n` events strictly before `before`."""

    user: str
    before: int
    """Event time, microseconds since 1970."""
    last_n: int


def _part(array: str) -> str:
    """SQL: what of a row's array may be needed. A slice is a copy, even one that leaves nothing out."""
    return f"CASE WHEN whole THEN s.{array} ELSE s.{array}[lo:hi] END"


# Of each ask the rows that may hold its last events, arrays as they are stored: the driver alone reads it, in binary.
# Numbers of strings that are NULL come as 0, the number of none, so that arrays hold no NULLs. One element stands for
# all of a row that are the same.
_ROWS = """
    WITH below AS MATERIALIZED (
        SELECT * FROM unnest(%(streams)s::int[], %(offsets)s::bigint[]) AS c(stream, next_offset)
    )
    SELECT a.n::int, {at}, CASE WHEN s.kind[1] = ALL (s.kind) THEN s.kind[1:1] ELSE {kind} END,
           {type}, array_replace({item}, NULL, 0), array_replace({amount}, NULL, 0), array_replace({currency}, NULL, 0),
           array_replace({other}, NULL, 0), {event_id},
           CASE WHEN cardinality(s.streams) = 1 THEN s.streams ELSE {stream} END, {position}
    FROM unnest(%(users)s::text[], %(befores)s::bigint[], %(last_ns)s::int[]) WITH ORDINALITY
         AS a(user_id, before, last_n, n)
    -- A look-up per ask: joined, a vocabulary not yet analysed is scanned whole for each of them.
    CROSS JOIN LATERAL (SELECT id FROM vocabulary WHERE space = 1 AND value = a.user_id) AS u
    -- Compacted rows say what they hold. Of those wholly visible, the newest with `last_n` events between them tell
    -- from when on an event may be among the last: older rows are neither looked at nor opened.
    -- Rows of batches always are.
    LEFT JOIN LATERAL (
        SELECT r.at
        FROM (
            SELECT sum(s.events) OVER newest AS events, min(s.first_at) OVER newest AS at
            FROM user_segment s
            WHERE s.user_id = u.id AND s.last_at < a.before AND NOT %(items_only)s AND {below}
            WINDOW newest AS (ORDER BY s.last_at DESC ROWS UNBOUNDED PRECEDING)
        ) r
        WHERE r.events >= a.last_n LIMIT 1  -- any would do; the first to come is the latest
    ) AS since ON true
    CROSS JOIN LATERAL (
        SELECT * FROM user_segment s WHERE s.user_id = u.id AND s.stream_id > 0
        UNION ALL
        SELECT * FROM user_segment s
        WHERE s.user_id = u.id AND s.last_at >= coalesce(since.at, -9223372036854775808) AND s.first_at < a.before
    ) AS s
    -- They are in order of time, which `width_bucket` searches by halves. Of one below the cursor no more than its last
    -- `last_n` before the time asked count, and what happened at the instant of the first of these.
    CROSS JOIN LATERAL (
        SELECT CASE WHEN s.last_at >= a.before THEN width_bucket(a.before - 1, s.at) ELSE cardinality(s.at) END AS hi
        OFFSET 0  -- else the planner writes the expression, and its search, in place of each use
    ) AS until
    CROSS JOIN LATERAL (
        SELECT CASE WHEN s.stream_id = 0 AND hi > a.last_n AND NOT %(items_only)s AND {below}
                    THEN width_bucket(s.at[hi - a.last_n + 1] - 1, s.at) + 1 ELSE 1 END AS lo
        OFFSET 0
    ) AS since_when
    CROSS JOIN LATERAL (SELECT lo = 1 AND hi = cardinality(s.at) AS whole OFFSET 0) AS w
""".format(
    below="""NOT EXISTS (SELECT FROM unnest(s.streams, s.ends) AS h(stream, next)
                    LEFT JOIN below b ON b.stream = h.stream WHERE coalesce(b.next_offset, 0) < h.next)""",
    **{array: _part(array) for array in compaction.FIELDS},
)


def read(
    connection: Connection, asks: Sequence[HistoryAsk], cursor: Cursor, *, items_only: bool = False
) -> list[History]:
    """One history an ask, sorted; all events from one statement.

    :param items_only: events without an item are passed over, and count towards no `last_n`.
    :raises Gone: rows name strings that are not there.
    """
    try:
        return _once(connection, asks, cursor, items_only=items_only)
    except Gone:
        # Outside REPEATABLE READ, somebody may be erased after the rows were read: their rows are gone by now, too.
        return _once(connection, asks, cursor, items_only=items_only)


def below(cursor: Cursor) -> dict[str, list[int]]:
    """A cursor as parameters of statements."""
    return {"streams": list(cursor), "offsets": list(cursor.values())}


def _once(connection: Connection, asks: Sequence[HistoryAsk], cursor: Cursor, *, items_only: bool) -> list[History]:
    columns = _stored(connection, asks, cursor, items_only=items_only)
    names = Names.of(connection)
    places = names.places(connection, np.flatnonzero(np.bincount(columns.stream)).tolist())
    columns = columns.take(_last(columns, asks, places))
    ends = np.searchsorted(columns.ask, np.arange(len(asks) + 1))  # [A + 1]
    whole = History(
        user="",
        at=columns.at,
        event_ids=columns.event_id,
        stream=columns.stream,
        offset=columns.offset,
        kind=columns.kind,
        type=names.strings(connection, columns.type),
        item=names.strings(connection, columns.item),
        amount=columns.amount,
        currency=names.strings(connection, columns.currency),
        other=names.strings(connection, columns.other),
        places=places,
    )
    return [replace(whole[ends[n] : ends[n + 1]], user=ask.user) for n, ask in enumerate(asks)]


@dataclass(frozen=True)
class _Columns:
    """Events of several asks as stored: numbers for strings, 0 for none."""

    ask: Ints
    """[E] index of the ask."""
    at: Ints
    kind: Ints
    type: Ints
    item: Ints
    amount: Ints
    currency: Ints
    other: Ints
    event_id: Texts
    stream: Ints
    offset: Ints

    def take(self, chosen: NDArray[Any]) -> _Columns:
        """Some of the events, in the order given."""
        return _Columns(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


def _stored(connection: Connection, asks: Sequence[HistoryAsk], cursor: Cursor, *, items_only: bool) -> _Columns:
    """The events that the asks may see, in no order, among them the last ones of each."""
    values = {
        "users": [ask.user for ask in asks],
        "befores": [ask.before for ask in asks],
        "last_ns": [ask.last_n for ask in asks],
        "items_only": items_only,
        **below(cursor),
    }
    columns = _columns(connection, values)
    next_offset = np.zeros(max(0, *cursor, columns.stream.max(initial=0)) + 1, np.int64)  # by stream
    next_offset[list(cursor)] = list(cursor.values())
    before = np.array([ask.before for ask in asks], np.int64)
    visible = (columns.offset < next_offset[columns.stream]) & (columns.at < before[columns.ask])
    if items_only:
        visible &= columns.item != NOTHING
    return columns if visible.all() else columns.take(visible)


def _columns(connection: Connection, values: Mapping[str, Any]) -> _Columns:
    """What `_ROWS` gives, decoded."""
    raw = driver(connection)
    with raw.cursor(binary=True) as reader:
        result = reader.execute(_ROWS, values).pgresult
        assert result is not None
        rows = range(result.ntuples)
        ask, at, kind, type_, item, amount, currency, other, event_id, stream, position = (
            [result.get_value(row, column) for row in rows] for column in range(result.nfields)
        )
        counts = array_columns.lengths(at, 8)
        numbers = np.frombuffer(b"".join(filter(None, ask)), ">i4") - 1
        return _Columns(
            ask=np.repeat(numbers, counts).astype(np.int64),
            at=array_columns.integers(at, counts, 8),
            kind=array_columns.integers(kind, counts, 2),
            type=array_columns.integers(type_, counts, 8),
            item=array_columns.integers(item, counts, 8),
            amount=array_columns.integers(amount, counts, 8),
            currency=array_columns.integers(currency, counts, 8),
            other=array_columns.integers(other, counts, 8),
            event_id=Texts(event_id, counts, raw),
            stream=array_columns.integers(stream, counts, 4),
            offset=array_columns.integers(position, counts, 8),
        )


def _last(columns: _Columns, asks: Sequence[HistoryAsk], places: Places) -> Ints:
    """Indices of the last events of each ask, sorted by ask and in the order of sequences."""
    last_n = np.array([ask.last_n for ask in asks], np.int64)
    order = np.lexsort((columns.at, columns.ask))
    ask, at = columns.ask[order], columns.at[order]
    ends = np.searchsorted(ask, np.arange(len(asks)), side="right")  # [A]
    left = ends[ask] - np.arange(len(ask))  # [E] events from here to the ask's end
    # What happened at the instant of the first of the last events competes with it for its place.
    edge = np.full(len(asks), np.iinfo(np.int64).min)
    edge[ask[left == last_n[ask]]] = at[left == last_n[ask]]
    near = at >= edge[ask]
    order = _ties_resolved(columns, order[near], places)
    return order[left[near] <= last_n[ask[near]]]


def _ties_resolved(columns: _Columns, order: Ints, places: Places) -> Ints:
    """The same order by ask and time, in which events of one instant are sorted by the other fields."""
    ask, at = columns.ask[order], columns.at[order]
    same = (ask[1:] == ask[:-1]) & (at[1:] == at[:-1])
    tied = np.flatnonzero(np.append(False, same) | np.append(same, False))
    if not len(tied):
        return order
    indices = order[tied]
    ranks = {place: rank for rank, place in enumerate(sorted(set(places.values())))}
    keys = {
        "ask": columns.ask[indices],
        "at": columns.at[indices],
        "event_id": pa.array(columns.event_id[indices].strings, pa.string()),
        "place": [ranks[places[stream]] for stream in columns.stream[indices].tolist()],
        "offset": columns.offset[indices],
    }
    resolved = order.copy()
    sorted_ = pc.sort_indices(pa.table(keys), sort_keys=[(name, "ascending") for name in keys])
    resolved[tied] = indices[sorted_.to_numpy()]
    return resolved
