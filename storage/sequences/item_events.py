"""A user's behaviours, the events that carry an item, as scoring needs them: the newest few, and those behind a cursor.

Of a long history only what can matter is opened. A compacted row says until when it reaches, so from the newest on just
as many are looked into as hold the behaviours asked for, and of a full one just its end; and it says up to which
offsets it reaches, so one that lies below the cursor wholly is passed over. What is left grows with the events of the
last few minutes, not with the history (`benchmarks/scoring.py` measures it).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, text

from storage.log.offsets import Cursor


@dataclass(frozen=True, kw_only=True)
class BehaviourAsk:
    """Whose behaviours, and which."""

    user: str
    before: int
    """Event time, microseconds since 1970: only what lies strictly before it."""
    newest: int
    """How many of the newest, at least 1."""
    behind: Cursor | None = None
    """Also all at or behind this cursor, however old; streams not named: all of theirs. None: no others."""


@dataclass(frozen=True, kw_only=True)
class Behaviours:
    """In the order of sequences, the newest last."""

    at: NDArray[np.int64]
    """[E] event time, microseconds since 1970."""
    item: NDArray[np.object_]
    """[E] item ids."""
    behind: NDArray[np.bool_]
    """[E] whether it lies at or behind the cursor of the ask; False where there was none."""

    def __len__(self) -> int:
        return len(self.at)

    def newest(self, count: int) -> Behaviours:
        """The last `count` of them."""
        kept = slice(max(len(self) - count, 0), None)
        return Behaviours(at=self.at[kept], item=self.item[kept], behind=self.behind[kept])


NONE = Behaviours(at=np.zeros(0, np.int64), item=np.zeros(0, np.object_), behind=np.zeros(0, np.bool_))

# The tail of a compacted row is enough where it is all that can be asked for: nothing of the row lies behind the cursor
# or at the time asked, four times the number asked for hold as many behaviours, and no instant is cut in two (inside
# of one, a compacted row's order is not a sequence's).
_READ = text("""
    SELECT a.n, r.at, r.item, r.behind, v.ids, v.names
    FROM unnest(CAST(:users AS text[]), CAST(:befores AS bigint[]), CAST(:newest AS int[]), CAST(:behind AS text[]))
         WITH ORDINALITY AS asked(user_id, before, newest, behind, n)
    CROSS JOIN LATERAL (SELECT asked.*, CAST(asked.behind AS jsonb) AS cursor) AS a
    CROSS JOIN LATERAL (SELECT id FROM vocabulary WHERE space = 1 AND value = a.user_id) AS u
    -- From the newest compacted row on, until enough behaviours are found: older rows hold none that is asked for.
    CROSS JOIN LATERAL (
        WITH RECURSIVE walk(first_at, number, found) AS (
            SELECT 9223372036854775807, 9223372036854775807, 0
            UNION ALL
            SELECT s.first_at, s.first_offset,
                   w.found + CASE WHEN s.last_at < a.before AND s.item IS NOT NULL
                                  THEN cardinality(array_remove(s.item, NULL)) ELSE 0 END
            FROM walk w CROSS JOIN LATERAL (
                SELECT s.first_at, s.first_offset, s.last_at, s.item
                FROM user_segment s
                WHERE s.user_id = u.id AND s.stream_id = 0 AND (s.first_at, s.first_offset) < (w.first_at, w.number)
                ORDER BY s.first_at DESC, s.first_offset DESC LIMIT 1
            ) AS s
            WHERE w.found < a.newest
        )
        SELECT CASE WHEN max(found) >= a.newest THEN min(first_at) ELSE -9223372036854775808 END AS at FROM walk
    ) AS since
    CROSS JOIN LATERAL (
        SELECT array_agg(e.at ORDER BY e.place DESC) AS at, array_agg(e.item ORDER BY e.place DESC) AS item,
               array_agg(e.behind ORDER BY e.place DESC) AS behind
        FROM (
            SELECT e.at, e.item, b.behind,
                   row_number() OVER (ORDER BY e.at DESC, e.event_id COLLATE "C" DESC, f.topic COLLATE "C" DESC,
                                      f.partition DESC, e.position DESC) AS place
            FROM user_segment s
            CROSS JOIN LATERAL (
                SELECT s.stream_id = 0 AND (a.cursor IS NULL OR NOT EXISTS (
                    SELECT FROM unnest(s.streams, s.ends) AS h(stream, next)
                    WHERE h.next > coalesce((a.cursor ->> h.stream::text)::bigint, 0))) AS below
            ) AS q
            CROSS JOIN LATERAL (
                SELECT CASE WHEN q.below AND s.last_at < a.before AND s.events > 4 * a.newest
                                 AND s.at[s.events - 4 * a.newest] < s.at[s.events - 4 * a.newest + 1]
                                 AND cardinality(array_remove(s.item[s.events - 4 * a.newest + 1 :], NULL)) >= a.newest
                            THEN s.events - 4 * a.newest + 1 ELSE 1 END AS first
                OFFSET 0  -- else it is worked out again for each of the arrays below
            ) AS k
            CROSS JOIN LATERAL unnest(s.at[k.first :], s.item[k.first :], s.event_id[k.first :], s.stream[k.first :],
                                      s.position[k.first :]) AS e(at, item, event_id, stream, position)
            CROSS JOIN LATERAL (
                SELECT a.cursor IS NOT NULL
                       AND e.position >= coalesce((a.cursor ->> e.stream::text)::bigint, 0) AS behind
            ) AS b
            JOIN stream_offset f ON f.stream_id = e.stream
            WHERE s.user_id = u.id AND s.item IS NOT NULL
              AND (NOT q.below OR (s.last_at >= since.at AND s.first_at < a.before))
              AND e.item IS NOT NULL AND e.at < a.before AND (e.at >= since.at OR b.behind)
        ) AS e
        WHERE e.place <= a.newest OR e.behind
    ) AS r
    CROSS JOIN LATERAL (
        SELECT array_agg(i.id) AS ids, array_agg(i.value) AS names FROM vocabulary i WHERE i.id = ANY(r.item)
    ) AS v
""")


def read(connection: Connection, asks: Sequence[BehaviourAsk]) -> list[Behaviours]:
    """What each ask asks for, of all that this transaction sees; one statement.

    In a REPEATABLE READ transaction that is what lies below the watermark it reads (protocol, rule 19).
    """
    found = [NONE] * len(asks)
    values = {
        "users": [ask.user for ask in asks],
        "befores": [ask.before for ask in asks],
        "newest": [ask.newest for ask in asks],
        "behind": [None if ask.behind is None else json.dumps(ask.behind) for ask in asks],
    }
    for row in connection.execute(_READ, values):
        if row.at is not None:
            found[row.n - 1] = _behaviours(row)
    return found


def _behaviours(row: Any) -> Behaviours:
    names = dict(zip(row.ids, row.names, strict=True))
    item = np.empty(len(row.item), np.object_)
    item[:] = [names[number] for number in row.item]
    return Behaviours(at=np.array(row.at, np.int64), item=item, behind=np.array(row.behind, np.bool_))
