"""What to simulate."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

SOURCE = "simulator"
DAY_S = 86_400.0
TYPES = ("browse", "search", "cart", "review", "buy")
"""What users do by themselves: a Markov chain along each user's events, messages left out."""
MESSAGE = "message"
"""What a user sends to a friend."""
BUY = TYPES.index("buy")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Drift(StrEnum):
    """How behaviour changes from the old to the new (J. Gama et al., "A survey on concept drift adaptation", 2014)."""

    ABRUPT = "abrupt"
    """From one instant on."""
    GRADUAL = "gradual"
    """The share of events of the new behaviour grows evenly from 0 to 1."""
    RECURRING = "recurring"
    """New and old take turns, each change abrupt."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A world in numbers.

    :raises ValueError: it cannot be: too few users or items, or events that would multiply without end.
    """

    seed: int = 0
    users: int = 500
    items: int = 200
    """Items on sale at any time."""
    start: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    duration_s: float = 14 * DAY_S
    change_after_s: float | None = 7 * DAY_S
    """Seconds from the start to the planted change; None = no change."""
    drift: Drift = Drift.ABRUPT
    change_lasts_s: float = 2 * DAY_S
    """Gradual: seconds until all is new. Recurring: seconds that each behaviour holds."""
    speed_after: float = 2.0
    """How much faster users' clocks run in the new behaviour: base rates and delays alike."""
    events_per_day: float = 12.0
    """Occasions of a user and day before the change, on average; a basket is one occasion."""
    branching: float = 0.5
    """Occasions that one brings on directly for the same user, on average."""
    friend_effect: float = 0.5
    """Occasions that a message brings on directly for the friend who gets it, on average."""
    decay_s: float = 900.0
    """Mean delay, exponential, of what is brought on; on the clock of before the change."""
    message_share: float = 0.15
    """Of all occasions, messages to a friend."""
    friends: float = 4.0
    """Of a user, on average; at least 1 each."""
    basket_items: float = 1.5
    """Payments of one purchase, at one instant, on average; at least 1."""
    retire_every_s: float | None = DAY_S
    """Seconds until the next item is taken off sale and another takes its place; None = never."""
    label_delay_s: float = DAY_S
    """Seconds from a payment until it is known whether it was fraud."""
    malformed_rate: float = 0.0
    """Malformed records per event, evenly spread."""
    duplicate_rate: float = 0.0
    """Repeated records per event, evenly spread."""

    def __post_init__(self) -> None:
        if wrong := _wrong(self):
            raise ValueError(wrong)

    @property
    def branching_in_all(self) -> float:
        """Occasions that one brings on directly, for whomever, on average."""
        return self.branching + self.message_share * self.friend_effect

    @property
    def rate(self) -> float:
        """Occasions of a user and second before the change."""
        return self.events_per_day / DAY_S

    @property
    def start_us(self) -> int:
        """Microseconds since 1970."""
        return (self.start - _EPOCH) // timedelta(microseconds=1)

    @property
    def end_us(self) -> int:
        """Microseconds since 1970; nothing that happens then or later is simulated."""
        return self.start_us + round(self.duration_s * 1e6)

    @property
    def tag(self) -> str:
        """Stands in event ids: worlds that differ in more than their length share none (but by chance, 1 in 2**32)."""
        without = {"duration_s"}
        if self.change_after_s is None:
            without |= {"drift", "change_lasts_s", "speed_after"}
        elif self.drift is Drift.ABRUPT:
            without |= {"change_lasts_s"}
        world = {name: value for name, value in asdict(self).items() if name not in without}
        return hashlib.blake2s(msgspec.json.encode(world, order="sorted"), digest_size=4).hexdigest()


def time(us: int) -> datetime:
    """Microseconds since 1970 as a time."""
    return _EPOCH + timedelta(microseconds=us)


def _wrong(world: Scenario) -> str | None:
    """Why it cannot be; None = it can."""
    if world.users < 2 or world.items < 1:
        return f"a simulation needs 2 users and 1 item; here: {world.users} and {world.items}"
    if not 0 <= world.branching_in_all < 1 or min(world.branching, world.friend_effect) < 0:
        return (
            f"branching {world.branching} + message_share {world.message_share} x friend_effect "
            f"{world.friend_effect} must be in [0, 1): else events multiply without end"
        )
    if not 0 <= world.message_share <= 1:
        return f"message_share must be in [0, 1], not {world.message_share}"
    if world.basket_items < 1:
        return f"a basket has 1 item at least: basket_items = {world.basket_items}"
    above = ("duration_s", "events_per_day", "decay_s", "speed_after", "change_lasts_s", "retire_every_s")
    if low := [name for name in above if (value := getattr(world, name)) is not None and value <= 0]:
        return f"must be above 0: {', '.join(low)}"
    least = ("malformed_rate", "duplicate_rate", "label_delay_s", "friends")
    if low := [name for name in least if getattr(world, name) < 0]:
        return f"must not be below 0: {', '.join(low)}"
    return None
