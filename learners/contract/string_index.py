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

from learners.contract.batch import Ints, Strings
from learners.contract.protocol import ForeignState
from learners.contract.state_codec import from_json_tensor, json_tensor

UNKNOWN = 0
UNKNOWN_NAME = "\x00unknown"
"""Last name of a `Prediction.types`; no producer can send it, since NUL passes no text column of Postgres."""
BLOCK = 4096
"""Rows by which a table of ids grows."""


def rows_for(numbers: int, *, block: int = BLOCK) -> int:
    """Rows a table needs for `numbers` numbers (UNKNOWN counted): the next full block."""
    return -(-numbers // block) * block


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """One string that got a number in `StringIndex.learn`."""

    number: int
    name: str
    evicted: str | None
    """Who had the number before; None for a fresh one."""


class StringIndex:
    """String index of a learner."""

    def __init__(self, capacity: int) -> None:
        """:param capacity: how many strings have a number at one time, UNKNOWN not counted."""
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self._numbers: dict[str, int] = {}
        """In the order of last use, the longest ago first."""
        self._names: list[str] = []

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

    def learn(self, strings: Iterable[str]) -> tuple[Numbered, ...]:
        """Marks all strings as used, known ones first, and numbers the new ones in order of appearance."""
        distinct = dict.fromkeys(strings)
        new = [name for name in distinct if name not in self._numbers]
        for name in distinct:
            if name in self._numbers:
                self._numbers[name] = self._numbers.pop(name)
        return tuple(self._number(name) for name in new)

    def _number(self, name: str) -> Numbered:
        evicted = None
        if len(self._names) < self.capacity:
            self._names.append(name)
            number = len(self._names)
        else:
            evicted = next(iter(self._numbers))
            number = self._numbers.pop(evicted)
            self._names[number - 1] = name
        self._numbers[name] = number
        return Numbered(number=number, name=name, evicted=evicted)

    def state(self) -> Tensor:
        """uint8 tensor: JSON of the names by number, and of the numbers in the order of last use."""
        order = list(self._numbers.values())
        return json_tensor({"capacity": self.capacity, "names": self._names, "order": order})

    @classmethod
    def from_state(cls, tensor: Tensor) -> StringIndex:
        """:raises ForeignState: not a vocabulary."""
        found = from_json_tensor(tensor)
        try:
            vocabulary = cls(int(found["capacity"]))
            names, order = [str(name) for name in found["names"]], [int(number) for number in found["order"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ForeignState(f"not a vocabulary: {error!r}") from error
        if sorted(order) != list(range(1, len(names) + 1)) or len(set(names)) != len(names):
            raise ForeignState("a vocabulary with doubled names or a broken order of use")
        if len(names) > vocabulary.capacity:
            raise ForeignState(f"{len(names)} names in a vocabulary of {vocabulary.capacity}")
        vocabulary._names = names
        vocabulary._numbers = {names[number - 1]: number for number in order}
        return vocabulary
