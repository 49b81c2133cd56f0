"""A learner far above its best reference is told, however steadily it is so."""

from __future__ import annotations

import pytest

from learners.arms.group import LEARNER, LossTotal
from streams.train.baseline_excess import STEPS, Excess


def step(learner: float, *references: float, rows: int = 32) -> dict[str, dict[str, LossTotal]]:
    arms = {LEARNER: learner, **{f"reference.{n}": loss for n, loss in enumerate(references)}}
    return {
        arm: {"time": LossTotal(sum=loss * rows, count=rows), "error": LossTotal(sum=9.0, count=9)}
        for arm, loss in arms.items()
    }


def told(*steps: dict[str, dict[str, LossTotal]]) -> dict[str, float]:
    excess = Excess()
    return [excess.add(losses) for losses in steps][-1]


def test_it_is_the_distance_from_the_best_reference_over_the_last_steps() -> None:
    assert told(*[step(4_000.0, 4_001.0, 3.5)] * STEPS) == {"time": pytest.approx(3_996.5)}
    assert told(*[step(2.0, 3.0, 2.5)] * STEPS) == {"time": pytest.approx(-0.5)}


def test_nothing_is_said_before_there_are_enough_steps_or_without_references() -> None:
    assert told(*[step(4_000.0, 1.0)] * (STEPS - 1)) == {}
    assert told(*[step(4_000.0)] * STEPS) == {}


def test_what_lies_back_further_is_forgotten() -> None:
    assert told(step(1e9, 1.0), *[step(1.0, 1.0)] * STEPS) == {"time": pytest.approx(0.0)}
    assert told(step(1e9, 1.0), *[step(1.0, 1.0)] * (STEPS - 1))["time"] > 1e7


def test_steps_count_by_their_rows_and_those_without_any_not() -> None:
    steps = [*[step(1.0, 1.0, rows=1)] * (STEPS - 2), step(11.0, 1.0, rows=30), step(0.0, 0.0, rows=0)]
    assert told(*steps)["time"] == pytest.approx(10.0 * 30 / 60)
    assert told(*[step(0.0, 0.0, rows=0)] * STEPS) == {}
