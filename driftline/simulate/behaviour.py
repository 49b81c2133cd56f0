"""What happens on each occasion: its type, and the item, basket or payment that goes with it."""

from __future__ import annotations

import numpy as np

from driftline.simulate.arrivals import Block
from driftline.simulate.catalogue import Catalogue
from driftline.simulate.planned_rows import EVENT, Rows, empty
from driftline.simulate.scenario import BUY, TYPES, Flags, Floats, Integers, Scenario
from driftline.simulate.world import FRAUD, MERCHANTS, World

MESSAGE_KIND = len(TYPES)
"""Of a row that is no type of `TYPES` but a message."""

_NOTHING_YET = len(TYPES)


class Behaviour:
    """Turns occasions into rows. Knows each user's last type, so blocks must come in order."""

    def __init__(self, scenario: Scenario, world: World, catalogue: Catalogue) -> None:
        self.scenario, self.world, self.catalogue = scenario, world, catalogue
        regimes = (world.before, world.after)
        self._steps = np.stack([regime.transitions for regime in regimes]).cumsum(axis=2)[:, :, :-1]  # [2, K, K-1]
        self._interests = np.stack([regime.interests for regime in regimes]).cumsum(axis=2)  # [2, users, shelves]
        self._dangerous = np.stack([regime.dangerous for regime in regimes])  # [2, merchants]
        self._last = np.full(scenario.users, _NOTHING_YET)

    def rows(self, block: Block, at_s: Floats, share: Floats) -> Rows:
        """The events of a block, by time.

        :param at_s: [n] seconds from the start. :param share: [n] probability of the new behaviour.
        """
        rng, occasions = block.rng, block.occasions
        new = rng.random(len(occasions)) < share
        kind = np.full(len(occasions), MESSAGE_KIND)
        own = occasions.friend < 0
        kind[own] = self._walk(rng, occasions.user[own], new[own])
        size = np.ones(len(occasions), np.int64)
        size[kind == BUY] += rng.poisson(self.scenario.basket_items - 1, int((kind == BUY).sum()))
        occasion = np.repeat(np.arange(len(occasions)), size)
        return self._detailed(rng, occasion, block, kind, new, at_s)

    def _walk(self, rng: np.random.Generator, user: Integers, new: Flags) -> Integers:
        """[n] types along each user's events. Each event is first drawn as a map from any type before to its own."""
        k, n = len(TYPES), len(user)
        drawn = rng.random(n)
        order = np.argsort(user, kind="stable")  # they come by time
        maps = np.empty((n, k + 1), np.uint8)  # the last column: of a user's first event, all types alike
        for state in range(k):
            maps[:, state] = (self._steps[new.astype(int), state] <= drawn[:, None]).sum(axis=1)[order]
        maps[:, _NOTHING_YET] = (drawn[order] * k).astype(np.uint8)
        first = np.ones(n, bool)
        first[1:] = np.diff(user[order]) != 0
        maps[first] = maps[first, self._last[user[order][first]]][:, None]
        flat, state, walked = maps.tobytes(), 0, bytearray(n)
        for place in range(n):
            state = walked[place] = flat[place * (k + 1) + state]
        types = np.empty(n, np.int64)
        types[order] = np.frombuffer(walked, np.uint8)
        self._last[user[order]] = types[order]  # of several, the last one stays
        return types

    def _detailed(
        self, rng: np.random.Generator, occasion: Integers, block: Block, kind: Integers, new: Flags, at_s: Floats
    ) -> Rows:
        rows = empty(len(occasion))
        regime, user = new[occasion].astype(int), block.occasions.user[occasion]
        rows["what"], rows["kind"], rows["user"] = EVENT, kind[occasion], user
        rows["at_us"] = self.scenario.start_us + np.rint(at_s[occasion] * 1e6).astype(np.int64)
        rows["sent_us"] = rows["at_us"]
        rows["item"] = self.catalogue.drawn(rng, self._interests[regime, user], at_s[occasion])
        merchant = rng.integers(0, MERCHANTS, len(kind))[occasion]  # one of a basket
        rows["party"] = np.where(kind[occasion] == MESSAGE_KIND, block.occasions.friend[occasion], merchant)
        rows["cents"] = np.maximum(np.rint(rng.lognormal(3.5, 1.0, len(rows)) * 100), 1)
        rows["risk"] = 2 * self._dangerous[regime, merchant] + self.world.vulnerable[user]
        rows["fraud"] = rng.random(len(rows)) < np.ravel(FRAUD)[rows["risk"]]
        return rows
