"""SDIM by declaration: its options, what it asks for, and the arms that run beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Final

from learners.contract.needs import Needs, TaskSpec
from learners.contract.spec import LearnerSpec, Variant, option


@dataclass(frozen=True, kw_only=True)
class SDIMConfig:
    """Everything that shapes an SDIM. Two learners with equal configs are bit for bit the same."""

    seed: int = option(0, "Of weights, hashes and every draw.")
    last_n: int = option(256, "Behaviours (events that carry an item) of the long branch; the short ones are in it.")
    short_n: int = option(16, "Behaviours of the short branch.")
    width: int = option(32, "Of an item's vector.")
    bits: int = option(48, "Hash bits (m of the paper).")
    tau: int = option(3, "Bits of a signature; there are bits / tau signatures.")
    hidden: int = option(64, "Of the first layer; the second has half of it.")
    learning_rate: float = option(1e-3, "Of Adam.")
    table_rate: float = option(0.05, "Of row-wise Adagrad on item embeddings.")
    clip_norm: float = option(1.0, "Largest norm of a step's gradient.")
    publish_every: int = option(64, "Steps after which what serves is replaced; 0: after every step (no clock).")
    publish_drift: float = option(0.1, "Share of changed (item, signature) pairs from which the clock is not awaited.")
    check_every: int = option(8, "Steps after which that share is looked at.")
    unknown_rate: float = option(0.05, "Share of items treated as UNKNOWN, over all steps.")
    unknown_every: int = option(4, "Only every so-many-th step has any; the others share one forward pass.")
    max_items: int = option(50_000, "Items that have a row of their own.")
    table_users: int = option(10_000, "Users whose table is kept in memory; 0: none. Changes no weight.")
    reserve: int = option(32, "Oldest behaviours in a user's row, so that a reader can move a full window on.")
    warmup_events: int = option(20_000, "After which the frozen arm stops; the learner itself does not read it.")

    def __post_init__(self) -> None:
        positive = ("last_n", "short_n", "width", "tau", "hidden", "check_every", "unknown_every", "max_items")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.bits < self.tau or self.bits % self.tau:
            raise ValueError(f"bits ({self.bits}) must be a multiple of tau ({self.tau})")
        if not 1 <= self.short_n <= self.last_n:
            raise ValueError(f"short_n ({self.short_n}) must lie between 1 and last_n ({self.last_n})")

    @property
    def signatures(self) -> int:
        """G."""
        return self.bits // self.tau

    @property
    def buckets(self) -> int:
        """R, of one signature."""
        return int(2**self.tau)

    def config_dict(self) -> dict[str, int | float]:
        """Plain values, for a manifest."""
        return asdict(self)


def unclocked_config(config: SDIMConfig) -> SDIMConfig:
    """The same learner whose every step is published at once: what it gains is the price of serving."""
    return replace(config, publish_every=0, table_users=0)


def without_tables(config: SDIMConfig) -> SDIMConfig:
    """The same learner as an arm beside it: no answer comes from it, so it keeps no tables."""
    return replace(config, table_users=0)


SPEC: Final = LearnerSpec(
    name="sdim",
    version="1",
    summary="which item a user takes next: long-term interest read from hash signatures of a lifelong history",
    config=SDIMConfig,
    build="learners.models.sdim.learner:SDIM",
    tasks=lambda config: (TaskSpec(name="ranking", kind="ranking", cost="rank"),),
    needs=lambda config: Needs(last_n=config.last_n, items_only=True),
    baselines=("sdim_frozen", "sdim_unclocked", "own_count"),
    variants={
        "sdim_frozen": Variant(config=without_tables, frozen=True),
        "sdim_unclocked": Variant(config=unclocked_config),
    },
)
