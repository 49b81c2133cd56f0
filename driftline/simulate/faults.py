"""Records that must not count: repetitions of events, and records that are broken in each of the known ways."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec
import numpy as np

from contracts import topics
from contracts.codec import Reason, encode
from contracts.records import MAX_ID_CHARS, Relation, UserEvent
from driftline.simulate.planned_rows import BROKEN, REPEATED, Rows, empty
from driftline.simulate.scenario import SOURCE, Integers, Scenario

MALFORMED = (
    Reason.EMPTY,
    Reason.NOT_JSON,
    Reason.MISSING_FIELD,
    Reason.INVALID_FIELD,
    Reason.OVERSIZED_FIELD,
    Reason.UNKNOWN_VERSION,
    Reason.UNSTORABLE_TEXT,
    Reason.KEY_MISMATCH,
    Reason.SELF_RELATION,
    Reason.TIME_OUT_OF_RANGE,
)
"""Broken records take turns through these."""

_LEAST_US, _MOST_US = 1_000_000, 60_000_000
"""How long after an event its repetition is sent."""


def repeated(rng: np.random.Generator, scenario: Scenario, events: Rows) -> Rows:
    """As many events as the rate asks for, to the event, sent a second time; none after the end."""
    rows = events[np.repeat(np.arange(len(events)), _due(scenario.duplicate_rate, events["number"]))]
    rows["what"] = REPEATED
    rows["sent_us"] = np.minimum(rows["sent_us"] + rng.integers(_LEAST_US, _MOST_US, len(rows)), scenario.end_us)
    return rows


def broken(scenario: Scenario, events: Rows) -> Rows:
    """As many broken records as the rate asks for, to the record, sent beside events."""
    due = _due(scenario.malformed_rate, events["number"])
    rows = empty(int(due.sum()))
    if len(rows):
        first = int(np.floor(scenario.malformed_rate * events["number"][0]))
        rows["number"] = first + np.arange(len(rows))
        rows["kind"] = rows["number"] % len(MALFORMED)
        rows["sent_us"] = rows["at_us"] = np.repeat(events["sent_us"], due)
        rows["what"] = BROKEN
    return rows


def _due(rate: float, number: Integers) -> Integers:
    """[n] how many fall on the event of each number, so that n events have floor(n * rate) whatever n is."""
    return np.asarray(np.floor(rate * (number + 1)) - np.floor(rate * number), np.int64)


def malformed(reason: Reason, event_id: str, user_id: str, at: datetime) -> tuple[str, bytes, bytes | None]:
    """(topic, key, value) of a record that must be refused for `reason`."""
    good = UserEvent(event_id=event_id, user_id=user_id, occurred_at=at, source=SOURCE, type="browse")
    fields, value = msgspec.to_builtins(good), encode(good)
    match reason:
        case Reason.EMPTY:
            return topics.USER, user_id.encode(), None
        case Reason.NOT_JSON:
            return topics.USER, user_id.encode(), value[: len(value) // 2]
        case Reason.MISSING_FIELD:
            del fields["event_id"]
        case Reason.INVALID_FIELD:
            fields["occurred_at"] = "yesterday"
        case Reason.OVERSIZED_FIELD:
            fields["event_id"] = event_id.ljust(MAX_ID_CHARS + 1, "-")
        case Reason.UNKNOWN_VERSION:
            fields["schema"] = "9.0"
        case Reason.UNSTORABLE_TEXT:
            fields["type"] = "bro\0wse"
        case Reason.KEY_MISMATCH:
            return topics.USER, user_id.encode() + b"-another", value
        case Reason.TIME_OUT_OF_RANGE:
            fields["occurred_at"] = at + timedelta(days=3)
        case Reason.SELF_RELATION:
            return topics.RELATIONAL, user_id.encode(), encode(_to_oneself(good))
        case _:
            raise AssertionError(reason)
    return topics.USER, user_id.encode(), msgspec.json.encode(fields)


def _to_oneself(event: UserEvent) -> Relation:
    return Relation(
        event_id=event.event_id,
        actor_id=event.user_id,
        counterpart_id=event.user_id,
        relation="message",
        occurred_at=event.occurred_at,
        source=SOURCE,
    )
