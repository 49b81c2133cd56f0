"""What stays as it is drawn: friendships, interests, dangers; and the old behaviour beside the new one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from driftline.simulate.scenario import TYPES, Flags, Floats, Integers, Scenario

SHELVES = 8
"""Clusters of items; fewer where there are fewer items."""
MERCHANTS = 40
FRAUD = ((0.002, 0.03), (0.08, 0.40))
"""Probability of fraud: [merchant is dangerous][user is vulnerable]."""

_DANGEROUS_MERCHANTS = 4
_VULNERABLE_USERS = 0.1


@dataclass(frozen=True, kw_only=True)
class Regime:
    """A behaviour."""

    rate: float
    """Occasions of a user and second, on average."""
    transitions: Floats
    """[K, K]: row = the type before, column = the type that follows; in the order of TYPES."""
    interests: Floats
    """[users, shelves]: of the items a user turns to, the share of each shelf."""
    dangerous: Flags
    """[merchants]."""


@dataclass(frozen=True, kw_only=True)
class Friends:
    """Who may send messages to whom; as many directions as friendships times two."""

    first: Integers
    """[users + 1]: the friends of user u are `friend[first[u]:first[u + 1]]`."""
    friend: Integers

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Each friendship once, the smaller number first."""
        user = np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))
        once = user < self.friend
        return list(zip(user[once].tolist(), self.friend[once].tolist(), strict=True))

    def drawn(self, rng: np.random.Generator, users: Integers) -> Integers:
        """[n] one friend of each user, any with the same probability."""
        first, last = self.first[users], self.first[users + 1]
        return np.asarray(self.friend[first + (rng.random(len(users)) * (last - first)).astype(np.int64)])


@dataclass(frozen=True, kw_only=True)
class World:
    """All that is drawn once."""

    friends: Friends
    vulnerable: Flags
    """[users]: fraud meets them more often."""
    before: Regime
    after: Regime

    @classmethod
    def of(cls, scenario: Scenario) -> World:
        """The scenario's; its length has no part in it."""
        rng = np.random.default_rng(np.random.SeedSequence(scenario.seed, spawn_key=(0,)))
        before, after = _transitions(rng), _transitions(rng)
        shelves = min(SHELVES, scenario.items)
        interests = rng.dirichlet(np.full(shelves, 0.3), size=scenario.users)
        shift = int(rng.integers(1, shelves)) if shelves > 1 else 0
        merchants = rng.permutation(MERCHANTS)
        return cls(
            friends=_friends(rng, scenario),
            vulnerable=rng.random(scenario.users) < _VULNERABLE_USERS,
            before=Regime(
                rate=scenario.rate,
                transitions=before,
                interests=interests,
                dangerous=merchants < _DANGEROUS_MERCHANTS,
            ),
            after=Regime(
                rate=scenario.rate * scenario.speed_after,
                transitions=after,
                interests=np.roll(interests, shift, axis=1),
                dangerous=merchants >= MERCHANTS - _DANGEROUS_MERCHANTS,
            ),
        )


def _transitions(rng: np.random.Generator) -> Floats:
    """[K, K] rows that sum to 1: pronounced preferences, nothing impossible."""
    k = len(TYPES)
    return np.asarray(0.9 * rng.dirichlet(np.full(k, 0.5), size=k) + 0.1 / k)


def _friends(rng: np.random.Generator, scenario: Scenario) -> Friends:
    """A ring through all users in random order, so that nobody is alone, and random friendships besides."""
    users = scenario.users
    ring = rng.permutation(users)
    more = rng.integers(0, users, (max(round(users * scenario.friends / 2) - users, 0), 2))
    pairs = np.concatenate([np.stack([ring, np.roll(ring, 1)], axis=1), more[more[:, 0] != more[:, 1]]])
    directed = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)  # sorted by user
    first = np.searchsorted(directed[:, 0], np.arange(users + 1))
    return Friends(first=first, friend=directed[:, 1])
