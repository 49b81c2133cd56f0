"""Which snapshots may go, and the registry's part in it (protocol, rule 15).

A snapshot goes in three steps, each of which may be the last before a crash: it is marked `deleting` in a
transaction, its files are unlinked, its row is deleted. Whoever comes next finds the mark and goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

# `begin` inserts rows that name a parent: it waits for the mark, then sees it.
_ALONE = text("LOCK TABLE snapshot IN SHARE ROW EXCLUSIVE MODE")

_MARK = text("""
    WITH ranked AS (
        SELECT id, parent, pinned, status,
               row_number() OVER (PARTITION BY learner, branch, status ORDER BY step DESC) AS age
        FROM snapshot WHERE status <> 'deleting'
    ),
    kept AS (SELECT id, parent FROM ranked WHERE status = 'writing' OR pinned OR age <= :keep)
    UPDATE snapshot s SET status = 'deleting'
    WHERE s.status = 'live'
      AND NOT EXISTS (SELECT FROM kept k WHERE k.id = s.id OR k.parent = s.id)
    RETURNING s.id
""")

# Of a learner that keeps names: touched by an erasure, and from before it forgot.
_MAY_NAME = """
    (SELECT learner, branch, max(step) AS step FROM learner_action GROUP BY learner, branch) AS erased
    WHERE s.learner = erased.learner AND s.branch = erased.branch AND s.step <= erased.step
      AND s.status = 'live' AND s.irreproducible AND (s.manifest ->> 'names_users')::bool
"""

# A younger one has forgotten all who were erased so far. Pinned ones are a person's business.
_MARK_NAMING = text(f"""
    UPDATE snapshot s SET status = 'deleting'
    FROM {_MAY_NAME} AND NOT s.pinned
      AND EXISTS (SELECT FROM snapshot y WHERE y.learner = s.learner AND y.branch = s.branch AND y.status = 'live'
                  AND y.step > erased.step)
      AND NOT EXISTS (SELECT FROM snapshot w WHERE w.parent = s.id AND w.status = 'writing')
    RETURNING s.id
""")

_NAMING = text(f"SELECT s.id, s.pinned FROM snapshot s, {_MAY_NAME} ORDER BY s.id")

_MARK_ALL = text("UPDATE snapshot SET status = 'deleting' WHERE learner = :learner AND status <> 'deleting'")

_PINNED = text("SELECT id FROM snapshot WHERE learner = :learner AND pinned ORDER BY id")

_PIN = text("UPDATE snapshot SET pinned = :pinned WHERE id = :id AND status = 'live' RETURNING id")

_MARKED = text("SELECT id FROM snapshot WHERE status = 'deleting' ORDER BY id")

_FORGET = text("DELETE FROM snapshot WHERE status = 'deleting' AND id = ANY(CAST(:ids AS text[]))")

_LIVE = text("SELECT id, sha256 FROM snapshot WHERE status = 'live'")


def mark(connection: Connection, *, keep: int) -> int:
    """Marks live snapshots that nobody needs; how many.

    Kept are the newest `keep` of each learner's branch, pinned ones, those being written, and the parent of
    each of these (a snapshot is rebuilt from its parent). Of a learner whose state names users, those that may
    name erased ones go all the same once a younger one has forgotten them, unless they are pinned.
    """
    if keep < 1:
        raise ValueError(f"{keep} snapshots kept: a learner restarts from its newest one, so it must be 1 or more")
    connection.execute(_ALONE)
    naming = len(connection.execute(_MARK_NAMING).all())
    return naming + len(connection.execute(_MARK, {"keep": keep}).all())


def mark_all(connection: Connection, learner: str) -> int:
    """Marks all snapshots of a learner, also those being written; how many."""
    connection.execute(_ALONE)
    return int(connection.execute(_MARK_ALL, {"learner": learner}).rowcount)


def pinned(connection: Connection, learner: str) -> list[str]:
    """Ids of a learner's pinned snapshots."""
    return list(connection.scalars(_PINNED, {"learner": learner}))


def naming(connection: Connection, *, pinned: bool = False) -> list[str]:
    """Live snapshots whose files may name users who were erased since; sorted ids.

    :param pinned: only those that stay until a person unpins them; the others go by themselves, see `mark`.
    """
    return [row.id for row in connection.execute(_NAMING) if row.pinned or not pinned]


def pin(connection: Connection, snapshot_id: str, *, pinned: bool) -> bool:
    """Keeps a live snapshot from being collected, whatever its age, or lets go of it.

    :returns: False: it is not live (any more).
    """
    return connection.execute(_PIN, {"id": snapshot_id, "pinned": pinned}).first() is not None


def marked(connection: Connection) -> list[str]:
    """Ids whose files are to be unlinked: also what a collector that died left."""
    return list(connection.scalars(_MARKED))


def forget(connection: Connection, ids: Sequence[str]) -> None:
    """Their files are gone."""
    connection.execute(_FORGET, {"ids": list(ids)})


def live_digests(connection: Connection) -> dict[str, str]:
    """Live snapshot -> sha256 of its tensors."""
    return {row.id: row.sha256 for row in connection.execute(_LIVE)}
