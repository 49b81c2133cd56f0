"""Decayed counts of items, numbered by first appearance within a cap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from learners.contract.batch import Floats, Strings
from learners.contract.protocol import State
from learners.contract.state_codec import check_like, check_names
from learners.contract.string_index import UNKNOWN, Numbered, StringIndex, rows_for

DECAY: Final = 1.0 - 1e-4
"""Weight of the past, per item counted: a memory of about 10,000 events."""


class PopularityCounts:
    """How often each item came lately."""

    def __init__(self, capacity: int) -> None:
        self._items = StringIndex(capacity)
        self._counts = np.zeros(rows_for(1))
        """[rows]; row UNKNOWN stays 0."""

    def log_share(self, items: Strings) -> Floats:
        """Log of each item's share, of the shape of `items`; nothing, known or not, has share 0."""
        counts = self._counts[: len(self._items)] + 0.5
        return np.asarray(np.log(counts / counts.sum()))[self._items.numbers(items)]

    def learn(self, items: Sequence[str]) -> tuple[Numbered, ...]:
        """Counts these items; an item that takes another's number starts from 0."""
        numbered = self._items.learn(items)
        self._counts = np.pad(self._counts, (0, rows_for(len(self._items)) - len(self._counts)))
        for new in numbered:
            self._counts[new.number] = 0.0
        names = np.empty(len(items), dtype=np.object_)
        names[:] = items
        known = self._items.numbers(names)
        self._counts *= DECAY ** len(items)
        np.add.at(self._counts, known[known != UNKNOWN], 1.0)
        return numbered

    def state(self) -> State:
        return {"vocabulary": self._items.state(), "counts": torch.from_numpy(self._counts.copy())}

    @classmethod
    def from_state(cls, state: State) -> PopularityCounts:
        """:raises ForeignState: not such counts."""
        check_names(state, {"vocabulary", "counts"})
        items = StringIndex.from_state(state["vocabulary"])
        check_like("counts", state["counts"], torch.zeros(rows_for(len(items)), dtype=torch.float64))
        counts = cls(items.capacity)
        counts._items, counts._counts = items, state["counts"].numpy().copy()
        return counts
