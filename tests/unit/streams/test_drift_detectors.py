"""A planted change is found and placed, a series without one is left alone."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from streams.drift.detectors import (
    MAX_INPUTS,
    MIN_SIDE,
    REFERENCE,
    THRESHOLDS,
    DetectedChange,
    find,
    placed,
    standardised,
    tamed,
)

SEEDS = range(20)
STILL = 100
"""Inputs before a planted change."""


def series(seed: int, *shifts: tuple[int, float]) -> list[float]:
    """Normal inputs of deviation 0.2 around 2; each shift (count, standard deviations) appends a stretch."""
    rng = random.Random(seed)
    return [rng.gauss(2.0 + 0.2 * shift, 0.2) for count, shift in shifts for _ in range(count)]


def first_found(inputs: list[float], *, two_sided: bool = False) -> tuple[int, DetectedChange] | None:
    """(inputs seen, the change), as a process meets it: input by input."""
    for seen in range(1, len(inputs) + 1):
        if (change := find(inputs[:seen], two_sided=two_sided)) is not None:
            return seen, change
    return None


@pytest.mark.parametrize("seed", SEEDS)
def test_a_growth_of_two_deviations_is_found_within_30_inputs_and_placed_within_4(seed: int) -> None:
    found = first_found(series(seed, (STILL, 0.0), (30, 2.0)))
    assert found is not None
    seen, change = found
    assert seen > STILL
    assert abs(change.split - STILL) <= 4
    assert change.grew
    assert change.z > 5


@pytest.mark.parametrize("seed", SEEDS)
def test_a_burst_among_the_first_inputs_hides_no_change_and_is_none(seed: int) -> None:
    inputs = series(seed, (STILL, 0.0), (30, 2.0))
    inputs[2:5] = [17_576_931.0, 5e9, 4_000.0]
    found = first_found(inputs)
    assert found is not None
    seen, change = found
    assert seen > STILL
    assert abs(change.split - STILL) <= 4


def test_inputs_without_outliers_stay_as_they_are() -> None:
    for seed in SEEDS:
        inputs = series(seed, (STILL, 0.0))
        assert tamed(inputs) == inputs
    rare = [0.01, 0.0100001] * 15 + [0.9, 0.8] + [0.01] * 8
    assert tamed(rare) == rare, "rare events are no outliers"


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_found_where_nothing_changes(seed: int) -> None:
    assert first_found(series(seed, (MAX_INPUTS, 0.0))) is None
    assert first_found(series(seed, (MAX_INPUTS, 0.0)), two_sided=True) is None


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fall_is_found_by_adwin_and_told_apart_from_a_growth(seed: int) -> None:
    found = first_found(series(seed, (STILL, 0.0), (STILL, -2.0)))
    assert found is not None
    assert found[1].detector == "adwin"
    assert not found[1].grew


def test_a_fall_counts_for_page_hinkley_where_both_directions_do() -> None:
    one = first_found(series(3, (STILL, 0.0), (STILL, -2.0)), two_sided=True)
    assert one is not None
    assert not one[1].grew


def test_nothing_is_found_before_there_is_a_reference() -> None:
    assert find([0.0] * (REFERENCE // 2) + [100.0] * (REFERENCE // 2)) is None


def test_inputs_are_measured_in_deviations_of_the_reference_alone() -> None:
    inputs = series(0, (REFERENCE, 0.0), (50, 3.0))
    scaled = standardised(inputs)
    assert np.mean(scaled[:REFERENCE]) == pytest.approx(0.0, abs=1e-9)
    assert np.std(scaled[:REFERENCE], ddof=1) == pytest.approx(1.0)
    assert standardised([10 * value + 7 for value in inputs]) == pytest.approx(scaled)


def test_a_series_that_never_varied_is_measured_too() -> None:
    assert find([0.5] * 60) is None
    assert find([0.5] * 60 + [0.6] * 10) is not None
    assert find([0.0] * 60 + [0.1] * 10) is not None


@pytest.mark.parametrize("seed", range(5))
def test_the_split_is_where_the_t_statistic_is_largest(seed: int) -> None:
    inputs = np.array(series(seed, (23, 0.0), (40, 1.0)))

    def t(split: int) -> float:
        left, right = inputs[:split], inputs[split:]
        inside = ((left - left.mean()) ** 2).sum() + ((right - right.mean()) ** 2).sum()
        error = math.sqrt(inside / (len(inputs) - 2) * (1 / len(left) + 1 / len(right)))
        return float(abs(right.mean() - left.mean()) / error)

    best = max(range(MIN_SIDE, len(inputs)), key=t)
    change = placed("any", inputs.tolist())
    assert change.split == best
    assert change.z == pytest.approx(t(best))
    assert (change.before, change.after) == pytest.approx((inputs[:best].mean(), inputs[best:].mean()))


def test_the_thresholds_are_those_the_simulation_gave() -> None:
    """What `python -m benchmarks.drift thresholds` printed; change both together."""
    assert (THRESHOLDS.allowance, THRESHOLDS.excess, THRESHOLDS.delta) == (0.25, 30.0, 1e-3)
