"""What a person asks first: who owns which stream, what became of its records, how far the learners are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from storage.learning import label_resolutions, predictions
from storage.learning.label_resolutions import Resolution
from storage.log.offsets import StreamRow


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The database session that took a stream last, if it is still there."""

    pid: int
    """Of the session's backend, not of the process."""
    application: str
    address: str | None
    """None: over a Unix socket."""
    since: datetime


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What became of a stream's records."""

    read: int
    accepted: int
    duplicates: int
    dead: int
    suppressed: int
    received_at: datetime | None
    """When its newest batch was committed."""


@dataclass(frozen=True, kw_only=True)
class Far:
    """Records of a stream's log whose time lies far ahead of the others."""

    records: int
    offsets: list[int]
    """Of the newest of them, at most 10, ascending."""


NO_FAR = Far(records=0, offsets=[])


@dataclass(frozen=True, kw_only=True)
class LearnerRow:
    """How far a learner is."""

    learner: str
    version: str
    branch: int
    next_step: int
    """The next step to journal."""
    snapshot: str | None
    """The newest live one."""
    snapshot_step: int | None
    snapshot_age_s: float | None


@dataclass(frozen=True, kw_only=True)
class OutcomesRow:
    """What came of the labels that a learner of outcomes has read."""

    learner: str
    task: str
    labels: dict[str, int]
    """Resolution, or "waiting" -> how many."""
    open: int
    """Payments without an outcome."""
    unlabelled: bool
    """No label of the task was ever read, and nobody said that there may be none: silence counts for nothing."""
    idle: tuple[str, ...]
    """Streams that had been read to the broker's end when silences ended last."""


_OWNERS = text("""
    SELECT s.stream_id, a.pid, a.application_name AS application, host(a.client_addr) AS address,
           a.backend_start AS since
    FROM stream_offset s
    JOIN pg_stat_activity a ON a.pid = s.owner_pid AND a.backend_start = s.owner_started
""")

_TAKEN = text("""
    SELECT stream_id, sum(read)::bigint AS read, sum(accepted)::bigint AS accepted,
           sum(duplicates)::bigint AS duplicates, sum(dead)::bigint AS dead, sum(suppressed)::bigint AS suppressed,
           max(received_at) AS received_at
    FROM log_segment GROUP BY stream_id
""")

_FAR = text("""
    SELECT s.stream_id, s.records, n.offsets
    FROM (SELECT stream_id, sum(far)::bigint AS records FROM log_segment WHERE far > 0 GROUP BY stream_id) AS s
    CROSS JOIN LATERAL (
        SELECT array_agg(o.at ORDER BY o.at) AS offsets
        FROM (SELECT at FROM (SELECT far_offsets FROM log_segment WHERE stream_id = s.stream_id AND far > 0
                              ORDER BY first_offset DESC, epoch DESC LIMIT 10) AS g, unnest(g.far_offsets) AS at
              ORDER BY at DESC LIMIT 10) AS o
    ) AS n
""")

_LEARNERS = text("""
    SELECT l.name AS learner, l.version, l.branch, l.next_step, s.id AS snapshot, s.step AS snapshot_step,
           extract(epoch FROM clock_timestamp() - s.live_at)::float8 AS snapshot_age_s
    FROM learner l
    LEFT JOIN LATERAL (
        SELECT id, step, live_at FROM snapshot
        WHERE learner = l.name AND branch = l.branch AND status = 'live' ORDER BY step DESC LIMIT 1
    ) s ON true
    ORDER BY l.name
""")

_OF_OUTCOMES = text("""
    SELECT l.name AS learner, l.branch, l.config ->> 'label' AS task,
           l.config ? 'horizon_us' AS silences_count,
           (SELECT array_agg(s.topic || '[' || s.partition || ']' ORDER BY s.topic, s.partition)
            FROM stream_offset s WHERE s.stream_id = ANY(j.drained)) AS idle
    FROM learner l
    LEFT JOIN LATERAL (
        SELECT drained FROM journal
        WHERE learner = l.name AND branch = l.branch AND step >= l.next_step - 10000 AND drained <> '{}'
        ORDER BY step DESC LIMIT 1
    ) j ON true
    WHERE l.config ? 'label' ORDER BY l.name
""")

_REVIVE = text("UPDATE stream_offset SET retired = false, epoch = epoch + 1 WHERE stream_id = ANY(:ids)")


def owners(connection: Connection) -> dict[int, Owner]:
    """Stream -> who owns it, where somebody does."""
    found = (dict(row._mapping) for row in connection.execute(_OWNERS))
    return {row.pop("stream_id"): Owner(**row) for row in found}


def taken(connection: Connection) -> dict[int, Taken]:
    """Stream -> what became of its records, where it has any."""
    found = (dict(row._mapping) for row in connection.execute(_TAKEN))
    return {row.pop("stream_id"): Taken(**row) for row in found}


def far(connection: Connection) -> dict[int, Far]:
    """Stream -> records far ahead of the others, where the log holds any."""
    return {row.stream_id: Far(records=row.records, offsets=row.offsets) for row in connection.execute(_FAR)}


def learners(connection: Connection) -> list[LearnerRow]:
    """All learners that were ever started."""
    return [LearnerRow(**row._mapping) for row in connection.execute(_LEARNERS)]


def outcomes(connection: Connection) -> list[OutcomesRow]:
    """Learners of outcomes, with what came of the labels they have read."""
    return [_outcomes(connection, row) for row in connection.execute(_OF_OUTCOMES).all()]


def _outcomes(connection: Connection, row: Any) -> OutcomesRow:
    found = label_resolutions.counts(connection, row.learner, row.branch)
    ours = sum(found.values()) - found[Resolution.OTHER_TASK]
    return OutcomesRow(
        learner=row.learner,
        task=row.task,
        labels=found,
        open=predictions.count_open(connection, row.learner, row.branch),
        unlabelled=row.silences_count and not ours and not label_resolutions.assumed_complete(connection, row.task),
        idle=tuple(row.idle or ()),
    )


def revive(connection: Connection, rows: Iterable[StreamRow]) -> None:
    """Makes retired streams current again: their topic is back. They go on where they stopped."""
    connection.execute(_REVIVE, {"ids": [row.stream_id for row in rows]})
