"""What is known of the parties to payments, users and merchants, when a payment comes: counts that fade with time.

Of a merchant: how many payments lately, how long since the last one. Of both: how many of their outcomes are known
by now, and what share of these was bad. One object asks for all arms of a group, as `Ranking` does for candidates.

A party's counts go on while a label is on its way, so nobody could say at maturity what was known when the payment
came. What was said then is therefore kept with the prediction and handed back (`Subject.features`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator
from dataclasses import astuple, dataclass, replace
from typing import Final

import numpy as np

from learners.contract.batch import Batch, Subject, TargetKind, superseded
from learners.contract.protocol import ForeignState, State
from learners.contract.state_codec import check_names, from_json_tensor, json_tensor

DAY_US: Final = 86_400_000_000
SPANS_US: Final = (1 * DAY_US, 7 * DAY_US, 30 * DAY_US)
"""In which payments fade by a factor e."""
KNOWN_US: Final = 30 * DAY_US
"""In which known outcomes fade."""
BELIEF: Final = 2.0
"""Outcomes' worth of belief in the common share, where a party's own are few."""
FEATURES: Final = 8


@dataclass(slots=True)
class Party:
    """Counts as of their last change; times in microseconds."""

    paid_at: int | None = None
    """Latest payment."""
    day: float = 0.0
    week: float = 0.0
    month: float = 0.0
    known_at: int | None = None
    """Latest outcome known."""
    known: float = 0.0
    bad: float = 0.0


class CounterpartyFeatures:
    """Users and merchants by name, those used longest ago let go."""

    def __init__(self, *, capacity: int, prior: float) -> None:
        """
        :param capacity: parties of each of the two kinds.
        :param prior: share of bad outcomes that is believed in before any is known.
        """
        self._capacity: Final = capacity
        self._prior: Final = prior
        self._kinds: tuple[OrderedDict[str, Party], OrderedDict[str, Party]] = OrderedDict(), OrderedDict()

    def ask(self, batch: Batch) -> Batch:
        """Events with the features [B, F] of their subjects, from what was known before the step.

        :raises ValueError: the batch names no users or no subjects.
        """
        subject = _subject(batch)
        users, merchants = self._kinds
        features = np.zeros((len(batch), FEATURES))
        named = _named(batch)
        for row, (user, merchant, now) in enumerate(zip(*named, batch.query.now.tolist(), strict=True)):
            payee = None if merchant is None else merchants.get(merchant)
            features[row] = [*_lately(payee, now), *self._share(payee, now), *self._share(users.get(user), now)]
        return replace(batch, query=replace(batch.query, subject=replace(subject, features=features)))

    def learn(self, batch: Batch) -> None:
        """Counts payments, or outcomes when they become known; a tick says neither."""
        target = batch.target
        if target.kind is TargetKind.EVENT:
            for (_, merchant), at in zip(self._used(batch), target.at.tolist(), strict=True):
                _pay(merchant, at)
        elif target.y is not None:
            before = superseded(target)
            known_before = target.at if target.superseded_at is None else target.superseded_at
            columns = (target.at.tolist(), target.y.tolist(), before.tolist(), known_before.tolist())
            for both, at, y, was, was_at in zip(self._used(batch), *columns, strict=True):
                for party in both:
                    if math.isnan(was):
                        _know(party, at, y)
                    else:
                        _correct(party, was_at, y - was)
        for kind in self._kinds:
            while len(kind) > self._capacity:
                kind.popitem(last=False)

    def forget(self, users: Container[str]) -> None:
        """Lets these users go, as users and as merchants."""
        for kind in self._kinds:
            for name in [name for name in kind if name in users]:
                del kind[name]

    def state(self) -> State:
        """Names in the order of use, and numbers as JSON keeps them: exactly."""
        listed = [[[name, *astuple(party)] for name, party in kind.items()] for kind in self._kinds]
        return {"parties": json_tensor(listed)}

    def load(self, state: State) -> None:
        """:raises ForeignState: not such counts; nothing was changed."""
        check_names(state, {"parties"})
        try:
            users, merchants = (
                OrderedDict((str(name), _party(*numbers)) for name, *numbers in kind)
                for kind in from_json_tensor(state["parties"])
            )
        except (TypeError, ValueError) as error:
            raise ForeignState(f"not the parties of payments: {error!r}") from error
        self._kinds = users, merchants

    def _share(self, party: Party | None, now: int) -> tuple[float, float]:
        """How much worse than the prior known outcomes were, and how many there are; both 0 where there are none."""
        if party is None or party.known_at is None:
            return 0.0, 0.0
        left = math.exp(-max(now - party.known_at, 0) / KNOWN_US)
        known, bad = party.known * left, party.bad * left
        return math.log((bad + BELIEF * self._prior) / ((known + BELIEF) * self._prior)), math.log1p(known)

    def _used(self, batch: Batch) -> Iterator[tuple[Party, Party]]:
        """The parties of each row, now the newest in use; a merchant nobody named is counted nowhere."""
        users, merchants = self._kinds
        for user, merchant in zip(*_named(batch), strict=True):
            yield _use(users, user), _use(merchants, merchant)


def without_features(amount: Iterable[int], other: Iterable[str | None]) -> Subject:
    """Subjects as a log holds them; `CounterpartyFeatures.ask` fills the features in."""
    amounts = np.fromiter(amount, np.int64)
    others = np.empty(len(amounts), dtype=np.object_)
    others[:] = list(other)
    return Subject(amount=amounts, other=others, features=np.zeros((len(amounts), FEATURES)))


def _subject(batch: Batch) -> Subject:
    if batch.query.subject is None or batch.query.user is None:
        raise ValueError("a learner of outcomes needs Query.user and Query.subject; this batch has none")
    return batch.query.subject


def _named(batch: Batch) -> tuple[list[str], list[str | None]]:
    subject = _subject(batch)
    assert batch.query.user is not None
    return batch.query.user.tolist(), subject.other.tolist()


def _use(kind: OrderedDict[str, Party], name: str | None) -> Party:
    if name is None:
        return Party()
    party = kind.setdefault(name, Party())
    kind.move_to_end(name)
    return party


def _lately(party: Party | None, now: int) -> tuple[float, float, float, float]:
    """Payments of a day, a week and a month, and hours since the last one, all as logarithms."""
    if party is None or party.paid_at is None:
        return 0.0, 0.0, 0.0, math.log1p(SPANS_US[-1] / DAY_US * 24.0)
    since = max(now - party.paid_at, 0)
    day, week, month = (
        math.log1p(count * math.exp(-since / span))
        for count, span in zip((party.day, party.week, party.month), SPANS_US, strict=True)
    )
    return day, week, month, math.log1p(min(since, SPANS_US[-1]) / DAY_US * 24.0)


def _pay(party: Party, at: int) -> None:
    """One payment more; one that comes late is worth what is left of it."""
    before = at if party.paid_at is None else party.paid_at
    party.paid_at = newest = max(before, at)
    party.day, party.week, party.month = (
        count * math.exp(-(newest - before) / span) + math.exp(-(newest - at) / span)
        for count, span in zip((party.day, party.week, party.month), SPANS_US, strict=True)
    )


def _know(party: Party, at: int, y: float) -> None:
    """One known outcome more."""
    before = at if party.known_at is None else party.known_at
    party.known_at = newest = max(before, at)
    old, new = math.exp(-(newest - before) / KNOWN_US), math.exp(-(newest - at) / KNOWN_US)
    party.known, party.bad = party.known * old + new, party.bad * old + new * y


def _correct(party: Party, at: int, change: float) -> None:
    """An outcome that became known at `at` was another: what is left of it moves between good and bad."""
    if party.known_at is not None:
        left = math.exp(-max(party.known_at - at, 0) / KNOWN_US)
        party.bad = min(max(party.bad + left * change, 0.0), party.known)


def _party(
    paid_at: int | None, day: float, week: float, month: float, known_at: int | None, known: float, bad: float
) -> Party:
    paid, seen = (None if at is None else int(at) for at in (paid_at, known_at))
    return Party(paid, float(day), float(week), float(month), seen, float(known), float(bad))
