"""Far rows against the rule in plain words."""

from __future__ import annotations

from statistics import median_low

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.far import DAY_US, far, newest_good

HOUR = 3_600_000_000
FAR = 4_102_444_800_000_000


def by_definition(times: list[int]) -> list[bool]:
    found = []
    for at, time in enumerate(times):
        window = sorted(times[max(0, at - 33) : at])
        way = 3 * (median_low(window) - window[(len(window) - 1) // 10]) if window else 0
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
