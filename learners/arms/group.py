"""A learner and its reference arms as one object: the same rows, in the same order, one state."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import torch

from learners.baselines.counterparty_features import CounterpartyFeatures
from learners.contract.batch import Batch, Context, Floats, Query, Target, superseded
from learners.contract.needs import Needs
from learners.contract.protocol import ForeignState, Learner, Losses, Prediction, Report, State
from learners.contract.state_codec import below, prefixed
from learners.tasks.outcome_measures import log_loss
from learners.tasks.ranking import Ranking

LEARNER: Final = "learner"
RANKING: Final = "ranking"
PARTIES: Final = "parties"


@dataclass(frozen=True, kw_only=True)
class LossTotal:
    """A loss summed over rows, so that steps can be added up."""

    sum: float = 0.0
    count: int = 0

    def __add__(self, other: LossTotal) -> LossTotal:
        return LossTotal(sum=self.sum + other.sum, count=self.count + other.count)

    @property
    def mean(self) -> float:
        """NaN where nothing was counted."""
        return self.sum / self.count if self.count else float("nan")


@dataclass(frozen=True, kw_only=True)
class IssuedRisks:
    """Predictions to keep until the outcomes are known."""

    risks: Floats
    """[B, A] by arm, in the order of the arms."""
    features: Floats
    """[B, F] as in `Subject`."""


@dataclass(frozen=True, kw_only=True)
class ArmGroupReport:
    """What one step gave, per arm ("learner", "reference.frozen", ..)."""

    losses: Mapping[str, Mapping[str, LossTotal]]
    """Arm -> loss -> tally of the predictions, before anything was learnt from these rows."""
    trained: Mapping[str, Mapping[str, float]]
    """Arm -> loss -> mean as trained on."""
    actions: tuple[str, ...]
    """"<arm>: <action>" in the order of the arms, then "ranking: <action>"."""
    prediction: Prediction
    """The learner's own."""
    retrieved: Mapping[str, int] = field(default_factory=dict)
    """The learner's own, as its `Report` has it."""
    issued: IssuedRisks | None = None
    """Where the step's events are subjects of outcomes."""


class ArmGroup:
    """Arms in a fixed order: the learner first. Where they rank, one `Ranking` asks all of them the same."""

    def __init__(
        self,
        learner: Learner,
        references: Mapping[str, Learner] | None = None,
        *,
        ranking: Ranking | None = None,
        parties: CounterpartyFeatures | None = None,
    ) -> None:
        """
        :param references: by plain name; a state holds them as "reference.<name>/".
        :param ranking: what asks for candidates; a state holds it as "ranking/".
        :param parties: what says who takes part in a payment, for arms that predict outcomes; a state holds it as
            "parties/".
        """
        self.learner: Final = learner
        self.ranking: Final = ranking
        self.parties: Final = parties
        self.arms: Final[Mapping[str, Learner]] = {
            LEARNER: learner,
            **{f"reference.{name}": arm for name, arm in (references or {}).items()},
        }

    @property
    def name(self) -> str:
        return self.learner.name

    @property
    def version(self) -> str:
        return self.learner.version

    @property
    def names_users(self) -> bool:
        """Whether names of users may stand in `state()`."""
        return self.parties is not None

    @property
    def needs(self) -> Needs:
        """Enough for every arm."""
        needs = [arm.needs for arm in self.arms.values()]
        return Needs(
            last_n=max(need.last_n for need in needs),
            items_only=all(need.items_only for need in needs),
            task=self.learner.needs.task,
        )

    def predict(self, context: Context, query: Query) -> dict[str, Prediction]:
        """Each arm's answer."""
        return {name: arm.predict(context, query) for name, arm in self.arms.items()}

    def score(self, predictions: Mapping[str, Prediction], target: Target) -> dict[str, Losses]:
        """Each arm's losses."""
        return {name: arm.score(predictions[name], target) for name, arm in self.arms.items()}

    def learn(self, batch: Batch, predictions: Mapping[str, Prediction] | None = None) -> dict[str, Report]:
        """One step of each arm."""
        given = predictions or {}
        return {name: arm.learn(batch, given.get(name)) for name, arm in self.arms.items()}

    def step(self, batch: Batch) -> ArmGroupReport:
        """Predict, score, learn, for every arm.

        :raises ValueError: the arms rank, and the batch names no users or items, or they predict outcomes, and it
            names no users or subjects; nothing was changed.
        """
        census = self.ranking.census(batch) if self.ranking else None
        batch = self.ranking.ask(batch) if self.ranking else batch
        return self._take(self.parties.ask(batch) if self.parties else batch, census)

    def mature(self, batch: Batch, risks: Floats) -> ArmGroupReport:
        """Outcomes that became known: predictions as issued are scored, those of today beside them, then learnt.

        A correction adds to "risk_corrected" by how much its prediction is worse (or better) than it was scored, with
        no row of its own: so the sum of both series is what it had been with the label in time.

        :param batch: each subject with its context and features as they were when it was handled.
        :param risks: [B, A] as issued, by arm.
        """
        assert batch.target.y is not None
        report = self._take(batch, None)
        issued = log_loss(risks, batch.target.y[:, None])  # [B, A]
        before = superseded(batch.target)
        fresh = np.isnan(before)
        counted = issued[fresh].sum(axis=0).tolist()  # [A]
        headline = {
            arm: {"risk": LossTotal(sum=total, count=int(fresh.sum()))}
            for arm, total in zip(self.arms, counted, strict=True)
        }
        if not fresh.all():
            more = (issued[~fresh] - log_loss(risks[~fresh], before[~fresh, None])).sum(axis=0).tolist()  # [A]
            corrected = {
                arm: {"risk_corrected": LossTotal(sum=total)} for arm, total in zip(self.arms, more, strict=True)
            }
            headline = {arm: added(found, corrected[arm]) for arm, found in headline.items()}
        losses = {arm: added(headline[arm], found) for arm, found in report.losses.items()}
        return replace(report, losses=losses, issued=None)

    def _take(self, batch: Batch, census: Batch | None) -> ArmGroupReport:
        """A batch that is ready to be asked."""
        predictions = self.predict(batch.context, batch.query)
        scores = {arm: tallies(losses) for arm, losses in self.score(predictions, batch.target).items()}
        if census:
            scores = {arm: added(scores[arm], found) for arm, found in self._count(census).items()}
        reports = self.learn(batch, predictions)
        actions = [f"{arm}: {action}" for arm, report in reports.items() for action in report.actions]
        if self.ranking:
            actions += [f"{RANKING}: {action}" for action in self.ranking.learn(batch)]
        if self.parties:
            self.parties.learn(batch)
        return ArmGroupReport(
            losses=scores,
            trained={arm: report.losses for arm, report in reports.items()},
            actions=tuple(actions),
            prediction=predictions[LEARNER],
            retrieved=reports[LEARNER].retrieved,
            issued=_issued(predictions, batch.query) if self.parties else None,
        )

    @torch.no_grad()
    def _count(self, census: Batch) -> dict[str, dict[str, LossTotal]]:
        """Scores of the rows that are ranked in the whole catalogue, which nobody learns from."""
        scores = self.score(self.predict(census.context, census.query), census.target)
        return {arm: tallies(losses) for arm, losses in scores.items()}

    def forget(self, users: Container[str]) -> None:
        """Takes users out of every arm, and out of what asks them.

        :param users: see `Learner.forget`.
        """
        for arm in self.arms.values():
            arm.forget(users)
        if self.ranking:
            self.ranking.forget_baskets()
        if self.parties:
            self.parties.forget(users)

    def state(self) -> State:
        """All arms in one: names start with "learner/", "reference.<name>/", "ranking/" or "parties/"."""
        parts = (prefixed(f"{name}/", part.state()) for name, part in self._parts.items())
        return {name: tensor for part in parts for name, tensor in part.items()}

    @property
    def _parts(self) -> dict[str, Learner | Ranking | CounterpartyFeatures]:
        asking = {RANKING: self.ranking, PARTIES: self.parties}
        return {**self.arms, **{name: part for name, part in asking.items() if part is not None}}

    def serving_state(self) -> State:
        """The learner's alone, under its own names."""
        return self.learner.serving_state()

    def load(self, state: State) -> None:
        """Takes a `state()` of a group of the same arms.

        :raises ForeignState: arms or one arm's tensors differ; no arm was changed.
        """
        found = {name.partition("/")[0] for name in state}
        parts = self._parts
        if found != set(parts):
            raise ForeignState(f"arms differ: state {sorted(found)}, own {sorted(parts)}")
        before = {name: part.state() for name, part in parts.items()}
        for name, part in parts.items():
            try:
                part.load(below(f"{name}/", state))
            except ForeignState as error:
                for done, own in before.items():
                    parts[done].load(own)
                raise ForeignState(f"{name}: {error}") from error


def combined(first: ArmGroupReport | None, then: ArmGroupReport | None) -> ArmGroupReport | None:
    """What a step gave that took events first and outcomes then; either may be missing."""
    if first is None or then is None:
        return first or then
    return replace(
        first,
        losses={arm: added(found, then.losses[arm]) for arm, found in first.losses.items()},
        trained={arm: {**found, **then.trained[arm]} for arm, found in first.trained.items()},
        actions=(*first.actions, *then.actions),
    )


def added(left: Mapping[str, LossTotal], right: Mapping[str, LossTotal]) -> dict[str, LossTotal]:
    """Sums of both, loss by loss."""
    return {name: left.get(name, LossTotal()) + right.get(name, LossTotal()) for name in dict.fromkeys([*left, *right])}


def _issued(predictions: Mapping[str, Prediction], query: Query) -> IssuedRisks:
    risks = [prediction.risk for prediction in predictions.values()]
    assert query.subject is not None
    assert all(risk is not None for risk in risks)
    columns = [risk.numpy() for risk in risks if risk is not None]
    return IssuedRisks(risks=np.stack(columns, axis=1), features=query.subject.features)


def tallies(losses: Losses) -> dict[str, LossTotal]:
    """Sums over the rows that have each loss."""
    return {name: LossTotal(sum=float(loss.value.sum()), count=int(loss.mask.sum())) for name, loss in losses.items()}
