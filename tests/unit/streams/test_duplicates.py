"""The duplicate filter against a dictionary."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streams.ingest.deduplication import DuplicateFilter, repeats

# Few digests, the extremes among them, so that they meet often.
digests = st.sampled_from([-(2**63), -5, -1, 0, 1, 2, 3, 4, 5, 6, 7, 2**63 - 1])


def ints(values: list[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.lists(st.tuples(digests, st.integers(1, 3)), max_size=12), max_size=20), st.integers(1, 60))
def test_within_the_window_it_answers_as_a_dictionary_does(batches: list[list[tuple[int, int]]], window: int) -> None:
    known: dict[int, list[int]] = {}
    made = DuplicateFilter(window)
    offset = 0
    for batch in batches:
        asked = sorted({digest for digest, _ in batch} | {0, 9})
        for digest, found in zip(asked, made.suspects(ints(asked)).tolist(), strict=True):
            if found == -1:
                assert not [at for at in known.get(digest, []) if at > offset - window]
            else:
                assert found in known[digest]
        offsets = []
        for digest, step in batch:
            offset += step
            known.setdefault(digest, []).append(offset)
            offsets.append(offset)
        made.extend(ints([digest for digest, _ in batch]), ints(offsets))


@given(st.lists(st.integers(1, 200), min_size=1, max_size=60), st.integers(1, 300))
def test_it_holds_no_more_than_a_few_windows(sizes: list[int], window: int) -> None:
    made = DuplicateFilter(window)
    at = 0
    for size in sizes:
        made.extend(np.arange(at, at + size), np.arange(at, at + size))
        at += size
    assert min(at, window) <= len(made) <= 4 * window + 2 * max(sizes)


@given(st.lists(digests))
def test_repeats_names_the_first_of_its_kind(values: list[int]) -> None:
    assert repeats(ints(values)).tolist() == [values.index(value) for value in values]


def test_nothing_is_known_at_first() -> None:
    made = DuplicateFilter(10)
    assert made.suspects(ints([1, 2])).tolist() == [-1, -1]
    assert made.suspects(ints([])).tolist() == []
    made.extend(ints([]), ints([]))
    assert len(made) == 0
