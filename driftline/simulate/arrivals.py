"""When something happens: a Hawkes process of all users, drawn exactly as a branching process.

Occasions arise at a base rate, and each brings on others after exponential delays: `branching` for the same
user and, if it is a message, `friend_effect` for the friend who gets it. All on the users' clock (`schedule`).

References: A. G. Hawkes, "Spectra of some self-exciting and mutually exciting point processes", 1971;
A. G. Hawkes, D. Oakes, "A cluster process representation of a self-exciting process", 1974.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from driftline.simulate.scenario import Floats, Integers, Scenario
from driftline.simulate.world import Friends

_BLOCK = 40_000
"""Occasions of one block, about."""
_BURN_IN = 12.0
"""Mean cluster lengths simulated before the start, so that the process starts in its stationary state."""


@dataclass(frozen=True)
class Occasions:
    """[n] each: who, when on the users' clock, and to whom if it is a message (else -1)."""

    user: Integers
    clock: Floats
    friend: Integers

    def __len__(self) -> int:
        return len(self.user)

    def at(self, places: np.ndarray[tuple[int], np.dtype[np.bool_ | np.int64]]) -> Occasions:
        """Some of them."""
        return Occasions(self.user[places], self.clock[places], self.friend[places])

    @classmethod
    def joined(cls, parts: list[Occasions]) -> Occasions:
        """All of them."""
        return cls(
            np.concatenate([part.user for part in parts]),
            np.concatenate([part.clock for part in parts]),
            np.concatenate([part.friend for part in parts]),
        )


@dataclass(frozen=True)
class Block:
    """Occasions of a stretch of the clock, sorted; and the generator for all that is drawn about them."""

    begins: float
    ends: float
    occasions: Occasions
    rng: np.random.Generator


def blocks(scenario: Scenario, friends: Friends) -> Iterator[Block]:
    """Stretch after stretch from 0, without end. Their lengths and seeds do not depend on the scenario's length."""
    length = _BLOCK / (scenario.rate * scenario.users)
    burn_in = _BURN_IN * scenario.decay_s / (1 - scenario.branching_in_all)
    to_come = _clusters(_generator(scenario, 0), scenario, friends, -burn_in, 0.0)
    to_come = to_come.at(to_come.clock >= 0)
    for number in count():
        begins, ends = number * length, (number + 1) * length
        rng = _generator(scenario, number + 1)
        found = Occasions.joined([to_come, _clusters(rng, scenario, friends, begins, ends)])
        due, to_come = found.at(found.clock < ends), found.at(found.clock >= ends)
        yield Block(begins, ends, due.at(np.argsort(due.clock, kind="stable")), rng)


def _generator(scenario: Scenario, number: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(scenario.seed, spawn_key=(1, number)))


def _clusters(rng: np.random.Generator, scenario: Scenario, friends: Friends, begins: float, ends: float) -> Occasions:
    """What arises by itself in a stretch, and all that it brings on, whenever; generation by generation."""
    base_rate = scenario.rate * (1 - scenario.branching_in_all)
    alone = rng.poisson(base_rate * scenario.users * (ends - begins))
    user, clock = rng.integers(0, scenario.users, alone), rng.uniform(begins, ends, alone)
    generations = [_addressed(rng, scenario, friends, user, clock)]
    while len(generations[-1]):
        parents = generations[-1]
        own = rng.poisson(scenario.branching, len(parents))
        heard = np.where(parents.friend >= 0, rng.poisson(scenario.friend_effect, len(parents)), 0)
        user = np.concatenate([np.repeat(parents.user, own), np.repeat(parents.friend, heard)])
        clock = np.concatenate([np.repeat(parents.clock, own), np.repeat(parents.clock, heard)])
        clock += rng.exponential(scenario.decay_s, len(clock))
        generations.append(_addressed(rng, scenario, friends, user, clock))
    return Occasions.joined(generations)


def _addressed(
    rng: np.random.Generator, scenario: Scenario, friends: Friends, user: Integers, clock: Floats
) -> Occasions:
    """Each is a message with the same probability, whatever came before."""
    message = rng.random(len(user)) < scenario.message_share
    return Occasions(user, clock, np.where(message, friends.drawn(rng, user), -1))
