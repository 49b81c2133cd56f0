"""The unit of time follows the stream, not its first rows: bursts pass, and what fits is left alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from learners.baselines.markov import MarkovCounts
from learners.blocks.time_unit import FIRST, KEPT, NEWEST, REACH, TimeUnit
from learners.contract.batch import Batch, Floats, Query
from learners.contract.made_up.streams import SECOND, START, MadeUpHistory, batch_of, words
from learners.contract.protocol import ForeignState, Learner
from learners.models.prompttpp.learner import PromptTPP
from learners.models.prompttpp.spec import PromptTPPConfig

HOUR = 3_600 * SECOND
STEP = 32


def learnt(unit: TimeUnit, gaps: Floats, resolution: int = 1) -> list[int]:
    """Learns gaps in steps; after how many the unit was given up."""
    given_up = []
    for first in range(0, len(gaps), STEP):
        part = np.maximum(gaps[first : first + STEP].astype(np.int64), 1)
        if unit.learn(part, np.full(len(part), resolution, np.int64)) is not None:
            given_up.append(first + len(part))
    return given_up


def exponential(seed: int, count: int, mean_us: float = HOUR) -> Floats:
    return np.random.default_rng(seed).exponential(mean_us, count)


def middle(gaps: Floats) -> float:
    return float(np.exp(np.log(np.maximum(gaps, 1)).mean()))


def test_an_ordinary_stream_keeps_the_unit_of_its_first_gaps() -> None:
    unit, gaps = TimeUnit(start_us=1.0), exponential(0, 20_000)
    assert learnt(unit, gaps) == []
    assert unit.us == pytest.approx(middle(gaps[:FIRST].astype(np.int64)))


@pytest.mark.parametrize("length", [40, 100, 255, 300, 3_000])
def test_a_burst_at_the_start_is_left_behind_within_half_of_the_newest_gaps(length: int) -> None:
    unit = TimeUnit(start_us=1.0)
    learnt(unit, np.full(length, 2.0))
    assert unit.us == pytest.approx(2.0)
    for taken, gap in enumerate(exponential(1, 2 * KEPT), 1):
        unit.learn(np.asarray([int(gap) + 1]), np.asarray([1]))
        if taken == NEWEST // 2:
            assert unit.us * REACH > HOUR, "an hour can be told from a day again"
    assert 1 / 64 < unit.us / HOUR < 4


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.7])
def test_a_mixture_of_two_paces_does_not_make_it_swing(share: float) -> None:
    rng = np.random.default_rng(2)
    gaps = np.where(rng.random(40_000) < share, rng.exponential(SECOND, 40_000), rng.exponential(20 * HOUR, 40_000))
    unit = TimeUnit(start_us=1.0)
    assert all(after < 1_000 for after in learnt(unit, gaps)), "it settles, and stays"


@pytest.mark.parametrize("length", [300, 3_000])
def test_a_burst_in_the_middle_changes_nothing(length: int) -> None:
    unit = TimeUnit(start_us=1.0)
    learnt(unit, exponential(3, KEPT))
    before = unit.us
    assert learnt(unit, np.concatenate([np.full(length, 2.0), exponential(4, KEPT)])) == []
    assert unit.us == before


def test_a_stream_that_changes_its_pace_for_good_is_followed_both_ways() -> None:
    unit = TimeUnit(start_us=1.0)
    learnt(unit, exponential(5, KEPT))
    learnt(unit, exponential(6, 2 * KEPT, 500 * HOUR))
    assert 0.1 < unit.us / (500 * HOUR) < 2
    learnt(unit, exponential(7, 2 * KEPT, SECOND))
    assert 0.1 < unit.us / SECOND < 2


def test_no_gap_counts_as_shorter_than_the_clock_can_tell() -> None:
    unit = TimeUnit(start_us=1.0)
    learnt(unit, np.full(300, 2.0), resolution=SECOND)
    assert unit.us == pytest.approx(SECOND)


def test_a_state_goes_on_to_the_bit_wherever_it_was_taken() -> None:
    gaps = np.concatenate([np.full(300, 2.0), exponential(8, 6_000), exponential(9, 2_000, 1_000 * HOUR)])
    for cut in (0, 32, 288, 320, 352, 640, 6_400):
        whole, first = TimeUnit(start_us=1.0), TimeUnit(start_us=1.0)
        learnt(whole, gaps)
        learnt(first, gaps[:cut])
        heir = TimeUnit.from_state(first.us, first.state())
        learnt(heir, gaps[cut:])
        assert heir.us == whole.us
        assert all(torch.equal(heir.state()[name], tensor) for name, tensor in whole.state().items())


def test_a_unit_that_is_none_is_refused() -> None:
    for us in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ForeignState, match="unit of time"):
            TimeUnit.from_state(us, None)


# PromptTPP on a stream that begins with a burst


def steps(burst: int, rows: int) -> list[Batch]:
    """A user with `burst` gaps of 2 us, then users whose gaps are 10 hours on average; steps of 32 rows."""
    rng = np.random.default_rng(10)
    found = []
    at = START + 2 * np.arange(burst + 1, dtype=np.int64)
    for first in range(0, burst, STEP):
        seen = max(0, first - STEP)
        asked = range(first + 1, min(first + STEP, burst) + 1)
        history = MadeUpHistory(at=at[seen : asked[-1] + 1], type=words(["x"] * (asked[-1] + 1 - seen)))
        found.append(batch_of([history], [(0, place - seen) for place in asked]))
    for _ in range(rows // STEP):
        gaps = rng.exponential(10 * HOUR, (STEP, 8)).astype(np.int64) + 1
        histories = [
            MadeUpHistory(at=START + np.cumsum(row), type=words([f"t{(user + place) % 3}" for place in range(8)]))
            for user, row in enumerate(gaps)
        ]
        found.append(batch_of(histories, [(user, 7) for user in range(STEP)]))
    return found


def losses_of(learner: Learner, batches: list[Batch]) -> list[float]:
    """Mean loss of the time of each step, scored before it is learnt, nats of a density per hour."""
    found = []
    for batch in batches:
        prediction = learner.predict(batch.context, batch.query)
        time = learner.score(prediction, batch.target)["time"]
        found.append(float(time.value.sum()) / int(time.mask.sum()) - math.log(3_600))
        learner.learn(batch, prediction)
    return found


@pytest.fixture
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_one_thread")
def test_a_burst_at_the_start_costs_two_steps_and_then_nothing() -> None:
    """Without the mending: 17 million nats an event, and thousands for ever."""
    burst, rows = 300, 3_200
    first = math.ceil(burst / STEP)
    learner, floor, calm = PromptTPP(PromptTPPConfig()), MarkovCounts(), PromptTPP(PromptTPPConfig())
    burst_steps = steps(burst, rows)
    told, counted, without = (
        losses_of(learner, burst_steps),
        losses_of(floor, burst_steps),
        losses_of(calm, steps(0, rows)),
    )
    settled = [told[first + 2 : first + 30], without[2:30]]
    assert np.mean(settled[0]) < np.mean(settled[1]) + 1.5, "from the second step behind it on"
    assert np.mean(told[-30:]) < np.mean(without[-30:]) + 0.1
    assert np.mean(told[-30:]) < np.mean(counted[-30:]) + 0.1
    batch = burst_steps[-1]
    [median] = learner.predict(batch.context, replace_quantiles(batch)).quantiles.median(dim=0).values.tolist()
    assert 0.5 < median / (math.log(2) * 36_000) < 2


def replace_quantiles(batch: Batch) -> Query:
    return replace(batch.query, quantiles=(0.5,))


@pytest.mark.usefixtures("_one_thread")
def test_a_restart_amid_the_change_of_the_unit_ends_with_the_same_bytes() -> None:
    batches = steps(96, 160)
    whole = PromptTPP(PromptTPPConfig())
    actions = [action for batch in batches for action in whole.learn(batch).actions]
    assert any(action.startswith("unit of time ") for action in actions)
    for cut in (2, 3, 4, 5):
        first, heir = PromptTPP(PromptTPPConfig()), PromptTPP(PromptTPPConfig())
        for batch in batches[:cut]:
            first.learn(batch)
        heir.load(first.state())
        for batch in batches[cut:]:
            heir.learn(batch)
        for name, tensor in whole.state().items():
            assert torch.equal(heir.state()[name], tensor), name
