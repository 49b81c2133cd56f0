"""The one newest time that a false clock does not move."""

from __future__ import annotations

from statistics import median_low

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.clocks import ROWS, lower_median, newest

FAR = 4_102_444_800


@given(st.lists(st.integers(), min_size=1, max_size=70))
def test_of_one_stream_it_is_the_lower_median_of_the_last_33(times: list[int]) -> None:
    assert lower_median(times) == median_low(times)
    assert newest([times]) == median_low(times[-ROWS:])


@given(st.lists(st.sampled_from([0, FAR]), max_size=16), st.randoms())
def test_no_sixteen_false_times_take_it_out_of_the_good_ones(false: list[int], random: object) -> None:
    times = [*range(1000, 1033 - len(false)), *false]
    random.shuffle(times)  # type: ignore[attr-defined]
    assert 1000 <= newest([times]) < 1033  # type: ignore[operator]


def test_a_stream_of_one_false_row_draws_nothing_forward_and_one_that_ended_nothing_back() -> None:
    good = list(range(1000, 1100))
    assert newest([good, [FAR], [0] * 50, [FAR]]) == 1085


def test_without_times_nobody_can_tell() -> None:
    assert newest([[], []]) is None
    with pytest.raises(ValueError, match="no times"):
        lower_median([])
