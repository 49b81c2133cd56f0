"""What came of each label that a learner took from the log, and of which tasks none are expected.

`train` writes the rows of a step in the transaction that runs it, and reads those that wait as of a step, as it does
with predictions: what a later step wrote is not there yet, what this step or a later one settled still waits. A label
is known by its place in the log and its subject by a digest, so no row names anybody.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, text

from storage.learning.journal import WriterLease


class Resolution(StrEnum):
    """What came of a label: each ends in exactly one of these, or waits."""

    LEARNT = "learnt"
    CORRECTED = "corrected"
    """It came after the silence of its subject had been learnt, and was learnt as a correction."""
    CONFIRMED_SILENCE = "confirmed_silence"
    """It came after the silence, and says the same: nothing is left to learn."""
    AFTER_HORIZON = "after_horizon"
    """Learnt: it became known later than the horizon, but no silence had been learnt yet."""
    REPEATED = "repeated"
    """Its subject had its label before, of the same value."""
    CONTRADICTING = "contradicting"
    """Its subject had its label before, of another value: the first counts."""
    TOO_LATE = "too_late"
    """It came so long after the silence that corrections are no longer kept possible."""
    CONTEXT_GONE = "context_gone"
    """What its subject's prediction saw is no longer there: retention or an erasure took it."""
    SUBJECT_SKIPPED = "subject_skipped"
    """Its subject lies in a past that the learner was told to jump over."""
    OTHER_TASK = "other_task"
    NO_SUBJECT = "no_subject"
    """It speaks of a user as a whole."""


@dataclass(frozen=True, kw_only=True)
class Met:
    """A label that a step took from the log."""

    stream_id: int
    position: int
    subject: int | None
    """Digest of the identity of the event it speaks of."""
    known_at: datetime
    ref_time: datetime
    value: float
    resolution: Resolution | None
    """None: its subject was not handled yet, it waits."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A label that waits for its subject."""

    stream_id: int
    position: int
    subject: int
    known_at: datetime
    ref_time: datetime
    value: float


_PUT = text("""
    INSERT INTO label_resolution (learner, branch, stream_id, position, step, subject, known_at, ref_time, value,
                                  resolution, resolved_step)
    SELECT :learner, :branch, n.stream_id, n.position, :step, n.subject,
           CASE WHEN n.resolution IS NULL THEN n.known_at END, CASE WHEN n.resolution IS NULL THEN n.ref_time END,
           CASE WHEN n.resolution IS NULL THEN n.value END, n.resolution,
           CASE WHEN n.resolution IS NOT NULL THEN CAST(:step AS bigint) END
    FROM unnest(CAST(:streams AS int[]), CAST(:positions AS bigint[]), CAST(:subjects AS bigint[]),
                CAST(:known_ats AS timestamptz[]), CAST(:ref_times AS timestamptz[]), CAST(:values AS float8[]),
                CAST(:resolutions AS text[]))
         AS n(stream_id, position, subject, known_at, ref_time, value, resolution)
    ON CONFLICT (learner, branch, stream_id, position) DO NOTHING
""")

_SETTLE = text("""
    UPDATE label_resolution r SET resolution = n.resolution, resolved_step = :step
    FROM unnest(CAST(:streams AS int[]), CAST(:positions AS bigint[]), CAST(:resolutions AS text[]))
         AS n(stream_id, position, resolution)
    WHERE r.learner = :learner AND r.branch = :branch AND r.stream_id = n.stream_id AND r.position = n.position
      AND (r.resolved_step IS NULL OR r.resolved_step = :step)
""")

# Only labels that had to wait keep their values; of one subject at most one ever waits.
_WAITING = text("""
    SELECT stream_id, position, subject, known_at, ref_time, value FROM label_resolution
    WHERE learner = :learner AND branch = :branch AND subject = ANY(CAST(:subjects AS bigint[]))
      AND known_at IS NOT NULL AND step < :step AND (resolved_step IS NULL OR resolved_step >= :step)
""")

_COUNTS = text("""
    SELECT coalesce(resolution, 'waiting') AS resolution, count(*) AS labels FROM label_resolution
    WHERE learner = :learner AND branch = :branch GROUP BY 1
""")

_WAITING_BY_AGE = text("""
    SELECT width_bucket(known_at, CAST(:bounds AS timestamptz[])) AS bounds_passed, count(*) AS labels
    FROM label_resolution
    WHERE learner = :learner AND branch = :branch AND resolution IS NULL GROUP BY 1
""")

_ERASE_EVENTS = text(
    "DELETE FROM label_resolution WHERE stream_id = :stream AND position = ANY(CAST(:positions AS bigint[]))"
)
_ERASE_USERS = text("""
    DELETE FROM label_resolution r USING prediction p
    WHERE p.user_id = ANY(CAST(:ids AS bigint[]))
      AND r.learner = p.learner AND r.branch = p.branch AND r.subject = p.subject
""")

_ASSUME = text("INSERT INTO labels_complete (task) VALUES (:task) ON CONFLICT (task) DO NOTHING")
_ASSUME_NO_MORE = text("DELETE FROM labels_complete WHERE task = :task")
_ASSUMED = text("SELECT 1 FROM labels_complete WHERE task = :task")


def put(connection: Connection, lease: WriterLease, step: int, rows: Sequence[Met]) -> None:
    """Keeps what came of the labels of a step; those that are there already stay as they are.

    Hold the lease first (`journal.check_seat`): then nobody else writes them.
    """
    if not rows:
        return
    values = {
        "streams": [row.stream_id for row in rows],
        "positions": [row.position for row in rows],
        "subjects": [row.subject for row in rows],
        "known_ats": [row.known_at for row in rows],
        "ref_times": [row.ref_time for row in rows],
        "values": [row.value for row in rows],
        "resolutions": [row.resolution for row in rows],
    }
    connection.execute(_PUT, {**_key(lease.learner, lease.branch), "step": step, **values})


def settle(connection: Connection, lease: WriterLease, step: int, rows: Sequence[tuple[int, int, Resolution]]) -> None:
    """Writes what came of labels that waited: (stream, position, resolution)."""
    if not rows:
        return
    streams, positions, resolutions = (list(column) for column in zip(*rows, strict=True))
    values = {"streams": streams, "positions": positions, "resolutions": resolutions}
    connection.execute(_SETTLE, {**_key(lease.learner, lease.branch), "step": step, **values})


def waiting(
    connection: Connection, learner: str, branch: int, step: int, subjects: Collection[int]
) -> dict[int, Waiting]:
    """Of these subjects those for which a label waits as of a step, by subject."""
    if not subjects:
        return {}
    found = connection.execute(_WAITING, {**_key(learner, branch), "step": step, "subjects": sorted(subjects)})
    return {row.subject: Waiting(**row._mapping) for row in found}


def counts(connection: Connection, learner: str, branch: int) -> dict[str, int]:
    """How many labels ended how: every `Resolution` and "waiting"."""
    found: Mapping[str, int] = {
        row.resolution: row.labels for row in connection.execute(_COUNTS, _key(learner, branch))
    }
    return {name: found.get(name, 0) for name in (*Resolution, "waiting")}


def waiting_by_age(connection: Connection, learner: str, branch: int, bounds: Sequence[datetime]) -> list[int]:
    """How many labels wait for their subject: those that became known before the first of these times, those between
    the first and the second, .., those from the last on."""
    found = {
        row.bounds_passed: row.labels
        for row in connection.execute(_WAITING_BY_AGE, {**_key(learner, branch), "bounds": list(bounds)})
    }
    return [found.get(passed, 0) for passed in range(len(bounds) + 1)]


def assume_complete(connection: Connection, task: str) -> bool:
    """From now on silence counts for this task though no label of it was ever read; False: so it was before."""
    return bool(connection.execute(_ASSUME, {"task": task}).rowcount)


def assume_no_more(connection: Connection, task: str) -> bool:
    """The opposite; False: it was not assumed."""
    return bool(connection.execute(_ASSUME_NO_MORE, {"task": task}).rowcount)


def assumed_complete(connection: Connection, task: str) -> bool:
    """Whether a person said that there may be no labels of this task."""
    return connection.execute(_ASSUMED, {"task": task}).first() is not None


def erase_users(connection: Connection, user_ids: Sequence[int]) -> None:
    """Deletes labels of what erased users did; call it before their predictions go."""
    connection.execute(_ERASE_USERS, {"ids": list(user_ids)})


def erase_events(connection: Connection, stream_id: int, positions: Sequence[int]) -> None:
    """Deletes labels by their place in the log."""
    connection.execute(_ERASE_EVENTS, {"stream": stream_id, "positions": list(positions)})


def none_read(task: str, waiting: int) -> str:
    """What a person reads where silence counts for nothing."""
    return (
        f"task {task}: {waiting:,} payments wait, no label was ever read; "
        f"if there are none to come: driftline labels assume-complete {task}"
    )


def _key(learner: str, branch: int) -> dict[str, Any]:
    return {"learner": learner, "branch": branch}
