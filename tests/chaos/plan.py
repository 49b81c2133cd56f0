"""What happens to a run: drawn from its seed, printed, and so repeatable."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Kind = Literal["ingest", "train", "drift", "score", "maintain", "export", "backends", "broker"]
Phase = Literal["ingest", "train"]
Ends = tuple[str | float, ...]
"""How the lives of a process end, one after the other: at a fail point, or killed so many seconds after its start.
After the last it lives undisturbed."""

LEARNERS = ("prompttpp", "sdim")
UNCOMMITTED = ("ingest.after_rows", "ingest.before_commit")
INGEST_POINTS = (*UNCOMMITTED, "ingest.after_commit")
TRAIN_POINTS = (
    "train.after_journal",
    "train.before_step",
    "train.after_step",
    "train.after_rename",
    "train.before_live",
    "train.after_live",
)
SNAPSHOT_POINTS = TRAIN_POINTS[3:]
MAINTAIN_POINTS = (
    "maintain.before_compact_commit",
    "maintain.after_compact_commit",
    "maintain.after_mark",
    "maintain.after_unlink",
    "maintain.before_trim_commit",
)
EXPORT_POINTS = ("export.before_move", "export.before_pointer")


@dataclass(frozen=True, kw_only=True)
class IngestPlan:
    """What happens to the two ingest processes."""

    lives: tuple[str, ...] = ()
    """Fail points of the first one, life by life; after the last, it lives undisturbed."""
    second_joins_s: float = float("inf")
    """Seconds after the start when a second one joins the group: a rebalance."""
    second_leaves_s: float = float("inf")
    """And when it is killed: another one."""
    freeze_s: float = float("inf")
    """When one of them is frozen from outside ..."""
    frozen_s: float = 0.0
    """... and for how long: longer than the group waits."""
    kill_s: tuple[float, ...] = ()
    """When the first one is killed from outside, wherever it is."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The disturbances of one run."""

    seed: int
    ingest: IngestPlan = IngestPlan()
    train: Mapping[str, Ends] = field(default_factory=dict)
    """Of each learner's process."""
    drift: Ends = ()
    score: Ends = ()
    maintain: Ends = ()
    export: Ends = ()
    backends: Mapping[Phase, tuple[float, ...]] = field(default_factory=dict)
    """Seconds after a phase began when the Postgres session of some process is terminated."""
    broker: Mapping[Phase, tuple[float, ...]] = field(default_factory=dict)
    """And when the broker is killed and started again."""


def draw(seed: int, only: Collection[Kind] = ()) -> Plan:
    """The plan of a seed.

    :param only: keep these disturbances of it, to find out which one it was; () = all.
    """
    rng = random.Random(seed)
    plan = Plan(
        seed=seed,
        ingest=_ingest(rng),
        train={learner: _train(rng) for learner in LEARNERS},
        drift=(rng.uniform(5.0, 12.0), rng.uniform(8.0, 25.0)),
        score=(f"score.after_answers:{rng.randint(1, 6)}", rng.uniform(4.0, 12.0)),
        maintain=(*(f"{point}:{rng.randint(1, 4)}" for point in rng.sample(MAINTAIN_POINTS, 3)), rng.uniform(2.0, 9.0)),
        export=(f"{rng.choice(EXPORT_POINTS)}:{rng.randint(1, 3)}", rng.uniform(4.0, 12.0)),
        backends={
            "ingest": tuple(sorted(rng.uniform(2.0, 9.0) for _ in range(3))),
            "train": tuple(sorted(rng.uniform(3.0, 25.0) for _ in range(3))),
        },
        broker={"ingest": (rng.uniform(2.0, 7.0),)} if rng.random() < 0.5 else {"train": (rng.uniform(4.0, 15.0),)},
    )
    if not only:
        return plan
    quiet = Plan(seed=seed)
    return replace(quiet, **{kind: getattr(plan, kind) for kind in only})


def _ingest(rng: random.Random) -> IngestPlan:
    points = (rng.choice(UNCOMMITTED), rng.choice(INGEST_POINTS))
    lives = [f"{point}:{rng.randint(1, 8)}" for point in rng.sample(points, len(points))]
    if rng.random() < 0.5:
        frozen = f"{rng.choice(UNCOMMITTED)}:{rng.randint(2, 6)}:stop"
        lives.insert(rng.randrange(2), frozen)
    return IngestPlan(
        lives=tuple(lives),
        second_joins_s=rng.uniform(0.5, 2.0),
        second_leaves_s=rng.uniform(4.0, 6.0),
        freeze_s=rng.uniform(1.5, 5.0),
        frozen_s=rng.uniform(3.0, 5.0),
        kill_s=tuple(sorted(rng.uniform(2.0, 8.0) for _ in range(rng.randint(0, 2)))),
    )


def _train(rng: random.Random) -> Ends:
    points = [f"{rng.choice(TRAIN_POINTS[:3])}:{rng.randint(5, 60)}", f"{rng.choice(SNAPSHOT_POINTS)}:1"]
    rng.shuffle(points)
    return (*points, rng.uniform(3.0, 8.0))


QUIET = Plan(seed=0)
"""Nothing happens: the run all others are compared with."""
