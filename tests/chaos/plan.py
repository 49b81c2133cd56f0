"""What happens to a run: drawn from its seed, printed, and so repeatable."""

from __future__ import annotations

import random
from dataclasses import dataclass

INGEST_POINTS = ("ingest.after_rows", "ingest.before_commit", "ingest.after_commit")
TRAIN_POINTS = (
    "train.after_journal",
    "train.before_step",
    "train.after_step",
    "train.after_rename",
    "train.before_live",
    "train.after_live",
)
SNAPSHOT_POINTS = TRAIN_POINTS[3:]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The disturbances of one run. An ingest or train process that ended is started with the next fail point."""

    seed: int
    ingest: tuple[str, ...]
    """Fail points of the first ingest process, life by life; after the last, it lives undisturbed."""
    second_joins_s: float
    """Seconds after the start when a second ingest process joins the group: a rebalance."""
    second_leaves_s: float
    """And when it is killed: another one."""
    freeze_s: float
    """When one ingest process is frozen from outside ..."""
    frozen_s: float
    """... and for how long: longer than the group waits."""
    kill_s: tuple[float, ...]
    """When the first ingest process is killed from outside, wherever it is."""
    train: tuple[str, ...]
    """Fail points of train, life by life."""
    train_kill_s: float
    """Seconds after its last armed life began when train is killed, wherever it is."""


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    rng = random.Random(seed)
    ingest = [f"{rng.choice(INGEST_POINTS)}:{rng.randint(2, 12)}" for _ in range(2)]
    if rng.random() < 0.5:
        ingest.insert(
            rng.randrange(2), f"ingest.{rng.choice(('after_rows', 'before_commit'))}:{rng.randint(2, 6)}:stop"
        )
    train = [f"{rng.choice(TRAIN_POINTS[:3])}:{rng.randint(5, 60)}", f"{rng.choice(SNAPSHOT_POINTS)}:1"]
    rng.shuffle(train)
    return Plan(
        seed=seed,
        ingest=tuple(ingest),
        second_joins_s=rng.uniform(0.5, 2.0),
        second_leaves_s=rng.uniform(4.0, 6.0),
        freeze_s=rng.uniform(1.5, 5.0),
        frozen_s=rng.uniform(3.0, 5.0),
        kill_s=tuple(sorted(rng.uniform(2.0, 8.0) for _ in range(rng.randint(0, 2)))),
        train=tuple(train),
        train_kill_s=rng.uniform(2.0, 5.0),
    )


QUIET = Plan(
    seed=0,
    ingest=(),
    second_joins_s=float("inf"),
    second_leaves_s=float("inf"),
    freeze_s=float("inf"),
    frozen_s=0.0,
    kill_s=(),
    train=(),
    train_kill_s=float("inf"),
)
"""Nothing happens: the run all others are compared with."""
