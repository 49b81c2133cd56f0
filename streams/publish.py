"""A course's state as a live snapshot: registered, written, synced, made live (protocol, rule 15)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from runtime.device import device_class
from runtime.failpoints import failpoint
from runtime.lifecycle import Refused
from storage import log, registry, snapshots
from storage.journal import Seat
from storage.registry import Snapshot, snapshot_id
from streams.course import Course, Plan
from streams.front import Front


@dataclass(frozen=True, kw_only=True)
class Published:
    """A snapshot that is live."""

    id: str
    sha256: str
    size: int
    """Bytes of its tensors."""


def publish(
    connection: Connection,
    seat: Seat,
    course: Course,
    plan: Plan,
    *,
    step: int,
    parent: str | None,
    folder: Path,
    losses: dict[str, dict[str, float]],
    actions: Sequence[str],
    delivered: Callable[[], None],
) -> Published:
    """Makes the course's state live.

    :param step: the next step to run from it.
    :param losses: arm -> loss -> mean over the rows since the parent.
    :param actions: what the learner reported of the last step.
    :param delivered: returns once all progress up to this step is acknowledged.
    :raises Unwritable: the files could not be written; call again.
    :raises Fenced: another process trains this learner now; nothing became live.
    :raises Refused: the snapshot was live already, of other bytes; its file was not touched.
    """
    new_id = snapshot_id(seat.learner, seat.branch, step)
    cursor = dict(sorted(course.cursor.items()))
    front = None if course.front is None else log.time_of(course.front)
    with connection.begin():
        registry.begin(
            connection,
            seat,
            registry.NewSnapshot(
                id=new_id,
                learner=seat.learner,
                branch=seat.branch,
                step=step,
                parent=parent,
                cursor=cursor,
                front=front,
            ),
        )
        before = registry.find(connection, new_id)
    tensors = course.tensors()
    sha256 = snapshots.digest(tensors)
    if before is not None and before.sha256 not in (None, sha256):
        raise Refused(
            f"repeating the journal gives sha256 {sha256}; it was published with {before.sha256}",
            where=f"snapshot {new_id}",
            todo="restore its file from a backup; the code, the machine or the log differ from when it was made",
        )
    manifest: dict[str, Any] = {
        "schema_version": snapshots.SCHEMA_VERSION,
        "id": new_id,
        "learner": seat.learner,
        "learner_version": course.cohort.version,
        "branch": seat.branch,
        "step": step,
        "parent": parent,
        "cursor": {str(stream): offset for stream, offset in cursor.items()},
        "front": None if front is None else front.isoformat(),
        "record_times": list(course.recent.times),
        "config": plan.as_json(),
        "code_version": version("driftline"),
        "device_class": device_class(),
        "names_users": course.cohort.names_users,
        "metrics": losses,
        "actions": list(actions),
        "sha256": sha256,
    }
    snapshots.write(
        folder, new_id, tensors, manifest, epoch=seat.epoch, renamed=lambda: failpoint("train.after_rename")
    )
    delivered()
    failpoint("train.before_live")
    with connection.begin():
        registry.make_live(connection, seat, new_id, sha256=sha256, manifest=manifest)
    failpoint("train.after_live")
    return Published(id=new_id, sha256=sha256, size=sum(tensor.nbytes for tensor in tensors.values()))


def restore(plan: Plan, snapshot: Snapshot, folder: Path, *, seat: Seat | None = None) -> Course:
    """A live snapshot as a course, ready to go on.

    :param seat: of who goes on; None: a repetition that changes nothing in Postgres.

    :raises BadSnapshot: its file is missing, cut, changed or foreign.
    :raises ForeignState: its tensors are not this learner's.
    """
    assert snapshot.sha256 is not None, "live snapshots have a digest"
    tensors, _ = snapshots.read(folder, snapshot.id, sha256=snapshot.sha256)
    course = Course(plan, plan.fresh(), snapshot.cursor, front=front_of(snapshot), branch=snapshot.branch, seat=seat)
    course.load(tensors)
    return course


def front_of(snapshot: Snapshot) -> Front:
    """The front at a snapshot; of one made by a version that kept a single time, as if that had come alone."""
    times = (snapshot.manifest or {}).get("record_times")
    if times is None:
        times = [] if snapshot.front is None else [log.microseconds_of(snapshot.front)]
    return Front(tuple(times))


def actions_before(snapshot: Snapshot) -> tuple[str, ...]:
    """What the learner reported of the last step before a snapshot; the step after it journals that."""
    return tuple((snapshot.manifest or {}).get("actions", ()))
