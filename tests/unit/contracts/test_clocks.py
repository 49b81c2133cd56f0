"""Where streams stand, and which rows are far, against the rules in plain words."""

from __future__ import annotations

from random import Random
from statistics import median_low

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.clocks import DAY_US, ROWS, far, lower_median, newest, newest_good

HOUR = 3_600_000_000
FAR = 4_102_444_800_000_000


def by_definition(times: list[int]) -> list[bool]:
    found = []
    for at, time in enumerate(times):
        window = sorted(times[max(0, at - 33) : at])
        way = 4 * (median_low(window) - window[(len(window) - 1) // 4]) if window else 0
        found.append(len(window) >= 3 and time - median_low(window) > max(DAY_US, way))
    return found


some = st.lists(st.one_of(st.integers(0, 400).map(lambda n: n * HOUR), st.just(FAR), st.just(0)), max_size=90)


@given(some, st.lists(st.integers(0, 50), max_size=6))
def test_far_rows_are_those_of_the_rule_however_they_fall_into_batches(times: list[int], sizes: list[int]) -> None:
    found, at = list[bool](), 0
    for size in [*sizes, len(times)]:
        found += far(np.array(times[:at], np.int64), np.array(times[at : at + size], np.int64)).tolist()
        at = min(len(times), at + size)
    assert found == by_definition(times)


def test_one_row_of_2100_is_far_and_those_after_it_are_not() -> None:
    times = np.arange(100) * HOUR
    times[50] = FAR
    assert np.flatnonzero(far(times[:0], times)).tolist() == [50]


def test_rows_of_1970_make_no_others_far() -> None:
    times = np.arange(100) * HOUR + FAR
    times[[40, 60, 61]] = 0
    assert not far(times[:0], times).any()


@pytest.mark.parametrize("step", [HOUR, 7 * DAY_US, 300 * DAY_US])
def test_a_sparse_stream_has_no_far_rows(step: int) -> None:
    times = np.arange(200) * step
    assert not far(times[:0], times).any()


def test_the_newest_good_row_is_neither_of_2100_nor_of_1970() -> None:
    times = np.arange(40) * HOUR + 10 * DAY_US
    assert newest_good(times) == times[-1]
    assert newest_good(np.append(times, FAR)) == times[-1]
    assert newest_good(np.append(times, 0)) == times[-1]
    assert newest_good(times[:0]) is None


@given(st.lists(st.integers(), min_size=1, max_size=70))
def test_the_lower_median_is_the_middle_one(times: list[int]) -> None:
    assert lower_median(times) == median_low(times)


@given(st.integers(0, 16), st.integers(0, 8), st.randoms())
def test_no_sixteen_false_times_ahead_and_eight_behind_move_a_stream(ahead: int, behind: int, random: Random) -> None:
    good = [DAY_US + n * HOUR for n in range(ROWS - ahead - behind)]
    times = [*good, *[FAR] * ahead, *[0] * behind]
    random.shuffle(times)
    assert newest([times]) == good[-1]


def test_a_stream_of_one_false_row_draws_nothing_forward_and_one_that_ended_nothing_back() -> None:
    good = [10 * DAY_US + n * HOUR for n in range(100)]
    assert newest([good, [FAR], [0] * 50, [FAR]]) == good[-1]


def test_without_times_nobody_can_tell() -> None:
    assert newest([[], []]) is None
    with pytest.raises(ValueError, match="no times"):
        lower_median([])
