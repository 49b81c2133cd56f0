"""The journal of a learner's steps, written ahead (protocol, rule 14).

A step is committed before it runs: which log rows, in which order, what is due after it. Every write is a
compare-and-set on the learner's row (epoch, next_step), so a process that slept while another took over
can add nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql import bindparam

from storage.log.offsets import Cursor, Fenced

Run = tuple[int, int, int]
"""(stream id, first offset, next offset): the accepted rows in that range, in offset order."""
LabelTimeout = tuple[int, int]
"""(user's number in the vocabulary, subject): a row of `prediction`."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A journalled step."""

    number: int
    rows: tuple[Run, ...]
    """In the order they are learnt; () = a step that only takes a snapshot."""
    front: datetime | None
    """Record time the merge has reached; None before the first row."""
    idle: tuple[int, ...]
    """Streams the merge goes on without until they yield."""
    late: int
    """Rows behind the front."""
    snapshot: bool
    """A snapshot is taken after the step."""
    actions: tuple[str, ...]
    """What the learner reported of the step before; a repetition must report the same."""
    erased: frozenset[bytes] = frozenset()
    """Users to forget before the step, by the hash under which they are suppressed."""
    rows_erased: bool = False
    """An erasure that is due later may have taken some of its rows out of the log since."""
    ticks: tuple[LabelTimeout, ...] = ()
    """Predictions whose silence counts as an outcome from this step on."""
    cursor: Cursor | None = None
    """Where the step starts; kept for learners of outcomes alone."""
    task_clock: datetime | None = None
    """Event time that the streams of payments had reached before the step; likewise."""
    drained: tuple[int, ...] = ()
    """Streams that had been read to the broker's end when it was decided whose silence ends with the step."""


@dataclass(frozen=True, kw_only=True)
class StepPosition:
    """What a step's rows could see of the log."""

    cursor: Cursor
    """Where it starts."""
    rows: tuple[Run, ...]

    def before(self, stream_id: int, position: int) -> Cursor:
        """The cursor below which lies what comes before one of its rows: also the step's earlier rows do."""
        seen = dict(self.cursor)
        for stream, first, next_offset in self.rows:
            if stream == stream_id and first <= position < next_offset:
                return seen | {stream: position}
            seen[stream] = next_offset
        raise ValueError(f"the step has no row at stream {stream_id}, offset {position}")


@dataclass(frozen=True, kw_only=True)
class WriterLease:
    """The right to write a learner's journal, until the next process takes it."""

    learner: str
    branch: int
    epoch: int
    next_step: int
    """The first step that is not journalled."""
    config: dict[str, Any]
    """As the learner was first started with; weights make sense under no other."""


# A branch of its own: ids of snapshots, which answers and bundles bear, are never given twice.
_CREATE = text("""
    INSERT INTO learner (name, branch, version, config)
    VALUES (:name, 1 + (SELECT coalesce(max(branch), 0) FROM retired_learner WHERE name = :name), :version, :config)
    ON CONFLICT (name) DO NOTHING
""").bindparams(bindparam("config", type_=JSONB))

_TAKE = text("""
    UPDATE learner SET epoch = epoch + 1 WHERE name = :name
    RETURNING version, branch, epoch, next_step, config
""")

_MOVE = text("""
    UPDATE learner SET next_step = :step + 1
    WHERE name = :learner AND branch = :branch AND epoch = :epoch AND next_step = :step
""")

_INSERT = text("""
    INSERT INTO journal (learner, branch, step, epoch, rows, front, idle, late, snapshot, actions, ticks, cursor,
                         task_clock, drained)
    VALUES (:learner, :branch, :step, :epoch, :rows, :front, :idle, :late, :snapshot, :actions, :ticks, :cursor,
            :task_clock, :drained)
""").bindparams(
    *(bindparam(name, type_=JSONB) for name in ("rows", "actions", "ticks")),
    bindparam("cursor", type_=JSONB(none_as_null=True)),
)

_SELECT = text("""
    SELECT step, rows, front, idle, late, snapshot, actions, ticks, cursor, task_clock, drained,
           (SELECT array_agg(user_hash) FROM learner_action a
            WHERE a.learner = j.learner AND a.branch = j.branch AND a.step = j.step) AS erased,
           EXISTS (SELECT FROM learner_action a
                   WHERE a.learner = j.learner AND a.branch = j.branch AND a.step > j.step) AS rows_erased
    FROM journal j
    WHERE learner = :learner AND branch = :branch AND step >= :first AND step < :last ORDER BY step LIMIT :limit
""")

_PLACES = text("""
    SELECT step, rows, cursor FROM journal
    WHERE learner = :learner AND branch = :branch AND step = ANY(CAST(:steps AS bigint[])) AND cursor IS NOT NULL
""")

_DUE = text("""
    SELECT user_hash FROM learner_action WHERE learner = :learner AND branch = :branch AND step = :step
""")

_HOLDS = text("SELECT 1 FROM learner WHERE name = :learner AND branch = :branch AND epoch = :epoch FOR SHARE")


def acquire_lease(
    connection: Connection, *, learner: str, version: str, config: dict[str, Any]
) -> tuple[WriterLease, str]:
    """Makes the caller the one who trains a learner; returns the lease and the version the learner was born with.

    A learner's first start fixes its configuration; later starts get that one back. One that was retired starts anew.
    """
    connection.execute(_CREATE, {"name": learner, "version": version, "config": config})
    row = connection.execute(_TAKE, {"name": learner}).one()
    lease = WriterLease(learner=learner, branch=row.branch, epoch=row.epoch, next_step=row.next_step, config=row.config)
    return lease, row.version


def append(connection: Connection, lease: WriterLease, step: Step) -> None:
    """Writes a step ahead of its run.

    :raises Fenced: another process trains this learner now, or it was retired.
    """
    key = {"learner": lease.learner, "branch": lease.branch, "epoch": lease.epoch, "step": step.number}
    if connection.execute(_MOVE, key).rowcount != 1:
        raise Fenced(f"learner {lease.learner}: another `train` took over before step {step.number}, or it was retired")
    values = {
        **key,
        "rows": [list(run) for run in step.rows],
        "front": step.front,
        "idle": list(step.idle),
        "late": step.late,
        "snapshot": step.snapshot,
        "actions": list(step.actions),
        "ticks": [list(tick) for tick in step.ticks],
        "cursor": None if step.cursor is None else {str(stream): offset for stream, offset in step.cursor.items()},
        "task_clock": step.task_clock,
        "drained": list(step.drained),
    }
    connection.execute(_INSERT, values)


def erased(connection: Connection, lease: WriterLease, number: int) -> frozenset[bytes]:
    """Users to forget before a step that is not journalled yet, by hash.

    In the transaction that appends the step, after `suppression.share`, no erasure can add to them any more.
    """
    found = connection.scalars(_DUE, {"learner": lease.learner, "branch": lease.branch, "step": number})
    return frozenset(bytes(user_hash) for user_hash in found)


def check_lease(connection: Connection, lease: WriterLease) -> None:
    """Holds the lease until the transaction ends.

    :raises Fenced: another process trains this learner now, or it was retired.
    """
    if connection.execute(_HOLDS, _key(lease)).one_or_none() is None:
        raise Fenced(f"learner {lease.learner}: another `train` took over, or it was retired")


def steps(
    connection: Connection, learner: str, branch: int, first: int, last: int, *, page: int = 1000
) -> Iterator[Step]:
    """Steps first, first + 1, ..., last - 1, as far as they are journalled."""
    while first < last:
        values = {"learner": learner, "branch": branch, "first": first, "last": last, "limit": page}
        found = connection.execute(_SELECT, values).all()
        for row in found:
            yield Step(
                number=row.step,
                rows=tuple((run[0], run[1], run[2]) for run in row.rows),
                front=row.front,
                idle=tuple(row.idle),
                late=row.late,
                snapshot=row.snapshot,
                actions=tuple(row.actions),
                erased=frozenset(bytes(user_hash) for user_hash in row.erased or ()),
                rows_erased=row.rows_erased,
                ticks=tuple((tick[0], tick[1]) for tick in row.ticks),
                cursor=None if row.cursor is None else _cursor(row.cursor),
                task_clock=row.task_clock,
                drained=tuple(row.drained),
            )
        if len(found) < page:
            return
        first = found[-1].step + 1


def places(connection: Connection, learner: str, branch: int, numbers: Collection[int]) -> dict[int, StepPosition]:
    """Where these steps start and which rows they take, by number; those without a start cursor are absent."""
    values = {"learner": learner, "branch": branch, "steps": list(numbers)}
    return {
        row.step: StepPosition(cursor=_cursor(row.cursor), rows=tuple((run[0], run[1], run[2]) for run in row.rows))
        for row in connection.execute(_PLACES, values)
    }


def after(cursor: Cursor, rows: Sequence[Run]) -> Cursor:
    """The cursor once a step's rows are learnt."""
    moved = dict(cursor)
    for stream_id, _, next_offset in rows:
        moved[stream_id] = next_offset
    return moved


def _cursor(stored: Mapping[str, int]) -> Cursor:
    return {int(stream): offset for stream, offset in stored.items()}


def _key(lease: WriterLease) -> dict[str, object]:
    return {"learner": lease.learner, "branch": lease.branch, "epoch": lease.epoch}
