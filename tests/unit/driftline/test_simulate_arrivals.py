"""When simulated users act: the planted rates, excitation and friends' effect can be found again."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftline.simulate import DAY_S, MESSAGE, Drift, Scenario, Simulation, arrivals
from driftline.simulate.schedule import Schedule
from tests.simulated import Occasion, occasions, seconds

STEADY = Scenario(seed=5, users=300, change_after_s=None)


def test_rates_before_and_after_the_change_are_those_of_the_truth() -> None:
    simulation = Simulation(replace(STEADY, change_after_s=7 * DAY_S))
    scenario, truth = simulation.scenario, simulation.truth
    at_s = seconds(occasions(simulation), scenario.start)
    for count, rate in (
        ((at_s < 7 * DAY_S).sum(), truth.before.rate),
        ((at_s >= 7 * DAY_S).sum(), truth.after.rate),
    ):
        expected = rate * scenario.users * 7 * DAY_S
        spread = np.sqrt(expected) / (1 - scenario.branching_in_all)  # of a Hawkes count over a long time
        assert abs(count - expected) < 4 * spread
    assert truth.after.rate == 2 * truth.before.rate


def test_the_process_starts_in_its_stationary_state() -> None:
    scenario = replace(STEADY, users=3_000, decay_s=7_200.0, duration_s=0.25 * DAY_S)
    count = len(occasions(Simulation(scenario)))
    expected = scenario.rate * scenario.users * scenario.duration_s
    assert abs(count - expected) < 4 * np.sqrt(expected) / (1 - scenario.branching_in_all)


def test_what_is_brought_on_beyond_a_block_comes_in_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 20 minutes, delays of two hours on average: nearly all of it lies beyond."""
    monkeypatch.setattr(arrivals, "_BLOCK", 50)
    scenario = replace(STEADY, decay_s=7_200.0, duration_s=2 * DAY_S)
    found = occasions(Simulation(scenario))
    expected = scenario.rate * scenario.users * scenario.duration_s
    assert abs(len(found) - expected) < 4 * np.sqrt(expected) / (1 - scenario.branching_in_all)
    at_s = seconds(found, scenario.start)
    assert (np.diff(at_s) >= 0).all()


def test_without_excitation_waiting_times_are_exponential() -> None:
    simulation = Simulation(replace(STEADY, branching=0.0, friend_effect=0.0))
    waits = np.concatenate([np.diff(at) for at in _times_of_users(occasions(simulation), simulation.scenario.start)])
    assert waits.mean() == pytest.approx(1 / simulation.scenario.rate, rel=0.05)
    assert (waits > waits.mean()).mean() == pytest.approx(np.exp(-1), abs=0.02)


@pytest.mark.parametrize("speed", [1.0, 3.0])
def test_branching_friend_effect_and_base_rate_are_recovered_by_maximum_likelihood(speed: float) -> None:
    """The whole time runs at `speed`: then base rate is `speed` times higher and delays as much shorter."""
    scenario = replace(STEADY, change_after_s=0.0, speed_after=speed, message_share=0.2, friend_effect=0.6)
    found = _fitted(occasions(Simulation(scenario)), scenario, decay_s=scenario.decay_s / speed)
    base, branching, friend_effect = found
    assert branching == pytest.approx(scenario.branching, abs=0.03)
    assert friend_effect == pytest.approx(scenario.friend_effect, abs=0.06)
    assert base == pytest.approx(speed * scenario.rate * (1 - scenario.branching_in_all), rel=0.05)


def test_friends_without_effect_are_found_to_have_none() -> None:
    scenario = replace(STEADY, friend_effect=0.0)
    _, branching, friend_effect = _fitted(occasions(Simulation(scenario)), scenario, decay_s=scenario.decay_s)
    assert friend_effect < 0.03
    assert branching == pytest.approx(scenario.branching, abs=0.03)


def test_messages_go_to_friends_alone_and_everybody_has_one() -> None:
    simulation = Simulation(STEADY)
    found, friendships = occasions(simulation), set(simulation.truth.friendships)
    messages = [one for one in found if one.type == MESSAGE]
    assert len(messages) / len(found) == pytest.approx(STEADY.message_share, abs=0.01)
    assert all((one.user, one.friend) in friendships or (one.friend, one.user) in friendships for one in messages)
    assert len({user for pair in friendships for user in pair}) == STEADY.users
    assert 2 * len(friendships) / STEADY.users == pytest.approx(STEADY.friends, rel=0.05)


@given(
    drift=st.sampled_from(Drift),
    change_after_s=st.one_of(st.none(), st.floats(0, 200)),
    change_lasts_s=st.floats(0.5, 300),
    speed_after=st.floats(0.1, 10),
    at_s=st.lists(st.floats(0, 400), min_size=1),
)
def test_the_clock_never_stops_and_can_be_read_backwards(
    drift: Drift, change_after_s: float | None, change_lasts_s: float, speed_after: float, at_s: list[float]
) -> None:
    changing = replace(STEADY, drift=drift, change_after_s=change_after_s, change_lasts_s=change_lasts_s)
    schedule = Schedule.of(replace(changing, speed_after=speed_after, duration_s=400.0))
    times = np.sort(np.array(at_s))
    shown = schedule.clock(times)
    np.testing.assert_allclose(schedule.seconds(shown), times, rtol=1e-9, atol=1e-6)
    slowest, fastest = min(1.0, speed_after), max(1.0, speed_after)
    passed, since = np.diff(shown), np.diff(times)
    assert (passed >= slowest * since - 1e-6).all()
    assert (passed <= fastest * since + 1e-6).all()


def _times_of_users(found: list[Occasion], start: datetime) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    of_user: dict[str, list[Occasion]] = defaultdict(list)
    for occasion in found:
        of_user[occasion.user].append(occasion)
    return [seconds(mine, start) for mine in of_user.values()]


def _fitted(found: list[Occasion], scenario: Scenario, decay_s: float) -> tuple[float, float, float]:
    """(base rate, branching, friend effect) by expectation maximisation, the decay known.

    A. Veen, F. Schoenberg, "Estimation of space-time branching process models in seismology using an EM-type
    algorithm", 2008: each event is shared out among what may have caused it.
    """
    own, heard = _excitation(found, seconds(found, scenario.start), decay_s)
    messages = sum(occasion.friend is not None for occasion in found)
    base, branching, effect = 1e-4, 0.3, 0.3
    for _ in range(300):
        intensity = base + branching * own + effect * heard
        base = float((base / intensity).sum()) / (scenario.users * scenario.duration_s)
        branching = float((branching * own / intensity).sum()) / len(found)
        effect = float((effect * heard / intensity).sum()) / messages
    return base, branching, effect


def _excitation(
    found: list[Occasion], at_s: np.ndarray[tuple[int], np.dtype[np.float64]], decay_s: float
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """For each event, the density of delays summed over the user's own earlier events, and over messages to them."""
    own, heard = np.zeros(len(found)), np.zeros(len(found))
    levels: tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]] = ({}, {})
    for n, (occasion, at) in enumerate(zip(found, at_s.tolist(), strict=True)):
        for level, excitation in zip(levels, (own, heard), strict=True):
            since, height = level.get(occasion.user, (at, 0.0))
            excitation[n] = height * np.exp((since - at) / decay_s)
        levels[0][occasion.user] = (at, own[n] + 1 / decay_s)
        if occasion.friend is not None:
            since, height = levels[1].get(occasion.friend, (at, 0.0))
            levels[1][occasion.friend] = (at, height * np.exp((since - at) / decay_s) + 1 / decay_s)
    return own, heard
