"""Seeded streams for tests and benchmarks: nothing here is read from a file, the clock or the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from learners.contract.batch import Batch, Context, Ints, Origin, Query, Strings, Target, TargetKind

SECOND = 1_000_000
START = 1_325_376_000 * SECOND
"""2012-01-01T00:00:00Z, microseconds."""


@dataclass(frozen=True, kw_only=True)
class MadeUpHistory:
    """One user's events."""

    at: Ints
    """[L] microseconds, not decreasing."""
    type: Strings
    """[L]"""

    def __len__(self) -> int:
        return len(self.at)


def words(values: Sequence[str | None]) -> Strings:
    """Object array of strings, also of none."""
    array = np.empty(len(values), dtype=np.object_)
    array[:] = values
    return array


def hawkes(rng: np.random.Generator, *, mu: float, jump: float, decay: float, horizon: float) -> list[float]:
    """Times of a Hawkes process of intensity mu + jump * sum exp(-decay (t - t_i)), by Ogata's thinning."""
    now, excited, times = 0.0, 0.0, list[float]()
    while True:
        bound = mu + excited  # the intensity only falls until the next event
        wait = rng.exponential(1.0 / bound)
        now += wait
        if now > horizon:
            return times
        excited *= float(np.exp(-decay * wait))
        if rng.random() * bound <= mu + excited:
            times.append(now)
            excited += jump


def context_of(histories: Sequence[MadeUpHistory]) -> Context:
    """Stacks of these histories; everything but time and type is plain."""
    lengths = [len(history) for history in histories]
    total = sum(lengths)
    return Context(
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        at=np.concatenate([history.at for history in histories]).astype(np.int64),
        kind=words(["user"] * total),
        type=words([name for history in histories for name in history.type]),
        item=words([None] * total),
        amount=np.zeros(total, dtype=np.int64),
        currency=words([None] * total),
        other=words([None] * total),
        role=words(["actor"] * total),
        key=np.arange(total, dtype=np.int64) * 7919 + 13,
    )


def batch_of(
    histories: Sequence[MadeUpHistory], rows: Sequence[tuple[int, int]], *, resolution: int = 1, first_key: int = 0
) -> Batch:
    """Rows (stack, visible): each asks for the event right behind what it sees, since its last event."""
    stack, visible = (np.asarray(column, dtype=np.int64) for column in zip(*rows, strict=True))
    at = np.asarray([histories[s].at[v] for s, v in rows], dtype=np.int64)
    now = np.asarray([histories[s].at[v - 1] if v else histories[s].at[0] for s, v in rows], dtype=np.int64)
    return Batch(
        context=context_of(histories),
        query=Query(stack=stack, visible=visible, now=now),
        target=Target(
            kind=TargetKind.EVENT,
            at=at,
            type=words([str(histories[s].type[v]) for s, v in rows]),
            resolution=np.full(len(rows), resolution, dtype=np.int64),
            timed=(visible > 0) & (at > now),
            weight=np.ones(len(rows)),
        ),
        origin=Origin(key=np.arange(first_key, first_key + len(rows), dtype=np.int64)),
    )


def random_histories(
    seed: int, count: int, length: int, *, types: int = 5, gap_s: float = 600.0
) -> list[MadeUpHistory]:
    """Markov types (each mostly followed by the next one), and gaps whose mean depends on the type."""
    rng = np.random.default_rng(seed)
    histories = []
    for _ in range(count):
        kind = int(rng.integers(types))
        at, names, now = [], [], START + int(rng.integers(86_400 * SECOND))
        for _ in range(length):
            at.append(now)
            names.append(f"type-{kind}")
            now += 1 + int(rng.exponential(gap_s * (1 + kind) / types) * SECOND)
            kind = (kind + 1) % types if rng.random() < 0.8 else int(rng.integers(types))
        histories.append(MadeUpHistory(at=np.asarray(at, dtype=np.int64), type=words(names)))
    return histories


def random_batch(seed: int, rows: int, length: int, *, types: int = 5) -> Batch:
    """One row for each of `rows` users with `length` visible events."""
    histories = random_histories(seed, rows, length + 1, types=types)
    return batch_of(histories, [(row, length) for row in range(rows)], resolution=SECOND)
