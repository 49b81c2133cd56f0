"""`driftline replay-journal`: a snapshot again from its parent and the journal, compared by its digest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from learners.arms.group import ArmGroupReport
from learners.contract.protocol import ForeignState
from learners.learner_config import LearnerConfig
from runtime.device_class import device_class
from runtime.lifecycle import OperatorActionRequired
from storage.learning import snapshot_files, snapshot_registry
from storage.learning.journal import Step
from storage.learning.snapshot_registry import Snapshot
from storage.log import event_log
from streams.train.merge import Row
from streams.train.snapshot_writer import actions_before, restore
from streams.train.step_runner import StepRunner, check_actions, journalled, make_deterministic


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
        target = _reproducible(snapshot_registry.find(connection, snapshot_id), snapshot_id)
        parent = None if target.parent is None else snapshot_registry.find(connection, target.parent)
    manifest = target.manifest or {}
    if manifest["device_class"] != device_class():
        raise OperatorActionRequired(
            f"it was made on {manifest['device_class']}; this is {device_class()}",
            where=f"snapshot {snapshot_id}",
            hint="rebuild it on the same class: torch build, instruction set and thread count (setting train.threads)",
        )
    plan = LearnerConfig.from_json(target.learner, manifest["config"])
    if target.parent is None:
        runner = StepRunner(plan, plan.fresh(), {}, front=None, branch=target.branch)
        first, actions = 0, tuple[str, ...]()
    else:
        runner, parent = _from_parent(plan, parent, target, folder)
        first, actions = parent.step, actions_before(parent)
    with connection.begin():
        todo = journalled(connection, target.learner, target.branch, first, target.step)
        runner.exclude_erased(connection)
    rows = 0
    for step in todo:
        check_actions(step, actions)
        with connection.begin():
            learnt, report = _repeat(connection, runner, step)
        rows, actions = rows + len(learnt), report.actions if report is not None else ()
    return Rebuilt(
        snapshot=snapshot_id,
        parent=target.parent,
        steps=len(todo),
        rows=rows,
        recorded=target.sha256 or "",
        found=snapshot_files.digest(runner.tensors()),
    )


def _reproducible(snapshot: Snapshot | None, snapshot_id: str) -> Snapshot:
    where = f"snapshot {snapshot_id}"
    if snapshot is None:
        raise OperatorActionRequired(
            "there is no such snapshot", where=where, hint="`driftline snapshots list` names them"
        )
    if snapshot.status != "live":
        raise OperatorActionRequired(f"it is {snapshot.status}, not live", where=where, hint="choose a live one")
    if snapshot.irreproducible:
        raise OperatorActionRequired(
            "an erasure removed events it was learnt from", where=where, hint="rebuild a snapshot younger than that"
        )
    return snapshot


def _repeat(connection: Connection, runner: StepRunner, step: Step) -> tuple[list[Row], ArmGroupReport | None]:
    try:
        return runner.repeat(connection, step)
    except event_log.BrokenChain as error:
        raise OperatorActionRequired(
            str(error), where="event log", hint="restore the log from a backup; `driftline verify` says more"
        ) from error


def _from_parent(
    plan: LearnerConfig, parent: Snapshot | None, target: Snapshot, folder: Path
) -> tuple[StepRunner, Snapshot]:
    where = f"parent of snapshot {target.id}"
    if parent is None:
        raise OperatorActionRequired(
            f"{target.parent} is no longer registered", where=where, hint="choose a younger snapshot"
        )
    try:
        return restore(plan, parent, folder), parent
    except (snapshot_files.BadSnapshot, ForeignState) as error:
        raise OperatorActionRequired(
            str(error), where=where, hint="restore the file from a backup, or choose another snapshot"
        ) from error
