"""Every learner by name: a literal dict, so that a search for a name finds its builder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from learners.cohort import Cohort
from learners.floors import MarkovFloor
from learners.models.prompttpp import PromptTPPConfig
from learners.online import PromptTPP
from learners.protocol import Learner
from learners.references import Frozen, finetune_config, slow_config

Builder = Callable[[PromptTPPConfig], Learner]

BUILDERS: Final[Mapping[str, Builder]] = {
    "prompttpp": lambda config: PromptTPP(config),
    "finetune": lambda config: PromptTPP(finetune_config(config), name="finetune"),
    "slow": lambda config: PromptTPP(slow_config(config), name="slow"),
    "frozen": lambda config: Frozen(PromptTPP(config), warmup_events=config.warmup_events),
    "markov": lambda config: MarkovFloor(max_types=config.max_types),
}

REFERENCES: Final[Mapping[str, tuple[str, ...]]] = {"prompttpp": ("frozen", "finetune", "markov")}
"""Arms that run beside each learner by default. "slow" is the control a claim about prompts also needs."""


def build(name: str, seed: int = 0, **config: Any) -> Learner:
    """A fresh learner.

    :param config: fields of `PromptTPPConfig`, the same for a learner and its references.
    :raises ValueError: no such learner; names the ones there are.
    """
    if name not in BUILDERS:
        raise ValueError(f"no learner {name!r}; there are {', '.join(sorted(BUILDERS))}")
    return BUILDERS[name](PromptTPPConfig(seed=seed, **config))


def references(name: str, seed: int = 0, **config: Any) -> dict[str, Learner]:
    """Fresh reference arms of a learner, by the name they have in a cohort."""
    return {arm: build(arm, seed, **config) for arm in REFERENCES.get(name, ())}


def build_cohort(name: str, seed: int = 0, **config: Any) -> Cohort:
    """A fresh learner with its references."""
    return Cohort(build(name, seed, **config), references(name, seed, **config))
