"""Items in their places. At stated times one is taken off sale for good, and a new one takes its place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from driftline.simulate.scenario import Floats, Integers, Scenario
from driftline.simulate.world import SHELVES

_THINGS = ("Lamp", "Kettle", "Notebook", "Scarf", "Drill", "Novel", "Teapot", "Rucksack")
_KINDS = ("blue", "plain", "large", "folding", "wooden", "bright", "small", "heavy", "soft", "old")
_POPULARITY = 1.1
"""Zipf's exponent within a shelf."""


@dataclass(frozen=True)
class Catalogue:
    """Which item stands in which place when; item n stands in place n modulo `places`."""

    places: int
    every_s: float | None
    order: Integers
    """[places] the n-th item taken off stands in the place `order[n % places]`."""

    @classmethod
    def of(cls, scenario: Scenario) -> Catalogue:
        """The scenario's; its length has no part in it."""
        rng = np.random.default_rng(np.random.SeedSequence(scenario.seed, spawn_key=(2,)))
        return cls(scenario.items, scenario.retire_every_s, rng.permutation(scenario.items))

    @property
    def shelves(self) -> int:
        """Place p stands on shelf p modulo this."""
        return min(SHELVES, self.places)

    def drawn(self, rng: np.random.Generator, interests: Floats, at_s: Floats) -> Integers:
        """[n] an item each, on sale at the time.

        :param interests: [n, shelves] cumulated shares of the shelves. :param at_s: [n] seconds from the start.
        """
        n = len(at_s)
        shelf = (interests[:, :-1] <= rng.random(n)[:, None]).sum(axis=1)
        height = (self.places - shelf + self.shelves - 1) // self.shelves  # places of the shelf
        weight = np.cumsum(np.arange(1, self.places // self.shelves + 2) ** -_POPULARITY)
        rank = np.searchsorted(weight, rng.random(n) * weight[height - 1], side="right")
        return self.standing(np.minimum(rank, height - 1) * self.shelves + shelf, at_s)

    def standing(self, place: Integers, at_s: Floats) -> Integers:
        """[n] which items stand in these places at these times."""
        if self.every_s is None:
            return place
        turn = np.argsort(self.order)[place]  # the place is cleared the turn-th time, and then every `places` times
        cleared = np.floor(at_s / self.every_s).astype(np.int64)  # places cleared so far, this instant's too
        return np.asarray(place + self.places * np.maximum((cleared - 1 - turn) // self.places + 1, 0))

    def retired(self, begins_s: float, ends_s: float) -> list[tuple[float, int, int]]:
        """(seconds from the start, item taken off, item put in its place) with begins <= seconds < ends."""
        if self.every_s is None:
            return []
        found = []
        for number in range(max(int(begins_s // self.every_s), 0), int(ends_s // self.every_s) + 1):
            at_s = (number + 1) * self.every_s
            if begins_s <= at_s < ends_s:
                item = int(self.order[number % self.places]) + self.places * (number // self.places)
                found.append((at_s, item, item + self.places))
        return found


def title(item: int, places: int) -> str:
    """E.g. "Blue lamp 17": the shelf decides the thing."""
    thing = _THINGS[item % places % min(SHELVES, places)]
    return f"{_KINDS[item * 7 % len(_KINDS)].capitalize()} {thing.lower()} {item}"
