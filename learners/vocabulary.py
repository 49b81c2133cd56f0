"""How a learner numbers strings: by first appearance in its own steps, within a cap.

Number 0 is UNKNOWN: every string not (or no longer) known. When the cap is reached, the string used longest
ago gives its number to the new one; `learn` reports it, since the owner must start that row afresh. Rows of
the tables behind the numbers grow in blocks (`rows_for`), and a row's start depends on (seed, string) alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from learners.batch import Ints, Strings
from learners.coding import from_json_tensor, json_tensor
from learners.protocol import ForeignState

UNKNOWN = 0
BLOCK = 4096
"""Rows by which a table of ids grows."""


def rows_for(numbers: int, *, block: int = BLOCK) -> int:
    """Rows a table needs for `numbers` numbers (UNKNOWN counted): the next full block."""
    return -(-numbers // block) * block


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """One string that got a number in `Vocabulary.learn`."""

    number: int
    name: str
    evicted: str | None
    """Who had the number before; None for a fresh one."""


class Vocabulary:
    """String index of a learner."""

    def __init__(self, capacity: int) -> None:
        """:param capacity: how many strings have a number at one time, UNKNOWN not counted."""
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._used: list[int] = []

    def __len__(self) -> int:
        """Numbers in use, UNKNOWN included."""
        return len(self._names) + 1

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the numbers 1, 2, .. in order."""
        return tuple(self._names)

    def numbers(self, strings: Strings) -> Ints:
        """Number of each string, UNKNOWN where there is none; of the shape of `strings`."""
        known = self._numbers
        flat = [known.get(string, UNKNOWN) for string in strings.ravel().tolist()]
        return np.asarray(flat, dtype=np.int64).reshape(strings.shape)

    def learn(self, strings: Iterable[str], step: int) -> tuple[Numbered, ...]:
        """Stamps all strings with `step` and numbers the new ones in order of appearance."""
        distinct = dict.fromkeys(strings)
        for name in distinct:
            if name in self._numbers:
                self._used[self._numbers[name] - 1] = step
        return tuple(self._number(name, step) for name in distinct if name not in self._numbers)

    def _number(self, name: str, step: int) -> Numbered:
        evicted = None
        if len(self._names) < self.capacity:
            self._names.append(name)
            self._used.append(step)
            number = len(self._names)
        else:
            # min() takes the first of equals: the lowest number, so ties are decided the same everywhere.
            place = min(range(len(self._used)), key=self._used.__getitem__)
            number, evicted = place + 1, self._names[place]
            del self._numbers[evicted]
            self._names[place], self._used[place] = name, step
        self._numbers[name] = number
        return Numbered(number=number, name=name, evicted=evicted)

    def state(self) -> Tensor:
        """uint8 tensor: JSON of the names and the steps of last use."""
        return json_tensor({"capacity": self.capacity, "names": self._names, "used": self._used})

    @classmethod
    def from_state(cls, tensor: Tensor) -> Vocabulary:
        """:raises ForeignState: not a vocabulary."""
        found = from_json_tensor(tensor)
        try:
            vocabulary = cls(int(found["capacity"]))
            names, used = [str(name) for name in found["names"]], [int(step) for step in found["used"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ForeignState(f"not a vocabulary: {error!r}") from error
        if len(names) != len(used) or len(set(names)) != len(names) or len(names) > vocabulary.capacity:
            raise ForeignState("vocabulary with doubled names, missing stamps or too many names")
        vocabulary._names, vocabulary._used = names, used
        vocabulary._numbers = {name: place + 1 for place, name in enumerate(names)}
        return vocabulary
