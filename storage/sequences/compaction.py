"""Compaction: a user's many small rows become few large ones, and no reader can tell (protocol, rule 11).

A user is due when `ingest` has added so many rows. Compaction takes these rows, and with them the user's compacted
rows that are not full, from the smallest on, as long as each is no larger than all taken before it together.
So a row taken again ends in one at least twice its size, until it is full (`CHUNK_EVENTS`) and left alone: an
event is rewritten at most log2(CHUNK_EVENTS) + 1 times, and a user keeps at most log2(CHUNK_EVENTS) compacted
rows that are not full. This is the geometric merging of the logarithmic method (Bentley and Saxe, "Decomposable
Searching Problems I", Journal of Algorithms 1, 1980) over time-ordered chunks.

Only committed rows can be seen, so those of an owner's open transaction are left alone by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

CHUNK_EVENTS = 2048
"""Events of a full compacted row."""
LOCK_SPACE = 0x64726C75
"""First key of the advisory locks on users; the second is made of the user's id. Erasure takes the same."""
FIELDS = ("at", "kind", "type", "item", "amount", "currency", "other", "event_id", "stream", "position")
"""Arrays of a row, an element an event."""
_NULLABLE = frozenset({"item", "amount", "currency", "other"})


@dataclass(frozen=True, kw_only=True)
class DueUser:
    """A user whose rows are many."""

    user_id: int
    """In the vocabulary."""
    rows: int
    """Of these, not compacted."""


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """What became of some users' rows."""

    rows_before: int = 0
    rows_after: int = 0
    events: int = 0

    def __add__(self, other: Compacted) -> Compacted:
        return Compacted(
            rows_before=self.rows_before + other.rows_before,
            rows_after=self.rows_after + other.rows_after,
            events=self.events + other.events,
        )


# Compacted rows have stream 0, which no stream has.
_DUE = text("""
    SELECT user_id, count(*) AS rows FROM user_segment WHERE stream_id <> 0
    GROUP BY user_id HAVING count(*) >= :rows ORDER BY count(*) DESC, user_id LIMIT :limit
""")

# In one order everywhere: two who lock several users never wait for each other.
_LOCK = text("""
    SELECT pg_advisory_xact_lock(:space, key)
    FROM (SELECT DISTINCT (id % 2147483647)::int AS key FROM unnest(CAST(:users AS bigint[])) AS id
          ORDER BY key) AS keys
""")


def _array(field: str) -> str:
    made = f"array_agg(e.{field} ORDER BY e.n)"
    return f"CASE WHEN count(e.{field}) > 0 THEN {made} END" if field in _NULLABLE else made


def replacing(chosen: str, kept: str = "true") -> str:
    """The one statement that replaces rows of sequences by compacted ones.

    :param chosen: SQL of a query for the keys (user_id, stream_id, first_offset, epoch) of rows to replace.
    :param kept: SQL condition on the events `e` of those rows `g`; the others are gone with their rows.
    :returns: SQL with the parameter :chunk (events); gives one row: rows before, rows after, events.
    """
    fields = ", ".join(FIELDS)
    return f"""
    WITH chosen AS ({chosen}),
    gone AS (
        DELETE FROM user_segment s USING chosen c
        WHERE s.user_id = c.user_id AND s.stream_id = c.stream_id AND s.first_offset = c.first_offset
          AND s.epoch = c.epoch
        RETURNING s.*
    ),
    events AS (
        SELECT g.user_id, e.*,
               row_number() OVER (PARTITION BY g.user_id ORDER BY e.at, e.stream, e.position, e.kind) AS n
        FROM gone g CROSS JOIN LATERAL unnest({", ".join(f"g.{field}" for field in FIELDS)}) AS e({fields})
        WHERE {kept}
    ),
    ends AS (
        SELECT user_id, chunk, array_agg(stream ORDER BY stream) AS streams, array_agg(next ORDER BY stream) AS ends
        FROM (SELECT user_id, (n - 1) / :chunk AS chunk, stream, max(position) + 1 AS next
              FROM events GROUP BY 1, 2, 3) AS newest
        GROUP BY user_id, chunk
    ),
    made AS (
        INSERT INTO user_segment (user_id, stream_id, first_offset, epoch, {fields},
                                  first_at, last_at, events, streams, ends)
        SELECT e.user_id, 0, nextval('user_segment_sealed'), 0, {", ".join(map(_array, FIELDS))},
               min(e.at), max(e.at), count(*), x.streams, x.ends
        FROM events e JOIN ends x ON x.user_id = e.user_id AND x.chunk = (e.n - 1) / :chunk
        GROUP BY e.user_id, x.chunk, x.streams, x.ends
        RETURNING events
    )
    SELECT (SELECT count(*) FROM gone) AS rows_before, count(*) AS rows_after,
           coalesce(sum(events), 0)::bigint AS events
    FROM made
    """


_SEAL = text(
    replacing("""
        SELECT user_id, stream_id, first_offset, epoch
        FROM (
            SELECT *, bool_and(fresh OR size <= smaller) OVER (PARTITION BY user_id ORDER BY fresh DESC, size,
                      stream_id, first_offset, epoch ROWS UNBOUNDED PRECEDING) AS taken
            FROM (
                SELECT *, sum(size) OVER (PARTITION BY user_id ORDER BY fresh DESC, size,
                          stream_id, first_offset, epoch ROWS UNBOUNDED PRECEDING) - size AS smaller
                FROM (
                    SELECT user_id, stream_id, first_offset, epoch, stream_id <> 0 AS fresh,
                           CASE WHEN stream_id <> 0 THEN cardinality(at) ELSE events END AS size
                    FROM user_segment
                    WHERE user_id = ANY(CAST(:users AS bigint[])) AND coalesce(events, 0) < :chunk
                ) AS sized
            ) AS ranked
        ) AS candidates
        WHERE taken
    """)
)


def due(connection: Connection, *, rows: int, limit: int) -> list[DueUser]:
    """Users with at least so many rows that are not compacted, those with the most first."""
    return [DueUser(**row._mapping) for row in connection.execute(_DUE, {"rows": rows, "limit": limit})]


def batches(users: Sequence[DueUser], *, rows: int) -> Iterator[list[int]]:
    """Users' ids in portions of about so many rows that are not compacted: what one transaction takes."""
    portion: list[int] = []
    taken = 0
    for user in users:
        portion.append(user.user_id)
        taken += user.rows
        if taken >= rows:
            yield portion
            portion, taken = [], 0
    if portion:
        yield portion


def lock(connection: Connection, users: Sequence[int]) -> None:
    """Until the transaction ends nobody else replaces or erases rows of these users."""
    connection.execute(_LOCK, {"space": LOCK_SPACE, "users": list(users)})


def compact(connection: Connection, users: Sequence[int]) -> Compacted:
    """Compacts the rows of these users; call it in a READ COMMITTED transaction of its own.

    The locks come in a statement before: only then does the statement that replaces see what the last holder
    of a lock left.
    """
    lock(connection, users)
    return Compacted(**connection.execute(_SEAL, {"users": list(users), "chunk": CHUNK_EVENTS}).one()._mapping)
