"""A seeded stream of payments whose risk is known: it grows with the amount and with what the merchant is."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from learners.baselines.counterparty_features import without_features
from learners.contract.batch import Batch, Context, Floats, Origin, Query, Target, TargetKind
from learners.contract.made_up.streams import SECOND, START, words


class Paid(NamedTuple):
    """One payment; sorted by time, then key."""

    at: int
    """Microseconds."""
    key: int
    user: str
    merchant: str
    amount: int
    """Millionths of the currency unit."""
    risk: float
    """The truth."""
    y: float
    """What came of it."""


def payments(seed: int, count: int, *, users: int = 20, merchants: int = 12, bad: int = 3) -> list[Paid]:
    """`count` payments, ten minutes apart; at the first `bad` merchants every third one is a fraud."""
    rng = np.random.default_rng(seed)
    found = []
    for n in range(count):
        user, merchant, amount = int(rng.integers(users)), int(rng.integers(merchants)), float(rng.lognormal(3.5, 0.8))
        risk = 1.0 / 3.0 if merchant < bad else 0.9 if amount > 200.0 else 0.02
        found.append(
            Paid(
                at=START + n * 600 * SECOND,
                key=n * 7919 + 13,
                user=f"user {user}",
                merchant=f"merchant {merchant}",
                amount=round(amount * 1e6),
                risk=risk,
                y=float(rng.random() < risk),
            )
        )
    return found


class Till:
    """A log that grows by steps, and what a learner sees of it: the as-of rule in its plainest form."""

    def __init__(self) -> None:
        self.sequences: dict[str, list[Paid]] = {}
        """User -> payments so far, sorted."""

    def step(self, rows: Sequence[Paid]) -> Batch:
        """The next step: each row sees those of the user's payments so far, the step's earlier rows among them, that
        lie strictly before it in time."""
        stacks = []
        for row in rows:
            own = self.sequences.setdefault(row.user, [])
            stacks.append(own[: bisect_left(own, (row.at,))])
            insort(own, row)
        return _batch(stacks, rows, at=[row.at for row in rows])

    def outcomes(self, rows: Sequence[Paid], features: Floats, *, known_at: Sequence[int]) -> Batch:
        """The same rows when their outcomes become known, with the features that were issued."""
        stacks = [
            [other for other in self.sequences[row.user] if other.at < row.at and other.key < row.key] for row in rows
        ]
        batch = _batch(stacks, rows, at=known_at, y=np.asarray([row.y for row in rows]))
        assert batch.query.subject is not None
        batch.query.subject.features[:] = features
        return batch


def _batch(
    stacks: Sequence[Sequence[Paid]], rows: Sequence[Paid], *, at: Sequence[int], y: Floats | None = None
) -> Batch:
    events = [event for stack in stacks for event in stack]
    return Batch(
        context=Context(
            offsets=np.cumsum([0, *(len(stack) for stack in stacks)], dtype=np.int64),
            at=np.asarray([event.at for event in events], np.int64),
            kind=words(["payment"] * len(events)),
            type=words(["buy"] * len(events)),
            item=words([None] * len(events)),
            amount=np.asarray([event.amount for event in events], np.int64),
            currency=words(["EUR"] * len(events)),
            other=words([event.merchant for event in events]),
            role=words(["actor"] * len(events)),
            key=np.asarray([event.key for event in events], np.int64),
        ),
        query=Query(
            stack=np.arange(len(rows)),
            visible=np.asarray([len(stack) for stack in stacks], np.int64),
            now=np.asarray([row.at for row in rows], np.int64),
            user=words([row.user for row in rows]),
            subject=without_features([row.amount for row in rows], [row.merchant for row in rows]),
        ),
        target=Target(
            kind=TargetKind.EVENT if y is None else TargetKind.OUTCOME,
            at=np.asarray(at, np.int64),
            type=words(["buy"] * len(rows)),
            resolution=np.ones(len(rows), np.int64),
            timed=np.zeros(len(rows), np.bool_),
            weight=np.ones(len(rows)),
            item=words([None] * len(rows)),
            y=y,
        ),
        origin=Origin(key=np.asarray([row.key for row in rows], np.int64)),
    )
