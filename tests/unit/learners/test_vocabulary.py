"""The string index: numbers by appearance, bounded, and the same everywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners.contract.made_up.streams import words
from learners.contract.protocol import ForeignState
from learners.contract.state_codec import json_tensor
from learners.contract.string_index import UNKNOWN, StringIndex, rows_for


def test_numbers_follow_the_first_appearance() -> None:
    vocabulary = StringIndex(10)
    numbered = vocabulary.learn(["b", "a", "b", "c"])
    assert [(new.number, new.name) for new in numbered] == [(1, "b"), (2, "a"), (3, "c")]
    assert vocabulary.numbers(words(["c", "nobody", "b"])).tolist() == [3, UNKNOWN, 1]
    assert vocabulary.names == ("b", "a", "c")
    assert len(vocabulary) == 4


def test_the_string_used_longest_ago_gives_its_number_away() -> None:
    vocabulary = StringIndex(3)
    vocabulary.learn(["a", "b", "c"])
    vocabulary.learn(["a"])
    (new,) = vocabulary.learn(["d"])
    assert (new.number, new.name, new.evicted) == (2, "d", "b")
    assert vocabulary.numbers(words(["a", "b", "c", "d"])).tolist() == [1, UNKNOWN, 3, 2]


def test_a_string_of_the_same_step_is_not_evicted_by_a_newer_one() -> None:
    vocabulary = StringIndex(2)
    vocabulary.learn(["a", "b"])
    vocabulary.learn(["c", "b"])
    assert set(vocabulary.names) == {"b", "c"}


@given(st.lists(st.lists(st.text(max_size=3), max_size=6), max_size=8), st.integers(1, 5))
def test_a_restored_vocabulary_goes_on_as_the_first_would(steps: list[list[str]], capacity: int) -> None:
    vocabulary = StringIndex(capacity)
    for strings in steps:
        heir = StringIndex.from_state(vocabulary.state())
        assert heir.learn(strings) == vocabulary.learn(strings)
        assert torch.equal(heir.state(), vocabulary.state())
        assert len(vocabulary) <= capacity + 1


@pytest.mark.parametrize(
    "broken",
    [
        torch.zeros(3),
        torch.zeros(3, dtype=torch.uint8),
        json_tensor({"capacity": 2, "names": ["a"]}),
        json_tensor({"capacity": 2, "names": ["a", "a"], "order": [1, 2]}),
        json_tensor({"capacity": 1, "names": ["a", "b"], "order": [1, 2]}),
        json_tensor([1]),
    ],
)
def test_what_is_no_vocabulary_is_refused(broken: torch.Tensor) -> None:
    with pytest.raises(ForeignState):
        StringIndex.from_state(broken)


def test_a_vocabulary_needs_room() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        StringIndex(0)


def test_tables_grow_by_whole_blocks() -> None:
    assert [rows_for(numbers) for numbers in (1, 4096, 4097)] == [4096, 4096, 8192]
    assert rows_for(65, block=64) == 128
