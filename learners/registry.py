"""Every learner by name: a literal dict, so that a search for a name finds its builder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final

from learners.arms.frozen import Frozen, finetune_config, slow_config
from learners.arms.group import ArmGroup
from learners.baselines.counterparty_features import CounterpartyFeatures
from learners.baselines.logistic_risk import Risk, RiskConfig
from learners.baselines.markov import MarkovCounts
from learners.baselines.outcome_rate import OutcomeRate
from learners.baselines.own_count import OwnCount
from learners.contract.protocol import Learner
from learners.models.prompttpp.learner import PromptTPP
from learners.models.prompttpp.network import PromptTPPConfig
from learners.models.sdim.learner import SDIM, reference_config, unclocked_config
from learners.models.sdim.network import SDIMConfig
from learners.tasks.ranking import Ranking, RankingConfig

NEXT_EVENT: Final[Mapping[str, Callable[[PromptTPPConfig], Learner]]] = {
    "prompttpp": lambda config: PromptTPP(config),
    "finetune": lambda config: PromptTPP(finetune_config(config), name="finetune"),
    "slow": lambda config: PromptTPP(slow_config(config), name="slow"),
    "frozen": lambda config: Frozen(PromptTPP(config), warmup_events=config.warmup_events),
    "markov": lambda config: MarkovCounts(max_types=config.max_types),
}
"""When and what next."""

RANKING: Final[Mapping[str, Callable[[SDIMConfig], Learner]]] = {
    "sdim": lambda config: SDIM(config),
    "sdim_frozen": lambda config: Frozen(SDIM(reference_config(config)), warmup_events=config.warmup_events),
    "sdim_unclocked": lambda config: SDIM(unclocked_config(config), name="sdim_unclocked"),
    "own_count": lambda config: OwnCount(max_items=config.max_items, last_n=config.last_n),
}
"""Which items: they are asked about candidates, so their arm groups hold a `Ranking`."""

OUTCOME: Final[Mapping[str, Callable[[RiskConfig], Learner]]] = {
    "risk": lambda config: Risk(config),
    "risk_rate": lambda config: OutcomeRate(config),
}
"""What comes of a payment: they learn from late labels, and their groups hold `CounterpartyFeatures`."""

BUILDERS: Final = frozenset({*NEXT_EVENT, *RANKING, *OUTCOME})
"""All names."""

BASELINES: Final[Mapping[str, tuple[str, ...]]] = {
    "prompttpp": ("frozen", "finetune", "markov"),
    "sdim": ("sdim_frozen", "sdim_unclocked", "own_count"),
    "risk": ("risk_rate",),
}
"""Arms that run beside each learner by default. "slow" is the control a claim about prompts also needs."""


def build(name: str, seed: int = 0, **config: Any) -> Learner:
    """A fresh learner.

    :param config: fields of its family's configuration (`PromptTPPConfig`, `RiskConfig`, or `SDIMConfig` and
        `RankingConfig`), the same for a learner and its references.
    :raises ValueError: no such learner; names the ones there are.
    """
    if name in NEXT_EVENT:
        return NEXT_EVENT[name](PromptTPPConfig(seed=seed, **config))
    if name in RANKING:
        return RANKING[name](_sdim(seed, config))
    if name in OUTCOME:
        return OUTCOME[name](RiskConfig(seed=seed, **config))
    raise ValueError(f"no learner {name!r}; there are {', '.join(sorted(BUILDERS))}")


def baselines(name: str, seed: int = 0, **config: Any) -> dict[str, Learner]:
    """Fresh reference arms of a learner, by the name they have in a arm group."""
    return {arm: build(arm, seed, **config) for arm in BASELINES.get(name, ())}


def build_group(name: str, seed: int = 0, **config: Any) -> ArmGroup:
    """A fresh learner with its references, and with what asks them where they rank or tell risks."""
    ranking = _ranking(seed, config) if name in RANKING else None
    parties = _parties(RiskConfig(seed=seed, **config)) if name in OUTCOME else None
    return ArmGroup(build(name, seed, **config), baselines(name, seed, **config), ranking=ranking, parties=parties)


_ASKS: Final = {item.name for item in fields(RankingConfig)}
_LEARNS: Final = {item.name for item in fields(SDIMConfig)}


def _sdim(seed: int, config: Mapping[str, Any]) -> SDIMConfig:
    return SDIMConfig(seed=seed, **{name: value for name, value in config.items() if name not in _ASKS - _LEARNS})


def _ranking(seed: int, config: Mapping[str, Any]) -> Ranking:
    return Ranking(RankingConfig(seed=seed, **{name: value for name, value in config.items() if name in _ASKS}))


def _parties(config: RiskConfig) -> CounterpartyFeatures:
    return CounterpartyFeatures(capacity=config.max_parties, prior=config.prior)
