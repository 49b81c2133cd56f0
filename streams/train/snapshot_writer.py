"""A course's state as a live snapshot: registered, written, synced, made live (protocol, rule 15)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from learners.learner_config import LearnerConfig
from runtime.device_class import device_class
from runtime.failpoints import failpoint
from runtime.lifecycle import OperatorActionRequired
from storage.learning import snapshot_files, snapshot_registry
from storage.learning.journal import WriterLease
from storage.learning.snapshot_registry import Snapshot, snapshot_id
from storage.log import event_log
from streams.train.step_runner import StepRunner
from streams.train.watermark import Front


@dataclass(frozen=True, kw_only=True)
class LiveSnapshot:
    """A snapshot that is live."""

    id: str
    sha256: str
    size: int
    """Bytes of its tensors."""


def write_snapshot(
    connection: Connection,
    lease: WriterLease,
    runner: StepRunner,
    plan: LearnerConfig,
    *,
    step: int,
    parent: str | None,
    folder: Path,
    losses: dict[str, dict[str, float]],
    actions: Sequence[str],
    delivered: Callable[[], None],
) -> LiveSnapshot:
    """Makes the course's state live.

    :param step: the next step to run from it.
    :param losses: arm -> loss -> mean over the rows since the parent.
    :param actions: what the learner reported of the last step.
    :param delivered: returns once all progress up to this step is acknowledged.
    :raises Unwritable: the files could not be written; call again.
    :raises Fenced: another process trains this learner now; nothing became live.
    :raises Refused: the snapshot was live already, of other bytes; its file was not touched.
    """
    new_id = snapshot_id(lease.learner, lease.branch, step)
    cursor = dict(sorted(runner.cursor.items()))
    front = None if runner.front is None else event_log.time_of(runner.front)
    with connection.begin():
        snapshot_registry.begin(
            connection,
            lease,
            snapshot_registry.NewSnapshot(
                id=new_id,
                learner=lease.learner,
                branch=lease.branch,
                step=step,
                parent=parent,
                cursor=cursor,
                front=front,
            ),
        )
        before = snapshot_registry.find(connection, new_id)
    tensors = runner.tensors()
    sha256 = snapshot_files.digest(tensors)
    if before is not None and before.sha256 not in (None, sha256):
        raise OperatorActionRequired(
            f"repeating the journal gives sha256 {sha256}; it was published with {before.sha256}",
            where=f"snapshot {new_id}",
            hint="restore its file from a backup; the code, the machine or the log differ from when it was made",
        )
    manifest: dict[str, Any] = {
        "schema_version": snapshot_files.SCHEMA_VERSION,
        "id": new_id,
        "learner": lease.learner,
        "learner_version": runner.arm_group.version,
        "branch": lease.branch,
        "step": step,
        "parent": parent,
        "cursor": {str(stream): offset for stream, offset in cursor.items()},
        "front": None if front is None else front.isoformat(),
        "record_times": list(runner.recent.times),
        "config": plan.as_json(),
        "code_version": version("driftline"),
        "device_class": device_class(),
        "names_users": runner.arm_group.names_users,
        "metrics": losses,
        "actions": list(actions),
        "sha256": sha256,
    }
    snapshot_files.write(
        folder, new_id, tensors, manifest, epoch=lease.epoch, renamed=lambda: failpoint("train.after_rename")
    )
    delivered()
    failpoint("train.before_live")
    with connection.begin():
        snapshot_registry.make_live(connection, lease, new_id, sha256=sha256, manifest=manifest)
    failpoint("train.after_live")
    return LiveSnapshot(id=new_id, sha256=sha256, size=sum(tensor.nbytes for tensor in tensors.values()))


def restore(plan: LearnerConfig, snapshot: Snapshot, folder: Path, *, lease: WriterLease | None = None) -> StepRunner:
    """A live snapshot as a course, ready to go on.

    :param lease: of who goes on; None: a repetition that changes nothing in Postgres.

    :raises BadSnapshot: its file is missing, cut, changed or foreign.
    :raises ForeignState: its tensors are not this learner's.
    """
    assert snapshot.sha256 is not None, "live snapshots have a digest"
    tensors, _ = snapshot_files.read(folder, snapshot.id, sha256=snapshot.sha256)
    runner = StepRunner(
        plan, plan.fresh(), snapshot.cursor, front=front_of(snapshot), branch=snapshot.branch, lease=lease
    )
    runner.load(tensors)
    return runner


def front_of(snapshot: Snapshot) -> Front:
    """The front at a snapshot; of one made by a version that kept a single time, as if that had come alone."""
    times = (snapshot.manifest or {}).get("record_times")
    if times is None:
        times = [] if snapshot.front is None else [event_log.microseconds_of(snapshot.front)]
    return Front(tuple(times))


def actions_before(snapshot: Snapshot) -> tuple[str, ...]:
    """What the learner reported of the last step before a snapshot; the step after it journals that."""
    return tuple((snapshot.manifest or {}).get("actions", ()))
