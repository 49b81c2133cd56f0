"""PromptTPP by declaration: its options, what it asks for, and the arms that run beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Final

from learners.contract.needs import Needs, TaskSpec
from learners.contract.spec import LearnerSpec, Variant, option


@dataclass(frozen=True, kw_only=True)
class PromptTPPConfig:
    """Everything that shapes a PromptTPP. Two learners with equal configs are bit for bit the same."""

    seed: int = option(0, "Of weights and of every draw.")
    last_n: int = option(32, "Events of history asked for.")
    hidden: int = option(32, "Width of a layer.")
    time_dim: int = option(16, "Width of the waves of a time; even.")
    layers: int = option(2, "Attention layers.")
    heads: int = option(2, "Attention heads of a layer.")
    pool: int = option(10, "Prompts of a layer (M of the paper); 0 is the plain backbone.")
    prompt_length: int = option(5, "Rows of a prompt.")
    retrieved: int = option(5, "Prompts that each position retrieves (N of the paper).")
    match_weight: float = option(0.1, "Weight of the key-matching loss (alpha of the paper).")
    refresh_every: int = option(2, "The pool moves on every so-many-th step (C of the paper), the backbone on each.")
    learning_rate: float = option(2e-3, "Of Adam.")
    table_rate: float = option(0.02, "Of row-wise Adagrad on type embeddings.")
    backbone_factor: float = option(0.1, "Rate of all but pool and type rows, once `warmup_events` are learnt.")
    type_factor: float = option(1.0, "The same for the rows of types: a type that comes late must still be learnable.")
    warmup_events: int = option(20_000, "Events learnt at the full rate; the frozen arm stops after them.")
    nodes: int = option(16, "Gauss nodes for a silence; a clock tick has 3 of its own.")
    query_decay: float = option(0.9, "Weight of the past, per event, in the query that retrieves prompts.")
    unknown_rate: float = option(0.05, "Share of history events learnt as UNKNOWN, over all steps.")
    unknown_every: int = option(4, "Only every so-many-th step has any; the others share one forward pass.")
    clip_norm: float = option(1.0, "Largest norm of a step's gradient.")
    max_types: int = option(1024, "Event types that have a row of their own.")
    time_unit_s: float | None = option(
        None, "Seconds of one unit of time; not set: estimated from the gaps, given up when it no longer fits."
    )

    def __post_init__(self) -> None:
        positive = ("last_n", "hidden", "layers", "heads", "refresh_every", "unknown_every", "nodes", "max_types")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.time_dim < 2 or self.time_dim % 2:
            raise ValueError(f"time_dim must be even and positive, got {self.time_dim}")
        if not 0 <= self.retrieved <= self.pool:
            raise ValueError(f"retrieved ({self.retrieved}) must lie between 0 and pool ({self.pool})")

    def config_dict(self) -> dict[str, int | float | None]:
        """Plain values, for a manifest."""
        return asdict(self)


def finetune_config(config: PromptTPPConfig) -> PromptTPPConfig:
    """Plain online fine-tuning: the same backbone without prompts, its rate never lowered."""
    return replace(config, pool=0, retrieved=0, backbone_factor=1.0, type_factor=1.0)


def slow_config(config: PromptTPPConfig) -> PromptTPPConfig:
    """The same backbone without prompts, slowed down as PromptTPP slows it. Most of what is gained in forgetting comes
    from the slow rate, so a claim about prompts must be made against this one too."""
    return replace(config, pool=0, retrieved=0)


SPEC: Final = LearnerSpec(
    name="prompttpp",
    version="2",
    summary="when a user's next event comes and of which type: a point process with a pool of prompts",
    config=PromptTPPConfig,
    build="learners.models.prompttpp.learner:PromptTPP",
    tasks=lambda config: (TaskSpec(name="next_event", kind="next_event", cost="time"),),
    needs=lambda config: Needs(last_n=config.last_n),
    baselines=("frozen", "finetune", "markov"),
    variants={
        "frozen": Variant(config=lambda config: config, frozen=True),
        "finetune": Variant(config=finetune_config),
        "slow": Variant(config=slow_config),
    },
    devices=frozenset({"cpu", "cuda"}),
)
