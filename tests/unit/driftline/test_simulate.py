"""A simulation as a stream: reproducible, in order, and counted exactly by its truth."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import takewhile

import pytest

from contracts.codec import Reason
from driftline.simulate import DAY_S, Drift, Scenario, Simulation, arrivals
from tests.simulated import sorted_out

DIRTY = Scenario(seed=3, users=60, malformed_rate=0.05, duplicate_rate=0.04)
REASONS = {
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
}


def test_one_seed_gives_the_same_bytes_and_another_gives_others() -> None:
    first, again = Simulation(DIRTY), Simulation(DIRTY)
    assert list(first.records()) == list(first.records()) == list(again.records())
    other = Simulation(replace(DIRTY, seed=4))
    assert list(other.records())[500:600] != list(again.records())[500:600]


def test_the_truth_is_the_same_whether_told_before_or_after_the_records() -> None:
    before, after = Simulation(DIRTY), Simulation(DIRTY)
    told = before.truth.json()
    list(after.records())
    assert after.truth.json() == told


@pytest.mark.parametrize("drift", Drift)
def test_records_come_in_the_order_of_their_times(drift: Drift) -> None:
    scenario = replace(DIRTY, drift=drift)
    times = [record.at_ms for record in Simulation(scenario).records()]
    assert times == sorted(times)
    assert times[0] == scenario.start_us // 1000
    assert times[-1] <= scenario.end_us // 1000


@pytest.mark.parametrize("drift", Drift)
def test_a_longer_simulation_begins_like_a_shorter_one(drift: Drift) -> None:
    """Over several blocks; a repetition due after the shorter one's end is sent at that end."""
    short = Scenario(
        seed=2, users=900, duration_s=5 * DAY_S, change_after_s=2 * DAY_S, drift=drift, duplicate_rate=0.01,
        malformed_rate=0.01, events_per_day=20.0,
    )  # fmt: skip
    end_ms = short.end_us // 1000 - 60_000
    begins, longer = (
        list(takewhile(lambda record: record.at_ms < end_ms, Simulation(scenario).records()))
        for scenario in (short, replace(short, duration_s=6 * DAY_S))
    )
    assert begins == longer
    assert len(begins) > 100_000


def test_the_counts_of_the_truth_are_what_a_reader_finds() -> None:
    simulation = Simulation(DIRTY)
    valid, duplicates, malformed = sorted_out(simulation.records())
    assert valid == simulation.truth.valid
    assert duplicates == simulation.truth.duplicates
    assert malformed == simulation.truth.malformed


@pytest.mark.parametrize("block", [300, 40_000])
@pytest.mark.parametrize("rate", [0.05, 0.3, 1.0, 2.5])
def test_malformed_and_repeated_records_are_exactly_as_many_as_asked_for(
    rate: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "_BLOCK", block)
    truth = Simulation(replace(DIRTY, malformed_rate=rate, duplicate_rate=rate)).truth
    events = sum(count for topic, count in truth.valid.items() if topic.startswith("events."))
    assert sum(truth.duplicates.values()) == sum(truth.malformed.values()) == int(rate * events)
    assert set(truth.malformed) == REASONS
    assert max(truth.malformed.values()) - min(truth.malformed.values()) <= 1


def test_other_worlds_have_other_event_ids_and_longer_ones_the_same() -> None:
    assert replace(DIRTY, duration_s=DAY_S).tag == DIRTY.tag
    others = (replace(DIRTY, seed=4), replace(DIRTY, start=DIRTY.start.replace(year=2025)), replace(DIRTY, users=61))
    assert len({DIRTY.tag, *(other.tag for other in others)}) == 4


def test_the_truth_can_be_read_as_json() -> None:
    truth = Simulation(DIRTY).truth
    told = json.loads(truth.json())
    assert told["change_at"] == told["changes"][0]["starts_at"] == "2026-01-08T00:00:00Z"
    assert told["valid"] == truth.valid
    assert told["before"]["transitions"] == truth.before.transitions.tolist()
    assert len(told["friendships"]) == len(truth.friendships)
    assert told["risky_payments"][0]["event_id"] == truth.risky_payments[0].event_id


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"branching": 1.0}, "without end"),
        ({"branching": 0.9, "friend_effect": 0.8}, "without end"),
        ({"branching": -0.1}, "without end"),
        ({"users": 1}, "2 users"),
        ({"duration_s": 0.0}, "duration_s"),
        ({"retire_every_s": 0.0}, "retire_every_s"),
        ({"basket_items": 0.5}, "basket"),
        ({"message_share": 1.5, "friend_effect": 0.0}, "message_share"),
    ],
)
def test_a_world_that_cannot_be_is_refused(wrong: dict[str, float], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(DIRTY, **wrong)  # type: ignore[arg-type]
