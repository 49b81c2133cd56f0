"""Effective times against their definition, in plain words (protocol, rule 13)."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.train.lookahead import LONGEST, WINDOWS, Ints, Lookahead, effective


def by_definition(times: list[int]) -> list[int]:
    """Of each row, with all that follows it: min(own, q33, q1024)."""
    found = []
    for at, own in enumerate(times):
        for rows in (33, 1024):
            following = sorted(times[at : at + rows])
            own = min(own, following[(len(following) - 1) // 10])
        found.append(own)
    return found


def disordered(seed: int, count: int) -> Ints:
    """Times that mostly grow: jitter, old rows, far rows, and a stretch of another time."""
    rng = np.random.default_rng(seed)
    times = np.arange(count) * 10 + rng.integers(0, 40, count)
    times[rng.random(count) < rng.choice([0, 0.02, 0.3])] -= 3000
    times[rng.random(count) < rng.choice([0, 0.01])] += 10**9
    first = int(rng.integers(count))
    times[first : first + int(rng.integers(60))] += int(rng.integers(-50_000, 50_000))
    return times.astype(np.int64)


@given(st.lists(st.integers(0, 30), max_size=80))
def test_effective_times_are_those_of_the_definition(times: list[int]) -> None:
    assert effective(np.array(times, np.int64), len(times)).tolist() == by_definition(times)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3000))
@settings(max_examples=25, deadline=None)
def test_effective_times_of_long_streams_are_those_of_the_definition(seed: int, count: int) -> None:
    times = disordered(seed, count)
    expected = by_definition(times.tolist())
    assert effective(times, count).tolist() == expected
    part = min(count, 500)
    assert effective(times[: part + LONGEST - 1], part).tolist() == expected[:part]


def test_where_times_only_grow_the_record_time_counts() -> None:
    times = np.sort(np.random.default_rng(1).integers(0, 10**9, 5000))
    assert (effective(times, 5000) == times).all()


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 900), min_size=1, max_size=12), st.data())
@settings(max_examples=40, deadline=None)
def test_heads_do_not_depend_on_how_the_rows_came(seed: int, sizes: list[int], data: st.DataObject) -> None:
    """Windows are counted from the row itself on, wherever segments begin and whatever was taken between them."""
    times = disordered(seed, sum(sizes))
    expected, ahead, taken, at = by_definition(times.tolist()), Lookahead(), 0, 0
    for size in sizes:
        ahead.add(times[at : at + size], np.arange(at, at + size))
        at += size
        ahead.head()  # made without what comes later: it must not be believed then
        while ahead.rows >= LONGEST and data.draw(st.integers(0, 40)):
            assert ahead.head() == expected[taken]
            ahead.drop()
            taken += 1
    while (head := ahead.head()) is not None:
        assert head == expected[taken]
        ahead.drop()
        taken += 1
    assert taken == len(times)


@given(st.integers(0, 2**32 - 1), st.integers(1, 1500), st.integers(0, 1600))
@settings(max_examples=25, deadline=None)
def test_rows_beyond_a_limit_are_not_there(seed: int, count: int, limit: int) -> None:
    times, ahead, found = disordered(seed, count), Lookahead(), []
    ahead.add(times, np.arange(count))
    ahead.head()
    ahead.set_limit(limit)
    while (head := ahead.head()) is not None:
        found.append(head)
        ahead.drop()
    assert found == by_definition(times[:limit].tolist())


def test_the_longest_window_is_the_last_thing_a_row_depends_on() -> None:
    assert max(WINDOWS) == LONGEST
    times = disordered(3, 2 * LONGEST)
    changed = times.copy()
    changed[LONGEST:] = 0
    assert effective(times, 1) == effective(changed, 1)
