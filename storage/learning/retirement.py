"""Retiring a learner that nobody runs any more: nothing waits for it, and nothing of it is served or kept.

As long as a learner has its row, the log stays from its oldest snapshot on and users' sequences stay as long as it
asks for (protocol, rule 12). Retired, it may start again under the same name: from nothing, on the next branch.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from storage.learning import snapshot_gc


@dataclass(frozen=True, kw_only=True)
class Retired:
    """What was taken out of service."""

    learner: str
    branch: int
    version: str
    steps: int
    """That it had journalled."""
    snapshots: int
    """To be collected by `maintain`."""
    predictions: int


class Pinned(RuntimeError):
    """Snapshots that a person wants to keep."""

    def __init__(self, ids: list[str]) -> None:
        self.ids = ids
        super().__init__(f"pinned: {', '.join(ids)}")


# Whoever writes for a learner compares with its row, or holds it: from the delete on a `train` that runs is fenced.
_TAKE_OUT = text("""
    WITH gone AS (DELETE FROM learner WHERE name = :name RETURNING name, branch, version, next_step)
    INSERT INTO retired_learner (name, branch, version, steps) SELECT name, branch, version, next_step FROM gone
    RETURNING branch, version, steps
""")

_DELETES = [
    text(f"DELETE FROM {table} WHERE learner = :name")
    for table in ("journal", "learner_action", "signature_table", "label_resolution", "prediction")
]
"""The last tells how many."""


def retire(connection: Connection, learner: str) -> Retired | None:
    """Takes a learner out of service, in the transaction the caller is in; None: there is none of that name.

    :raises Pinned: it has pinned snapshots: roll back.
    """
    row = connection.execute(_TAKE_OUT, {"name": learner}).one_or_none()
    if row is None:
        return None
    snapshots = snapshot_gc.mark_all(connection, learner)  # before the look: from now on nobody can pin one
    if pinned := snapshot_gc.pinned(connection, learner):
        raise Pinned(pinned)
    *_, predictions = [connection.execute(delete, {"name": learner}).rowcount for delete in _DELETES]
    return Retired(
        learner=learner,
        branch=row.branch,
        version=row.version,
        steps=row.steps,
        snapshots=snapshots,
        predictions=predictions,
    )
