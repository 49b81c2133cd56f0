"""The registry of snapshots: which exist, which answer, which descends from which (protocol, rule 15)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql import bindparam

from storage.engine import Unavailable
from storage.learning.journal import WriterLease, check_lease
from storage.log.offsets import Cursor


@dataclass(frozen=True, kw_only=True)
class NewSnapshot:
    """A snapshot about to be written."""

    id: str
    learner: str
    branch: int
    step: int
    """The next step to run from it: it holds the steps below."""
    parent: str | None
    cursor: Cursor
    """The next offsets to learn."""
    front: datetime | None
    """Record time the merge has reached."""


@dataclass(frozen=True, kw_only=True)
class Snapshot(NewSnapshot):
    """A registered snapshot."""

    status: str
    pinned: bool
    irreproducible: bool
    """An erasure touched what it was learnt from: it cannot be rebuilt."""
    sha256: str | None
    """None while it is being written."""
    manifest: dict[str, Any] | None
    created_at: datetime
    live_at: datetime | None


def snapshot_id(learner: str, branch: int, step: int) -> str:
    """A snapshot's id says what it is, so that a repeated step writes the same file."""
    return f"{learner}-{branch}-{step:010d}"


_BEGIN = text("""
    INSERT INTO snapshot (id, learner, branch, step, parent, status, cursor, front)
    VALUES (:id, :learner, :branch, :step, :parent, 'writing', :cursor, :front)
    ON CONFLICT (id) DO UPDATE SET created_at = clock_timestamp() WHERE snapshot.status = 'writing'
""").bindparams(bindparam("cursor", type_=JSONB))

# Steps between the parent and an erasure were learnt from rows that are no longer in the log.
_LIVE = text("""
    UPDATE snapshot s SET status = 'live', live_at = clock_timestamp(), sha256 = :sha256, manifest = :manifest,
           irreproducible = s.irreproducible OR EXISTS (
               SELECT FROM learner_action a LEFT JOIN snapshot p ON p.id = s.parent
               WHERE a.learner = s.learner AND a.branch = s.branch AND a.action = 'erase'
                 AND a.step > coalesce(p.step, 0))
    WHERE s.id = :id AND s.status = 'writing'
""").bindparams(bindparam("manifest", type_=JSONB))

_COLUMNS = """id, learner, branch, step, parent, status, pinned, irreproducible, cursor, front, sha256, manifest,
    created_at, live_at"""

_BEING_COLLECTED = text("""
    SELECT id FROM snapshot WHERE status = 'deleting' AND id IN (:id, coalesce(:parent, :id)) LIMIT 1
""")

_LIVE_ONES = text(f"""
    SELECT {_COLUMNS} FROM snapshot
    WHERE learner = :learner AND status = 'live' AND (CAST(:branch AS int) IS NULL OR branch = :branch)
    ORDER BY branch DESC, step DESC LIMIT :limit
""")

_LEARNERS = text("SELECT DISTINCT learner FROM snapshot WHERE status = 'live' ORDER BY learner")

# FOR SHARE is what the update of `collection.mark` waits for; a snapshot it has marked already is not found any more.
_HELD = text("SELECT FROM snapshot WHERE id = :id AND status = 'live' FOR SHARE")

_ONE = text(f"SELECT {_COLUMNS} FROM snapshot WHERE id = :id")

_ALL = text(f"""
    SELECT {_COLUMNS} FROM snapshot WHERE CAST(:learner AS text) IS NULL OR learner = :learner
    ORDER BY learner, branch DESC, step DESC LIMIT :limit
""")


def begin(connection: Connection, lease: WriterLease, snapshot: NewSnapshot) -> None:
    """Registers a snapshot that is about to be written.

    :raises Fenced: another process trains this learner now.
    :raises Unavailable: collection has it or its parent in hand; come again from a newer one.
    """
    check_lease(connection, lease)
    collected = connection.scalar(_BEING_COLLECTED, {"id": snapshot.id, "parent": snapshot.parent})
    if collected is not None:
        raise Unavailable(f"snapshot {collected} is being collected")
    connection.execute(
        _BEGIN,
        {
            "id": snapshot.id,
            "learner": snapshot.learner,
            "branch": snapshot.branch,
            "step": snapshot.step,
            "parent": snapshot.parent,
            "cursor": {str(stream): offset for stream, offset in snapshot.cursor.items()},
            "front": snapshot.front,
        },
    )


def make_live(
    connection: Connection, lease: WriterLease, snapshot_id: str, *, sha256: str, manifest: dict[str, Any]
) -> None:
    """Its file stands: from this commit on it is the learner's state and its cursor.

    :raises Fenced: another process trains this learner now.
    """
    check_lease(connection, lease)
    connection.execute(_LIVE, {"id": snapshot_id, "sha256": sha256, "manifest": manifest})


def newest_live(connection: Connection, learner: str, *, branch: int | None = None, limit: int = 1) -> list[Snapshot]:
    """The newest live snapshots of a learner (of all its branches, the newest branch first)."""
    rows = connection.execute(_LIVE_ONES, {"learner": learner, "branch": branch, "limit": limit})
    return [_snapshot(row) for row in rows]


def live_learners(connection: Connection) -> list[str]:
    """Learners that have a live snapshot, sorted."""
    return list(connection.scalars(_LEARNERS))


def hold(connection: Connection, snapshot_id: str) -> bool:
    """Keeps a live snapshot's files from being collected until the transaction ends, so end it soon: collection waits,
    and with it the next snapshot of `train`.

    :returns: False: it is not live (any more).
    """
    return connection.execute(_HELD, {"id": snapshot_id}).first() is not None


def find(connection: Connection, snapshot_id: str) -> Snapshot | None:
    """One snapshot."""
    row = connection.execute(_ONE, {"id": snapshot_id}).one_or_none()
    return None if row is None else _snapshot(row)


def snapshots(connection: Connection, learner: str | None = None, *, limit: int = 100) -> list[Snapshot]:
    """All snapshots, the newest first."""
    return [_snapshot(row) for row in connection.execute(_ALL, {"learner": learner, "limit": limit})]


def _snapshot(row: Any) -> Snapshot:
    values = dict(row._mapping)
    values["cursor"] = {int(stream): offset for stream, offset in row.cursor.items()}
    return Snapshot(**values)
