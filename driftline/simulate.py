"""A small world with known truth: users whose events excite each other, and one planted change.

Each user is a Hawkes process: events arrive at a base rate and each brings on more, `branching` on average,
after exponential delays of mean `decay_s`. What kind of event follows is a Markov chain. At a known time the
chain's transitions are replaced and the user's clock runs `speed_after` times faster (base rate and delays
alike, so that the process stays a Hawkes process). Everything follows from the seed.

Reference: A. G. Hawkes, D. Oakes, "A cluster process representation of a self-exciting process", 1974.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
from numpy.typing import NDArray

from contracts import topics
from contracts.codec import Reason, encode
from contracts.records import Item, Label, Payment, Relation, UserEvent
from runtime.produce import Outgoing

SOURCE = "simulator"
TYPES = ("browse", "search", "cart", "review", "buy", "message")
BUY, MESSAGE = TYPES.index("buy"), TYPES.index("message")
MERCHANTS = 40
DAY_S = 86_400.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BURN_IN = 12.0
"""Mean cluster lengths simulated before the start, so that the process starts in its stationary state."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What to simulate."""

    seed: int = 0
    users: int = 500
    items: int = 200
    start: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    duration_s: float = 14 * DAY_S
    change_after_s: float | None = 7 * DAY_S
    """Seconds from the start to the planted change; None = no change."""
    events_per_day: float = 12.0
    """Events of a user and day before the change."""
    branching: float = 0.5
    """Events that one event brings on directly, on average; below 1."""
    decay_s: float = 900.0
    """Mean delay of such an event."""
    speed_after: float = 2.0
    malformed_rate: float = 0.0
    """Malformed records per valid event."""
    duplicate_rate: float = 0.0
    """Repeated records per valid event."""
    label_delay_s: float = DAY_S
    """Mean time until it is known whether a payment was fraud."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is so, whatever anybody detects."""

    change_at: datetime | None
    transitions_before: Floats
    """[K, K]: row = the type before, column = the type that follows; in the order of TYPES."""
    transitions_after: Floats
    rate_before: float
    """Events of a user and second."""
    rate_after: float
    valid: Mapping[str, int]
    """Topic -> records that must be accepted."""
    duplicates: Mapping[str, int]
    """Topic -> records that repeat a valid one."""
    malformed: Mapping[Reason, int]


class Simulation:
    """A simulated stream. `records` may be called again and gives the same bytes."""

    def __init__(self, scenario: Scenario) -> None:
        if not 0 <= scenario.branching < 1 or scenario.users < 2 or scenario.items < 1:
            raise ValueError("a simulation needs 0 <= branching < 1, at least 2 users and 1 item")
        self.scenario = scenario
        rng = np.random.default_rng(scenario.seed)
        self._before, self._after = _transitions(rng), _transitions(rng)
        user, at_s = _arrivals(rng, scenario)
        self._user, self._at = user, _start_us(scenario) + np.rint(at_s * 1e6).astype(np.int64)
        self._type = self._walk(rng, at_s)
        n = len(user)
        self._item = np.minimum(rng.zipf(1.3, n) - 1, scenario.items - 1)
        self._cents = np.maximum(np.rint(rng.lognormal(3.5, 1.0, n) * 100), 1).astype(np.int64)
        self._party = rng.integers(0, MERCHANTS, n)
        self._friend = (user + rng.integers(1, scenario.users, n)) % scenario.users
        risky = self._cents > np.exp(3.5 + 1.3) * 100  # the dearest tenth
        self._fraud = rng.random(n) < np.where(risky, 0.3, 0.01)
        self._plan(rng)

    def _walk(self, rng: np.random.Generator, at_s: Floats) -> Integers:
        """Types along each user's events. Each event is first drawn as a map from any type before to its own."""
        after_s = self.scenario.change_after_s
        changed = np.zeros(len(at_s), bool) if after_s is None else at_s >= after_s
        order = np.lexsort((at_s, self._user))
        steps = np.stack([self._before, self._after]).cumsum(axis=2)[:, :, :-1]  # [2, K, K-1]
        drawn = rng.random(len(at_s))
        first = np.ones(len(at_s), bool)
        first[1:] = np.diff(self._user[order]) != 0
        k = len(TYPES)
        maps = np.empty((len(at_s), k), np.uint8)
        for state in range(k):
            maps[:, state] = (steps[changed[order].astype(int), state] <= drawn[:, None]).sum(axis=1)
        maps[first] = (drawn[first] * k).astype(np.uint8)[:, None]
        flat, state, walked = maps.tobytes(), 0, bytearray(len(at_s))
        for n in range(len(at_s)):
            state = walked[n] = flat[n * k + state]
        types = np.empty(len(at_s), np.int64)
        types[order] = np.frombuffer(walked, np.uint8)
        return types

    def _plan(self, rng: np.random.Generator) -> None:
        """When each record is sent: (time, what, which), sorted by time."""
        scenario, n = self.scenario, len(self._user)
        start, end = _start_us(scenario), _start_us(scenario) + int(scenario.duration_s * 1e6)
        repeated = np.flatnonzero(rng.random(n) < scenario.duplicate_rate)
        repeated_at = np.minimum(self._at[repeated] + rng.integers(1_000_000, 60_000_000, len(repeated)), end)
        paid = np.flatnonzero(self._type == BUY)
        known_at = self._at[paid] + (3600e6 + rng.exponential(scenario.label_delay_s, len(paid)) * 1e6).astype(np.int64)
        paid, known_at = paid[known_at < end], known_at[known_at < end]
        bad = rng.poisson(scenario.malformed_rate * n) if scenario.malformed_rate else 0
        wrong = rng.integers(0, len(_MALFORMED), bad)
        parts = [
            (_ITEM, np.arange(scenario.items), np.full(scenario.items, start)),
            (_EVENT, np.arange(n), self._at),
            (_EVENT, repeated, repeated_at),
            (_LABEL, paid, known_at),
            (_BAD, wrong, rng.integers(start, end, bad)),
        ]
        at = np.concatenate([part[2] for part in parts])
        order = np.argsort(at, kind="stable")
        self._sent_at = at[order]
        self._what = np.concatenate([np.full(len(part[1]), part[0]) for part in parts])[order]
        self._which = np.concatenate([part[1] for part in parts])[order]
        self._known_at = dict(zip(paid.tolist(), known_at.tolist(), strict=True))
        self.truth = self._truth(repeated, wrong)

    def _truth(self, repeated: Integers, wrong: Integers) -> Truth:
        scenario = self.scenario
        change_s = scenario.change_after_s
        rate = scenario.events_per_day / DAY_S
        valid = self._per_topic(self._type) | {topics.ITEMS: scenario.items, topics.LABELS: len(self._known_at)}
        return Truth(
            change_at=None if change_s is None else scenario.start + timedelta(seconds=change_s),
            transitions_before=self._before,
            transitions_after=self._before if change_s is None else self._after,
            rate_before=rate,
            rate_after=rate if change_s is None else rate * scenario.speed_after,
            valid=valid,
            duplicates=self._per_topic(self._type[repeated]),
            malformed=Counter(_MALFORMED[n] for n in wrong.tolist()),
        )

    def _per_topic(self, types: Integers) -> dict[str, int]:
        counts = np.bincount(types, minlength=len(TYPES)).tolist()
        paid, sent = counts[BUY], counts[MESSAGE]
        return {topics.USER: sum(counts) - paid - sent, topics.PAYMENT: paid, topics.RELATIONAL: sent}

    def records(self) -> Iterator[Outgoing]:
        """All records in the order of their times."""
        plan = zip(self._what.tolist(), self._which.tolist(), self._sent_at.tolist(), strict=True)
        columns = (self._user, self._at, self._type, self._item, self._cents, self._party, self._friend)
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        for number, (what, which, sent_at) in enumerate(plan):
            if what == _EVENT:
                yield self._event(which, rows[which], sent_at)
            elif what == _LABEL:
                yield self._label(which, sent_at)
            elif what == _ITEM:
                yield _item(which, sent_at)
            else:
                yield _malformed(_MALFORMED[which], number, sent_at)

    def _event(self, n: int, row: tuple[int, int, int, int, int, int, int], sent_at: int) -> Outgoing:
        user, at, kind, item, cents, party, friend = row
        user_id, event_id, occurred_at = f"sim:user-{user}", f"sim-{n}", _time(at)
        if kind == BUY:
            payment = Payment(
                event_id=event_id,
                user_id=user_id,
                occurred_at=occurred_at,
                source=SOURCE,
                type="buy",
                amount=cents * 10_000,
                currency="EUR",
                payee_id=f"sim:merchant-{party}",
                item_id=f"sim:item-{item}",
            )
            return Outgoing(topics.PAYMENT, user_id.encode(), encode(payment), sent_at // 1000)
        if kind == MESSAGE:
            relation = Relation(
                event_id=event_id,
                actor_id=user_id,
                relation="message",
                counterpart_id=f"sim:user-{friend}",
                occurred_at=occurred_at,
                source=SOURCE,
            )
            return Outgoing(topics.RELATIONAL, user_id.encode(), encode(relation), sent_at // 1000)
        event = UserEvent(
            event_id=event_id,
            user_id=user_id,
            occurred_at=occurred_at,
            source=SOURCE,
            type=TYPES[kind],
            item_id=f"sim:item-{item}",
        )
        return Outgoing(topics.USER, user_id.encode(), encode(event), sent_at // 1000)

    def _label(self, n: int, sent_at: int) -> Outgoing:
        user_id = f"sim:user-{self._user[n]}"
        label = Label(
            event_id=f"sim-label-{n}",
            user_id=user_id,
            task="fraud",
            subject_event_id=f"sim-{n}",
            ref_time=_time(int(self._at[n])),
            known_at=_time(sent_at),
            value=float(self._fraud[n]),
            source=SOURCE,
        )
        return Outgoing(topics.LABELS, user_id.encode(), encode(label), sent_at // 1000)


_ITEM, _EVENT, _LABEL, _BAD = range(4)
_MALFORMED = (
    Reason.EMPTY,
    Reason.NOT_JSON,
    Reason.MISSING_FIELD,
    Reason.INVALID_FIELD,
    Reason.UNKNOWN_VERSION,
    Reason.KEY_MISMATCH,
    Reason.SELF_RELATION,
    Reason.TIME_OUT_OF_RANGE,
)


def _malformed(reason: Reason, number: int, sent_at: int) -> Outgoing:
    """A record that must be refused for `reason`."""
    user_id = "sim:user-0"
    good = UserEvent(
        event_id=f"sim-bad-{number}", user_id=user_id, occurred_at=_time(sent_at), source=SOURCE, type="browse"
    )
    fields = msgspec.to_builtins(good)
    topic, key, value = topics.USER, user_id.encode(), encode(good)
    match reason:
        case Reason.EMPTY:
            return Outgoing(topic, key, None, sent_at // 1000)
        case Reason.NOT_JSON:
            value = value[: len(value) // 2]
        case Reason.MISSING_FIELD:
            value = msgspec.json.encode({name: fields[name] for name in fields if name != "event_id"})
        case Reason.INVALID_FIELD:
            value = msgspec.json.encode(fields | {"occurred_at": "yesterday"})
        case Reason.UNKNOWN_VERSION:
            value = msgspec.json.encode(fields | {"schema": "9.0"})
        case Reason.KEY_MISMATCH:
            key = b"sim:user-1"
        case Reason.TIME_OUT_OF_RANGE:
            value = encode(msgspec.structs.replace(good, occurred_at=good.occurred_at + timedelta(days=3)))
        case Reason.SELF_RELATION:
            topic = topics.RELATIONAL
            value = encode(
                Relation(
                    event_id=good.event_id,
                    actor_id=user_id,
                    counterpart_id=user_id,
                    relation="message",
                    occurred_at=good.occurred_at,
                    source=SOURCE,
                )
            )
        case _:
            raise AssertionError(reason)
    return Outgoing(topic, key, value, sent_at // 1000)


def _item(n: int, sent_at: int) -> Outgoing:
    item = Item(
        item_id=f"sim:item-{n}",
        source=SOURCE,
        title=f"Item {n}",
        text=f"The item number {n} of shelf {n % 7}",
        attributes={"shelf": str(n % 7)},
    )
    return Outgoing(topics.ITEMS, item.item_id.encode(), encode(item), sent_at // 1000)


def _transitions(rng: np.random.Generator) -> Floats:
    """[K, K] rows that sum to 1: pronounced preferences, nothing impossible."""
    k = len(TYPES)
    return 0.9 * rng.dirichlet(np.full(k, 0.5), size=k) + 0.1 / k


def _arrivals(rng: np.random.Generator, scenario: Scenario) -> tuple[Integers, Floats]:
    """(user, seconds from the start) of all events, sorted by time: clusters, generation by generation.

    Simulated on each user's own clock, which runs faster after the change.
    """
    change = scenario.duration_s if scenario.change_after_s is None else scenario.change_after_s
    horizon = change + (scenario.duration_s - change) * scenario.speed_after
    burn_in = _BURN_IN * scenario.decay_s / (1 - scenario.branching)
    base_rate = scenario.events_per_day / DAY_S * (1 - scenario.branching)
    count = rng.poisson(base_rate * (horizon + burn_in), scenario.users)
    user = np.repeat(np.arange(scenario.users), count)
    at = rng.uniform(-burn_in, horizon, len(user))
    users, times = [user], [at]
    while len(at):
        children = rng.poisson(scenario.branching, len(at))
        user = np.repeat(user, children)
        at = np.repeat(at, children) + rng.exponential(scenario.decay_s, len(user))
        user, at = user[at < horizon], at[at < horizon]
        users.append(user)
        times.append(at)
    user, at = np.concatenate(users), np.concatenate(times)
    user, at = user[at >= 0], at[at >= 0]
    at = np.where(at < change, at, change + (at - change) / scenario.speed_after)
    order = np.argsort(at, kind="stable")
    return user[order], at[order]


def _start_us(scenario: Scenario) -> int:
    return (scenario.start - _EPOCH) // timedelta(microseconds=1)


def _time(us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=us)
