"""The simulator does what its truth says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pytest

from contracts import topics
from contracts.codec import MAX_AHEAD, MAX_BEHIND, Decoder, Malformed, Reason
from contracts.records import Payment, Record, Relation, UserEvent
from driftline.simulate import DAY_S, TYPES, Scenario, Simulation
from runtime.produce import Outgoing

DIRTY = Scenario(seed=3, users=60, malformed_rate=0.05, duplicate_rate=0.04)
CLEAN = Scenario(seed=5, users=300)


@pytest.fixture(scope="module")
def clean() -> Simulation:
    return Simulation(CLEAN)


def test_one_seed_gives_the_same_bytes_and_another_gives_others() -> None:
    first, again = Simulation(DIRTY), Simulation(DIRTY)
    assert list(first.records()) == list(first.records()) == list(again.records())
    other = Simulation(Scenario(seed=4, users=60))
    assert list(other.records())[500:600] != list(again.records())[500:600]


def test_records_come_in_the_order_of_their_times() -> None:
    times = [record.at_ms for record in Simulation(DIRTY).records()]
    assert times == sorted(times)


def test_the_counts_of_the_truth_are_what_a_reader_finds() -> None:
    simulation = Simulation(DIRTY)
    valid, duplicates, malformed = _sorted_out(simulation.records())
    assert valid == simulation.truth.valid
    assert duplicates == simulation.truth.duplicates
    assert malformed == simulation.truth.malformed
    assert set(malformed) == {
        Reason.EMPTY,
        Reason.NOT_JSON,
        Reason.MISSING_FIELD,
        Reason.INVALID_FIELD,
        Reason.UNKNOWN_VERSION,
        Reason.KEY_MISMATCH,
        Reason.SELF_RELATION,
        Reason.TIME_OUT_OF_RANGE,
    }


def test_event_rates_before_and_after_the_change_are_those_of_the_truth(clean: Simulation) -> None:
    times = np.array([event.occurred_at.timestamp() for event in _events(clean)])
    assert clean.truth.change_at is not None
    change = clean.truth.change_at.timestamp()
    for count, rate in (
        ((times < change).sum(), clean.truth.rate_before),
        ((times >= change).sum(), clean.truth.rate_after),
    ):
        expected = rate * CLEAN.users * 7 * DAY_S
        spread = np.sqrt(expected) / (1 - CLEAN.branching)  # of a Hawkes count over a long time
        assert abs(count - expected) < 4 * spread


def test_events_excite_each_other(clean: Simulation) -> None:
    """In a short time after an event there are far more than the mean rate brings: its offspring's."""
    assert clean.truth.change_at is not None
    near, events = 0, 0
    for times in _times_of_users(clean).values():
        before = times[times < clean.truth.change_at.timestamp()]
        near += int((np.diff(before) < CLEAN.decay_s).sum())
        events += len(before)
    poisson = 1 - np.exp(-clean.truth.rate_before * CLEAN.decay_s)
    assert near / events > 3 * poisson


def test_without_excitation_waiting_times_are_exponential() -> None:
    scenario = Scenario(seed=1, users=200, branching=0.0, change_after_s=None)
    simulation = Simulation(scenario)
    waits = np.concatenate([np.diff(times) for times in _times_of_users(simulation).values()])
    assert waits.mean() == pytest.approx(1 / simulation.truth.rate_before, rel=0.05)
    assert (waits > waits.mean()).mean() == pytest.approx(np.exp(-1), abs=0.02)


def test_types_follow_the_transitions_of_the_truth(clean: Simulation) -> None:
    truth, kinds = clean.truth, {name: n for n, name in enumerate(TYPES)}
    assert truth.change_at is not None
    counts = np.zeros((2, len(TYPES), len(TYPES)))
    last: dict[str, int] = {}
    for event in _events(clean):
        user, kind = _user_and_kind(event)
        if user in last:
            counts[int(event.occurred_at >= truth.change_at), last[user], kinds[kind]] += 1
        last[user] = kinds[kind]
    found = counts / counts.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(found[0], truth.transitions_before, atol=0.05)
    np.testing.assert_allclose(found[1], truth.transitions_after, atol=0.05)
    assert np.abs(truth.transitions_before - truth.transitions_after).max() > 0.2


def test_without_a_change_nothing_changes() -> None:
    truth = Simulation(Scenario(users=5, change_after_s=None)).truth
    assert truth.change_at is None
    assert truth.rate_before == truth.rate_after
    np.testing.assert_array_equal(truth.transitions_before, truth.transitions_after)


def test_a_process_that_would_explode_is_refused() -> None:
    with pytest.raises(ValueError, match="branching"):
        Simulation(Scenario(branching=1.0))


def _sorted_out(records: Iterable[Outgoing]) -> tuple[Counter[str], Counter[str], Counter[Reason]]:
    """(valid, duplicates, malformed) as `ingest` would count them."""
    decoders = {topic: Decoder(kind) for topic, kind in topics.INPUTS.items()}
    seen: set[tuple[str, bytes | None, str]] = set()
    valid, duplicates, malformed = Counter[str](), Counter[str](), Counter[Reason]()
    for topic, key, value, at_ms in records:
        try:
            record = decoders[topic].decode(value, key)
            if isinstance(record, UserEvent | Payment | Relation):
                ahead = record.occurred_at - datetime.fromtimestamp(at_ms / 1000, UTC)
                if not -MAX_BEHIND <= ahead <= MAX_AHEAD:
                    raise Malformed(Reason.TIME_OUT_OF_RANGE, "")
        except Malformed as error:
            malformed[error.reason] += 1
            continue
        identity = (topic, key, getattr(record, "event_id", "item"))
        (duplicates if identity in seen else valid)[topic] += 1
        seen.add(identity)
    return valid, duplicates, malformed


def _events(simulation: Simulation) -> list[UserEvent | Payment | Relation]:
    decoders = {topic: Decoder(topics.INPUTS[topic]) for topic in topics.EVENTS}
    decoded: list[Record] = [
        decoders[record.topic].decode(record.value, record.key)
        for record in simulation.records()
        if record.topic in decoders
    ]
    return [record for record in decoded if isinstance(record, UserEvent | Payment | Relation)]


def _user_and_kind(event: UserEvent | Payment | Relation) -> tuple[str, str]:
    return (event.actor_id, event.relation) if isinstance(event, Relation) else (event.user_id, event.type)


def _times_of_users(simulation: Simulation) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    times: dict[str, list[float]] = {}
    for event in _events(simulation):
        times.setdefault(_user_and_kind(event)[0], []).append(event.occurred_at.timestamp())
    assert all(a <= b for user in times.values() for a, b in pairwise(user))
    return {user: np.array(values) for user, values in times.items()}
