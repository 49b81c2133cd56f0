"""The baselines by declaration: what counting and one regression achieve, under the contract of every learner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from learners.contract.needs import Needs, TaskSpec
from learners.contract.spec import LearnerSpec, option


@dataclass(frozen=True, kw_only=True)
class MarkovConfig:
    """Of Markov counts of types and exponential gaps."""

    max_types: int = option(1024, "Event types that have a row of their own.")


@dataclass(frozen=True, kw_only=True)
class OwnCountConfig:
    """Of a user's own counts of items, and everybody's."""

    max_items: int = option(50_000, "Items that have a count of their own.")
    last_n: int = option(256, "Behaviours (events that carry an item) that are counted.")


@dataclass(frozen=True, kw_only=True)
class RiskConfig:
    """Of the logistic regression, and of the rate beside it. Two with equal ones are bit for bit the same."""

    seed: int = option(0, "Nothing is drawn: kept so that all learners are built alike.")
    task: str = option("fraud", "Of the labels it learns.")
    last_n: int = option(32, "Events of a user's history that are looked at.")
    prior: float = option(0.01, "Risk that is believed in before any outcome is known.")
    precision: float = option(10.0, "Of the Gaussian belief in each weight at the start.")
    memory: int = option(200_000, "Outcomes after which the past weighs 1/e.")
    max_parties: int = option(50_000, "Users, and merchants, whose counts are held.")


def _outcome(config: RiskConfig) -> tuple[TaskSpec, ...]:
    return (TaskSpec(name="outcome", kind="outcome", label=config.task, cost="risk"),)


MARKOV: Final = LearnerSpec(
    name="markov",
    version="1",
    summary="when and of which type, by counting alone: Markov types, a mixture of exponential gaps",
    config=MarkovConfig,
    build="learners.baselines.markov:MarkovCounts",
    tasks=lambda config: (TaskSpec(name="next_event", kind="next_event", cost="time"),),
    needs=lambda config: Needs(last_n=1),
)

OWN_COUNT: Final = LearnerSpec(
    name="own_count",
    version="1",
    summary="which item, by counting alone: how often this user had it, and how often everybody had it",
    config=OwnCountConfig,
    build="learners.baselines.own_count:OwnCount",
    tasks=lambda config: (TaskSpec(name="ranking", kind="ranking", cost="rank"),),
    needs=lambda config: Needs(last_n=config.last_n, items_only=True),
)

RISK: Final = LearnerSpec(
    name="risk",
    version="2",
    summary="a payment's risk: a logistic regression over counts, learnt from labels that come late",
    config=RiskConfig,
    build="learners.baselines.logistic_risk:Risk",
    tasks=_outcome,
    needs=lambda config: Needs(last_n=config.last_n, task=config.task),
    baselines=("risk_rate",),
    names_users=True,
)

RISK_RATE: Final = LearnerSpec(
    name="risk_rate",
    version="2",
    summary="a payment's risk, by counting alone: the share of bad outcomes among those known lately",
    config=RiskConfig,
    build="learners.baselines.outcome_rate:OutcomeRate",
    tasks=_outcome,
    needs=lambda config: Needs(last_n=1, task=config.task),
    names_users=True,
)
