"""Predictions as they were issued, kept until their outcome is known and longer (protocol, rules 12 to 14).

A row is one event whose outcome a learner predicted: what it said when the event was handled, and what came of it.
While nothing did, the subject is open. `train` writes the rows of a step in the transaction that runs it, and reads
them as of a step: a row that a later step wrote is not there yet, one that this step or a later one closed is open.
So a repeated step finds what it found the first time, writes the same, and doubles nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, text

from storage.learning.journal import WriterLease


@dataclass(frozen=True, kw_only=True)
class StoredPrediction:
    """A prediction on its way into the table."""

    user: str
    subject: int
    """64-bit digest of the event's identity (`contracts.identity.event_key`)."""
    stream_id: int
    position: int
    """Offset of the event in its stream."""
    at: datetime
    """Event time."""
    features: Sequence[float]
    """What the learner's own counts said of the parties then."""
    risks: Sequence[float]
    """Each arm's, the learner's first."""


@dataclass(frozen=True, kw_only=True)
class OpenPrediction:
    """A subject as of a step."""

    user: str
    user_id: int
    """The user's number in the vocabulary."""
    subject: int
    step: int
    """The one that first handled the event."""
    stream_id: int
    position: int
    at: datetime
    features: tuple[float, ...]
    risks: tuple[float, ...]
    closed: bool
    """Its outcome was learnt by an earlier step: what follows says which; of an open one it says nothing yet."""
    silent: bool | None = None
    """Nobody had told it until the task's horizon."""
    value: float | None = None
    known_at: datetime | None = None
    corrected: bool = False
    """A label came after the silence, and was heard by an earlier step."""
    corrected_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Closed:
    """What came of an open subject."""

    user_id: int
    subject: int
    value: float
    known_at: datetime
    silent: bool
    """Nobody said anything until the task's horizon."""


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """What a label told of a subject whose silence had counted as its outcome."""

    user_id: int
    subject: int
    value: float
    known_at: datetime


# A user whose name is gone (erased) gets no row: the lock makes an erasure wait, and it looks for rows afterwards.
_PUT = text("""
    INSERT INTO prediction (user_id, learner, branch, subject, task, step, stream_id, position, at, features, risks)
    SELECT u.id, :learner, :branch, n.subject, :task, :step, n.stream_id, n.position, n.at,
           CAST(n.features AS float8[]), CAST(n.risks AS float8[])
    FROM unnest(CAST(:users AS text[]), CAST(:subjects AS bigint[]), CAST(:streams AS int[]),
                CAST(:positions AS bigint[]), CAST(:ats AS timestamptz[]), CAST(:features AS text[]),
                CAST(:risks AS text[]))
         AS n(user_id, subject, stream_id, position, at, features, risks)
    CROSS JOIN LATERAL (SELECT id FROM vocabulary WHERE space = 1 AND value = n.user_id FOR KEY SHARE) AS u
    ON CONFLICT (user_id, learner, branch, subject) DO NOTHING
""")

_COLUMNS = """
    a.n, u.value AS "user", p.user_id, p.subject, p.step, p.stream_id, p.position, p.at, p.features, p.risks,
    coalesce(p.closed_step < :step, false) AS closed, p.silent, p.value, p.known_at,
    coalesce(p.corrected_step < :step, false) AS corrected, p.corrected_value
"""
_AS_OF = "p.learner = :learner AND p.branch = :branch AND p.step <= :step"

_OF_USERS = text(f"""
    SELECT {_COLUMNS}
    FROM unnest(CAST(:users AS text[]), CAST(:subjects AS bigint[])) WITH ORDINALITY AS a(value, subject, n)
    CROSS JOIN LATERAL (SELECT id, value FROM vocabulary WHERE space = 1 AND value = a.value) AS u
    JOIN prediction p ON p.user_id = u.id AND p.subject = a.subject
    WHERE {_AS_OF} ORDER BY a.n
""")

_OF_NUMBERS = text(f"""
    SELECT {_COLUMNS}
    FROM unnest(CAST(:users AS bigint[]), CAST(:subjects AS bigint[])) WITH ORDINALITY AS a(user_id, subject, n)
    JOIN vocabulary u ON u.id = a.user_id
    JOIN prediction p ON p.user_id = a.user_id AND p.subject = a.subject
    WHERE {_AS_OF} ORDER BY a.n
""")

_DUE = text("""
    SELECT user_id, subject, at FROM prediction
    WHERE learner = :learner AND branch = :branch AND closed_step IS NULL
      AND (CAST(:before AS bigint) IS NULL OR step < :before)
    ORDER BY at, subject LIMIT :limit
""")

_CLOSE = text("""
    UPDATE prediction p SET closed_step = :step, value = c.value, known_at = c.known_at, silent = c.silent
    FROM unnest(CAST(:users AS bigint[]), CAST(:subjects AS bigint[]), CAST(:values AS float8[]),
                CAST(:known_ats AS timestamptz[]), CAST(:silents AS bool[]))
         AS c(user_id, subject, value, known_at, silent)
    WHERE p.user_id = c.user_id AND p.subject = c.subject AND p.learner = :learner AND p.branch = :branch
      AND (p.closed_step IS NULL OR p.closed_step = :step)
""")

_CORRECT = text("""
    UPDATE prediction p SET corrected_step = :step, corrected_value = c.value, corrected_known_at = c.known_at
    FROM unnest(CAST(:users AS bigint[]), CAST(:subjects AS bigint[]), CAST(:values AS float8[]),
                CAST(:known_ats AS timestamptz[]))
         AS c(user_id, subject, value, known_at)
    WHERE p.user_id = c.user_id AND p.subject = c.subject AND p.learner = :learner AND p.branch = :branch
      AND p.silent AND (p.corrected_step IS NULL OR p.corrected_step = :step)
""")

_COUNT_OPEN = text("""
    SELECT count(*) FROM prediction WHERE learner = :learner AND branch = :branch AND closed_step IS NULL
""")

# A subject is looked at again by the step that closes or corrects it, and by whoever repeats that step: from a
# snapshot, from the parent of one that may be rebuilt, or from the learner's birth.
_NEEDED_FROM = text("""
    SELECT min(p.at)
    FROM (
        SELECT l.name, min(CASE WHEN s.irreproducible THEN s.step
                                WHEN s.parent IS NULL THEN 0
                                ELSE coalesce(p.step, s.step) END) AS step
        FROM learner l
        LEFT JOIN snapshot s ON s.learner = l.name AND s.status <> 'deleting'
        LEFT JOIN snapshot p ON p.id = s.parent
        GROUP BY l.name
    ) AS first
    JOIN prediction p ON p.learner = first.name
     AND (p.closed_step IS NULL OR p.closed_step >= first.step OR p.corrected_step >= first.step)
""")

# Silences may be corrected for so long behind the newest task clock; they need not be looked for. A step has no clock
# where no payment was read, or right after an erasure.
_CORRECTABLE_FROM = text("""
    SELECT min(j.task_clock - make_interval(secs => (l.config ->> 'correction_us')::bigint / 1e6))
    FROM learner l
    CROSS JOIN LATERAL (
        SELECT task_clock FROM journal
        WHERE learner = l.name AND branch = l.branch AND step >= l.next_step - 10000 AND task_clock IS NOT NULL
        ORDER BY step DESC LIMIT 1
    ) j
    WHERE l.config ? 'correction_us'
""")

_CLOSED = text("""
    SELECT at, risks, coalesce(corrected_value, value) AS value, silent AND corrected_step IS NULL AS silent
    FROM prediction
    WHERE learner = :learner AND branch = :branch AND closed_step IS NOT NULL ORDER BY at, subject
""")

_ERASE_USERS = text("DELETE FROM prediction WHERE user_id = ANY(CAST(:ids AS bigint[]))")
_ERASE_EVENTS = text(
    "DELETE FROM prediction WHERE stream_id = :stream AND position = ANY(CAST(:positions AS bigint[]))"
)


def put(connection: Connection, lease: WriterLease, step: int, task: str, rows: Sequence[StoredPrediction]) -> None:
    """Keeps the predictions of a step; those that are there already stay as they are.

    Hold the lease first (`journal.check_seat`): then nobody else writes them.
    """
    if not rows:
        return
    values = {
        "task": task,
        "users": [row.user for row in rows],
        "subjects": [row.subject for row in rows],
        "streams": [row.stream_id for row in rows],
        "positions": [row.position for row in rows],
        "ats": [row.at for row in rows],
        "features": [_literal(row.features) for row in rows],
        "risks": [_literal(row.risks) for row in rows],
    }
    connection.execute(_PUT, {**_key(lease.learner, lease.branch), "step": step, **values})


def of_users(
    connection: Connection, learner: str, branch: int, step: int, asks: Sequence[tuple[str, int]]
) -> dict[int, OpenPrediction]:
    """Those of the asked subjects (user, subject) that were handled as of a step, by their place in `asks`."""
    return _found(connection, _OF_USERS, learner, branch, step, asks)


def of_numbers(
    connection: Connection, learner: str, branch: int, step: int, asks: Sequence[tuple[int, int]]
) -> dict[int, OpenPrediction]:
    """The same, asked by (user's number, subject)."""
    return _found(connection, _OF_NUMBERS, learner, branch, step, asks)


def oldest(
    connection: Connection, learner: str, branch: int, *, limit: int, before: int | None = None
) -> list[tuple[int, int, datetime]]:
    """(user's number, subject, event time) of the subjects that have been open for longest, the oldest first.

    :param before: of those that steps below it handled; None: of all.
    """
    found = connection.execute(_DUE, {**_key(learner, branch), "limit": limit, "before": before})
    return [(row.user_id, row.subject, row.at) for row in found]


def close(connection: Connection, lease: WriterLease, step: int, rows: Sequence[Closed]) -> None:
    """Writes what came of open subjects."""
    if not rows:
        return
    values = {
        "users": [row.user_id for row in rows],
        "subjects": [row.subject for row in rows],
        "values": [row.value for row in rows],
        "known_ats": [row.known_at for row in rows],
        "silents": [row.silent for row in rows],
    }
    connection.execute(_CLOSE, {**_key(lease.learner, lease.branch), "step": step, **values})


def correct(connection: Connection, lease: WriterLease, step: int, rows: Sequence[Corrected]) -> None:
    """Writes what labels told of subjects whose silence had counted; the silence stays written beside it."""
    if not rows:
        return
    values = {
        "users": [row.user_id for row in rows],
        "subjects": [row.subject for row in rows],
        "values": [row.value for row in rows],
        "known_ats": [row.known_at for row in rows],
    }
    connection.execute(_CORRECT, {**_key(lease.learner, lease.branch), "step": step, **values})


def count_open(connection: Connection, learner: str, branch: int) -> int:
    """How many subjects wait for an outcome."""
    return int(connection.scalar(_COUNT_OPEN, _key(learner, branch)) or 0)


def needed_from(connection: Connection) -> datetime | None:
    """Event time of the oldest subject that any learner, or the repetition of a snapshot, may still look at again:
    its outcome is open, is learnt or corrected anew by a repetition, or is a silence that a label may still correct."""
    found: list[datetime | None] = [connection.scalar(_NEEDED_FROM), connection.scalar(_CORRECTABLE_FROM)]
    return min((time for time in found if time is not None), default=None)


def closed(connection: Connection, learner: str, branch: int) -> list[Any]:
    """(at, risks, value, silent) of every subject whose outcome is known, in the order of event time; corrected ones
    are not silent."""
    return list(connection.execute(_CLOSED, _key(learner, branch)))


def erase_users(connection: Connection, user_ids: Sequence[int]) -> None:
    """Deletes the rows of erased users, by vocabulary id: after their names, in the same transaction."""
    connection.execute(_ERASE_USERS, {"ids": list(user_ids)})


def erase_events(connection: Connection, stream_id: int, positions: Sequence[int]) -> None:
    """Deletes what was predicted of erased events, whoever's they were."""
    connection.execute(_ERASE_EVENTS, {"stream": stream_id, "positions": list(positions)})


def _found(
    connection: Connection, statement: Any, learner: str, branch: int, step: int, asks: Sequence[tuple[Any, int]]
) -> dict[int, OpenPrediction]:
    if not asks:
        return {}
    users, subjects = (list(column) for column in zip(*asks, strict=True))
    values = {**_key(learner, branch), "step": step, "users": users, "subjects": subjects}
    return {row.n - 1: _kept(row._mapping) for row in connection.execute(statement, values)}


_PLAIN = (
    "user", "user_id", "subject", "step", "stream_id", "position", "at", "closed", "silent", "value", "known_at",
    "corrected", "corrected_value",
)  # fmt: skip


def _kept(row: RowMapping) -> OpenPrediction:
    values = {name: row[name] for name in _PLAIN}
    return OpenPrediction(**values, features=tuple(row["features"]), risks=tuple(row["risks"]))


def _key(learner: str, branch: int) -> dict[str, object]:
    return {"learner": learner, "branch": branch}


def _literal(numbers: Sequence[float]) -> str:
    """An array for `unnest`, which would flatten arrays of arrays; `repr` keeps every bit."""
    return "{" + ",".join(repr(float(number)) for number in numbers) + "}"
