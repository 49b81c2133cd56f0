"""`driftline replay-journal`: a snapshot again from its parent and the journal, compared by its digest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from learners.cohort import CohortReport
from learners.protocol import ForeignState
from runtime.device import device_class
from runtime.lifecycle import Refused
from storage import log, registry, snapshots
from storage.journal import Step
from storage.registry import Snapshot
from streams.course import Course, Plan, check_actions, journalled, make_deterministic
from streams.merge import Row
from streams.publish import actions_before, restore


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """What came out."""

    snapshot: str
    parent: str | None
    """None: rebuilt from the learner's birth."""
    steps: int
    rows: int
    recorded: str
    """sha256 in the registry."""
    found: str
    """sha256 of what the journal gives."""

    @property
    def equal(self) -> bool:
        return self.recorded == self.found


def replay_journal(connection: Connection, snapshot_id: str, folder: Path, *, threads: int) -> Rebuilt:
    """Runs the steps between a snapshot's parent and itself again.

    :raises Refused: unknown or unfinished snapshot, touched by an erasure, made on another device class, or
        its parent is gone, or the journal, the log or the learner's reactions are not what they were.
    """
    make_deterministic(threads)
    with connection.begin():
        target = _reproducible(registry.find(connection, snapshot_id), snapshot_id)
        parent = None if target.parent is None else registry.find(connection, target.parent)
    manifest = target.manifest or {}
    if manifest["device_class"] != device_class():
        raise Refused(
            f"it was made on {manifest['device_class']}; this is {device_class()}",
            where=f"snapshot {snapshot_id}",
            todo="rebuild it on the same class: torch build, instruction set and thread count (setting train.threads)",
        )
    plan = Plan.from_json(target.learner, manifest["config"])
    if target.parent is None:
        course = Course(plan, plan.fresh(), {}, front=None, branch=target.branch)
        first, actions = 0, tuple[str, ...]()
    else:
        course, parent = _from_parent(plan, parent, target, folder)
        first, actions = parent.step, actions_before(parent)
    with connection.begin():
        todo = journalled(connection, target.learner, target.branch, first, target.step)
        course.pass_over_erased(connection)
    rows = 0
    for step in todo:
        check_actions(step, actions)
        with connection.begin():
            learnt, report = _repeat(connection, course, step)
        rows, actions = rows + len(learnt), report.actions if report is not None else ()
    return Rebuilt(
        snapshot=snapshot_id,
        parent=target.parent,
        steps=len(todo),
        rows=rows,
        recorded=target.sha256 or "",
        found=snapshots.digest(course.tensors()),
    )


def _reproducible(snapshot: Snapshot | None, snapshot_id: str) -> Snapshot:
    where = f"snapshot {snapshot_id}"
    if snapshot is None:
        raise Refused("there is no such snapshot", where=where, todo="`driftline snapshots list` names them")
    if snapshot.status != "live":
        raise Refused(f"it is {snapshot.status}, not live", where=where, todo="choose a live one")
    if snapshot.irreproducible:
        raise Refused(
            "an erasure removed events it was learnt from", where=where, todo="rebuild a snapshot younger than that"
        )
    return snapshot


def _repeat(connection: Connection, course: Course, step: Step) -> tuple[list[Row], CohortReport | None]:
    try:
        return course.repeat(connection, step)
    except log.BrokenChain as error:
        raise Refused(
            str(error), where="event log", todo="restore the log from a backup; `driftline verify` says more"
        ) from error


def _from_parent(plan: Plan, parent: Snapshot | None, target: Snapshot, folder: Path) -> tuple[Course, Snapshot]:
    where = f"parent of snapshot {target.id}"
    if parent is None:
        raise Refused(f"{target.parent} is no longer registered", where=where, todo="choose a younger snapshot")
    try:
        return restore(plan, parent, folder), parent
    except (snapshots.BadSnapshot, ForeignState) as error:
        raise Refused(
            str(error), where=where, todo="restore the file from a backup, or choose another snapshot"
        ) from error
