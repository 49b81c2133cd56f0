"""What tests read out of a simulation, the way any reader of its records would."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts import topics
from contracts.codec import Decoder, Malformed, Reason, check_time
from contracts.records import Event, Payment, Record, Relation, UserEvent
from driftline.simulate import Simulation
from runtime.produce import Outgoing


class Occasion(NamedTuple):
    """An event, or all payments of a basket."""

    user: str
    type: str
    at: datetime
    friend: str | None


def sorted_out(records: Iterable[Outgoing]) -> tuple[Counter[str], Counter[str], Counter[Reason]]:
    """(valid by topic, duplicates by topic, malformed by reason) as `ingest` would count them."""
    decoders = {topic: Decoder(kind) for topic, kind in topics.INPUTS.items()}
    seen: set[tuple[str, bytes | None, str]] = set()
    valid, duplicates, malformed = Counter[str](), Counter[str](), Counter[Reason]()
    for topic, key, value, at_ms in records:
        if topic == topics.ITEMS and value is None:
            valid[topic] += 1
            continue
        try:
            record = decoders[topic].decode(value, key)
            if isinstance(record, UserEvent | Payment | Relation):
                check_time(record.occurred_at, datetime.fromtimestamp(at_ms / 1000, UTC))
        except Malformed as error:
            malformed[error.reason] += 1
            continue
        identity = (topic, key, getattr(record, "event_id", "item"))
        (duplicates if identity in seen else valid)[topic] += 1
        seen.add(identity)
    return valid, duplicates, malformed


def decoded(simulation: Simulation, *wanted: str, skip_tombstones: bool = False) -> Iterator[Record]:
    """The records of these topics; all must be valid."""
    decoders = {topic: Decoder(topics.INPUTS[topic]) for topic in wanted}
    for topic, key, value, _ in simulation.records():
        if topic in decoders and not (skip_tombstones and value is None):
            yield decoders[topic].decode(value, key)


def events(simulation: Simulation) -> Iterator[Event]:
    """The events, in the order of their times."""
    for record in decoded(simulation, *topics.EVENTS):
        assert isinstance(record, UserEvent | Payment | Relation)
        yield record


def occasions(simulation: Simulation) -> list[Occasion]:
    """The events, a basket once, in the order of their times."""
    found = dict.fromkeys(
        Occasion(event.actor_id, event.relation, event.occurred_at, event.counterpart_id)
        if isinstance(event, Relation)
        else Occasion(event.user_id, event.type, event.occurred_at, None)
        for event in events(simulation)
    )
    return list(found)


def seconds(found: Iterable[Occasion], start: datetime) -> NDArray[np.float64]:
    """[n] seconds from the start."""
    return np.array([(occasion.at - start).total_seconds() for occasion in found])
