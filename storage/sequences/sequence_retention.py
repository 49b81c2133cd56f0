"""Retention of users' sequences: what is old, beyond a user's newest events, and needed by nobody (protocol, rule 12).

A history is a user's newest events before a time that some row or label names. So a compacted row of a sequence may
go when all of this is true of it:

- its events are older than their topics' age, counted in event time behind the topic's newest event, those far ahead
  of their streams apart (`contracts.clocks`);
- the log of its events is gone already: no learner and no repetition reads them as rows, no repeated record is
  recognised by them, and `verify` misses nothing;
- every event that the log still holds, and every open label, speaks of a later time: those are the times at
  which a learner, a repetition or a learner yet to be born asks for histories;
- behind it and before that time the user has at least so many events, and so many with an item if it holds items:
  as many as the longest history there is.

So whoever asks as of a time the log still covers gets the same answer, before and after. What went is counted, user
by user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, text

from storage.log import event_log, log_retention, offsets
from storage.privacy import suppression
from storage.sequences import compaction


@dataclass(frozen=True, kw_only=True)
class SequencePolicy:
    """What may go."""

    keep: Mapping[str, timedelta]
    """Topic -> event time to keep behind its newest event; events of topics not named are kept for ever."""
    events: int
    """Of each user, at least so many: no fewer than the longest history one of the `askers` asks for. The caller
    sees to that: here weights are bytes."""


@dataclass(frozen=True, kw_only=True)
class Trimmed:
    """What went."""

    users: int = 0
    events: int = 0


@dataclass(frozen=True, kw_only=True)
class Missing:
    """What went of one user's sequence, ever."""

    events: int
    last_at: datetime
    """Event time of the newest of them."""


class Overtaken(RuntimeError):
    """A late record came in that speaks of an earlier time: what was removed must come back. Roll back."""


_NEEDED_FROM = text("""
    SELECT min(first_event_at) FROM log_segment g JOIN stream_offset USING (stream_id) WHERE topic LIKE 'events.%'
""")

_OLD = """
    SELECT r.user_id, r.first_offset
    FROM user_segment r
    WHERE r.stream_id = 0 AND r.last_at < :needed_from
      AND NOT EXISTS (
          SELECT FROM unnest(r.streams, r.ends) AS h(stream, next)
          LEFT JOIN unnest(CAST(:streams AS int[]), CAST(:befores AS bigint[]), CAST(:begins AS bigint[]))
               AS b(stream, before, log_begins) ON b.stream = h.stream
          WHERE b.stream IS NULL OR r.last_at >= b.before OR h.next > b.log_begins)
      AND (SELECT coalesce(sum(k.events), 0) >= :keep
                  AND (r.item IS NULL OR coalesce(sum(cardinality(array_remove(k.item, NULL))), 0) >= :keep)
           FROM user_segment k
           WHERE k.user_id = r.user_id AND k.stream_id = 0 AND k.first_at > r.last_at AND k.last_at < :needed_from)
"""

_USERS = text(f"SELECT DISTINCT user_id FROM ({_OLD}) AS old ORDER BY user_id LIMIT :limit")

_REMOVE = text(f"""
    WITH gone AS (
        DELETE FROM user_segment s USING ({_OLD} AND r.user_id = ANY(CAST(:users AS bigint[]))) AS old
        WHERE s.user_id = old.user_id AND s.stream_id = 0 AND s.first_offset = old.first_offset
        RETURNING s.user_id, s.events, s.last_at
    ),
    told AS (
        INSERT INTO trimmed_sequence AS t (user_id, events, last_at)
        SELECT user_id, sum(events), max(last_at) FROM gone GROUP BY user_id
        ON CONFLICT (user_id) DO UPDATE
        SET events = t.events + excluded.events, last_at = greatest(t.last_at, excluded.last_at)
    )
    SELECT count(DISTINCT user_id) AS users, coalesce(sum(events), 0)::bigint AS events FROM gone
""")

_ASKERS = text("SELECT name, config FROM learner ORDER BY name")

_MISSING = text("""
    SELECT t.events, t.last_at FROM trimmed_sequence t JOIN vocabulary u ON u.id = t.user_id
    WHERE u.space = 1 AND u.value = :user
""")

_AMONG = text("SELECT user_id FROM trimmed_sequence WHERE user_id = ANY(CAST(:ids AS bigint[]))")

_ERASE = text("DELETE FROM trimmed_sequence WHERE user_id = ANY(CAST(:ids AS bigint[]))")


def trim(connection: Connection, policy: SequencePolicy, *, limit: int = 200) -> Trimmed:
    """Removes what may go of at most `limit` users; call it in a transaction of its own, until nothing goes.

    :raises Overtaken: roll back and come again.
    """
    needed_from, bounds = _needed_from(connection), _bounds(connection, policy)
    if needed_from is None or not bounds["streams"]:
        return Trimmed()
    values = {"needed_from": needed_from, "keep": policy.events, **bounds}
    users = list(connection.scalars(_USERS, {**values, "limit": limit}))
    if not users:
        return Trimmed()
    compaction.lock(connection, users)
    gone = connection.execute(_REMOVE, {**values, "users": users}).one()
    suppression.alone(connection)  # no batch is in flight: what was needed before the lock is all that is needed
    if (_needed_from(connection) or 0) < needed_from:
        raise Overtaken("a late record speaks of a time whose histories were to be removed")
    return Trimmed(**gone._mapping)


def askers(connection: Connection) -> dict[str, dict[str, Any]]:
    """Learner -> what it was born with: whose histories must not become shorter. How long those are, it knows."""
    return {row.name: row.config for row in connection.execute(_ASKERS)}


def among(connection: Connection, user_ids: Sequence[int]) -> frozenset[int]:
    """Those of these users whose sequences lost events to retention."""
    return frozenset(connection.scalars(_AMONG, {"ids": list(user_ids)}) if user_ids else ())


def missing(connection: Connection, user: str) -> Missing | None:
    """What went of a user's sequence; None: nothing did."""
    row = connection.execute(_MISSING, {"user": user}).one_or_none()
    return None if row is None else Missing(events=row.events, last_at=event_log.time_of(row.last_at))


def erase(connection: Connection, user_ids: list[int]) -> int:
    """Forgets what went of erased users, by vocabulary id; of how many something had gone."""
    return int(connection.execute(_ERASE, {"ids": user_ids}).rowcount)


def _needed_from(connection: Connection) -> int | None:
    """The earliest time at which anybody may still ask for a history, microseconds; None: nobody can tell."""
    times = [
        connection.scalar(_NEEDED_FROM),
        log_retention.open_from(connection, log_retention.read_from(connection) or {}),
    ]
    return None if times[0] is None else min(event_log.microseconds_of(time) for time in times if time is not None)


def _bounds(connection: Connection, policy: SequencePolicy) -> dict[str, list[int]]:
    """Of each stream whose topic has an age: events before this time, at offsets below this one."""
    begins, found = offsets.log_begins(connection), list[tuple[int, int, int]]()
    for topic, age in policy.keep.items():
        streams = [row.stream_id for row in offsets.streams(connection) if row.stream.topic == topic]
        newest = event_log.newest(connection, streams, "at")
        if newest is not None:
            before = event_log.microseconds_of(newest) - age // timedelta(microseconds=1)
            found += [(stream, before, begins[stream]) for stream in streams]
    return {
        "streams": [stream for stream, _, _ in found],
        "befores": [before for _, before, _ in found],
        "begins": [begin for _, _, begin in found],
    }
