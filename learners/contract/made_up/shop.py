"""A seeded shop for tests and benchmarks: users with lasting interests buy baskets of items.

Interests are clusters of items. A user has a few of them for good and, in one basket of three, buys something again.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from learners.contract.batch import Batch, Context, Origin, Query, Target, TargetKind
from learners.contract.made_up.streams import SECOND, START, words


class Purchase(NamedTuple):
    """One event; sorted by time, then key."""

    at: int
    """Microseconds."""
    key: int
    user: str
    item: str


def purchases(
    seed: int, count: int, *, users: int = 60, items: int = 200, clusters: int = 50, interests: int = 5
) -> list[Purchase]:
    """`count` events in the order of time, in baskets of one to four."""
    rng = np.random.default_rng(seed)
    of_user = [rng.choice(clusters, size=interests, replace=False) for _ in range(users)]
    bought: list[list[int]] = [[] for _ in range(users)]
    found: list[Purchase] = []
    for basket in range(count):
        user, at = int(rng.integers(users)), START + basket * 600 * SECOND
        for _ in range(int(rng.integers(1, 5))):
            if bought[user] and rng.random() < 1 / 3:
                item = int(rng.choice(bought[user]))
            else:
                cluster = int(rng.choice(of_user[user]))
                item = cluster + clusters * int(rng.integers(items // clusters))
            found.append(Purchase(at, len(found) * 7919 + 13, f"user {user}", f"item {item}"))
        bought[user] += [int(event.item.split()[1]) for event in found if event.at == at]
        if len(found) >= count:
            return found[:count]
    return found


class Shop:
    """A log that grows by steps, and what a learner sees of it: the as-of rule in its plainest form."""

    def __init__(self) -> None:
        self.sequences: dict[str, list[Purchase]] = {}
        """User -> events so far, sorted."""

    def step(self, rows: Sequence[Purchase]) -> Batch:
        """The next step: each row sees those of the user's events so far, the step's earlier rows among them, that lie
        strictly before it in time."""
        stacks: dict[tuple[str, int, int], int] = {}
        histories: list[list[Purchase]] = []
        seen, newest = [], []
        for row in rows:
            own = self.sequences.setdefault(row.user, [])
            visible = bisect_left(own, (row.at,))
            view = (row.user, row.at, visible)
            if view not in stacks:
                stacks[view] = len(histories)
                histories.append(own[:visible])
            seen.append((stacks[view], visible))
            newest.append(visible == len(own))
            insort(own, row)
        return self._batch(rows, histories, seen, newest)

    def _batch(
        self,
        rows: Sequence[Purchase],
        histories: list[list[Purchase]],
        seen: list[tuple[int, int]],
        newest: list[bool],
    ) -> Batch:
        stack, visible = (np.asarray(column, dtype=np.int64) for column in zip(*seen, strict=True))
        at = np.asarray([row.at for row in rows], dtype=np.int64)
        return Batch(
            context=context_of(histories),
            query=Query(
                stack=stack,
                visible=visible,
                now=np.asarray([histories[s][v - 1].at if v else 0 for s, v in seen], dtype=np.int64),
                user=words([row.user for row in rows]),
            ),
            target=Target(
                kind=TargetKind.EVENT,
                at=at,
                type=words(["purchase"] * len(rows)),
                resolution=np.full(len(rows), SECOND),
                timed=visible > 0,
                weight=np.ones(len(rows)),
                item=words([row.item for row in rows]),
            ),
            origin=Origin(key=np.asarray([row.key for row in rows], dtype=np.int64), newest=np.asarray(newest)),
        )


def steps(events: Sequence[Purchase], *, rows: int = 32) -> Iterator[Batch]:
    """A whole log, `rows` events a step."""
    shop = Shop()
    for start in range(0, len(events), rows):
        yield shop.step(events[start : start + rows])


def context_of(histories: Sequence[Sequence[Purchase]]) -> Context:
    """Stacks of these events."""
    events = [event for history in histories for event in history]
    count = len(events)
    return Context(
        offsets=np.cumsum([0, *(len(history) for history in histories)], dtype=np.int64),
        at=np.asarray([event.at for event in events], dtype=np.int64),
        kind=words(["user"] * count),
        type=words(["purchase"] * count),
        item=words([event.item for event in events]),
        amount=np.zeros(count, dtype=np.int64),
        currency=words([None] * count),
        other=words([None] * count),
        role=words(["actor"] * count),
        key=np.asarray([event.key for event in events], dtype=np.int64),
    )
