"""
A payment's risk by a logistic regression over simple counts, learnt from labels as they come: the floor that a model
of payment sequences must beat, and the learner that late labels are proven with until there is one.

References:
1) Spiegelhalter and Lauritzen, "Sequential updating of conditional probabilities on directed graphical structures",
   Networks 20, 1990 (logistic regression one case after the other: the posterior of the last is the prior of the
   next, as a Gaussian at its mode)
2) Le Borgne et al., "Reproducible Machine Learning for Credit Card Fraud Detection", 2022, chapter 3 (which counts:
   amount and frequency of the customer, and share of frauds known by now of the terminal, over 1, 7 and 30 days)

Where this differs from 1): a step's rows are taken together, and the precision fades towards that of the prior, so
that the learner follows a world that changes.

Shape legend in `batch.py`; X columns of the regression.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import asdict
from typing import Final

import numpy as np
import torch

from learners.baselines.counterparty_features import DAY_US, FEATURES
from learners.baselines.specs import RISK, RiskConfig
from learners.contract.batch import Batch, Bools, Context, Floats, Ints, Query, Subject, Target
from learners.contract.needs import Needs
from learners.contract.protocol import ForeignState, Losses, Prediction, Report, ServingOnly, State
from learners.contract.state_codec import check_config, check_like, check_names, from_json_tensor, json_tensor
from learners.tasks.outcome_measures import log_loss, losses

KNOTS: Final = np.log1p(np.asarray([25.0, 50.0, 100.0, 200.0, 400.0]))
"""Where the slope in log(1 + amount) may change."""
OWN: Final = 9
"""Columns made of the user's history."""
COLUMNS: Final = 1 + 1 + len(KNOTS) + OWN + FEATURES
ITERATIONS: Final = 4
"""Newton steps towards a step's mode."""
STRIDE: Final = 4.0
"""No Newton step moves a row's logit further."""


_ONE_EVENT: Final = Context(
    offsets=np.asarray([0, 1]),
    at=np.zeros(1, np.int64),
    kind=np.full(1, None, np.object_),
    type=np.full(1, None, np.object_),
    item=np.full(1, None, np.object_),
    amount=np.zeros(1, np.int64),
    currency=np.full(1, None, np.object_),
    other=np.full(1, None, np.object_),
    role=np.full(1, None, np.object_),
    key=np.zeros(1, np.int64),
)


class Risk:
    """The regression. Its features of merchants come with the question (`Parties`)."""

    version: Final = RISK.version

    def __init__(self, config: RiskConfig | None = None, name: str = RISK.name) -> None:
        self.name: Final = name
        self.config: Final = config or RiskConfig()
        self._weights = np.zeros(COLUMNS)
        self._weights[0] = np.log(self.config.prior / (1.0 - self.config.prior))
        self._precision: Floats | None = np.eye(COLUMNS) * self.config.precision
        """[X, X]"""

    @property
    def needs(self) -> Needs:
        return RISK.needs(self.config)

    def predict(self, context: Context, query: Query) -> Prediction:
        """The risk of each row's subject.

        :raises ValueError: there are no subjects.
        """
        x = columns(context, query, last_n=self.config.last_n)
        return risky(_sigmoid(x @ self._weights), memo=x)

    def score(self, prediction: Prediction, target: Target) -> Losses:
        """See `learners/tasks/outcome_measures.py`."""
        assert prediction.risk is not None
        return losses(prediction.risk, target)

    def learn(self, batch: Batch, prediction: Prediction | None = None) -> Report:
        """Outcomes move the weights to their mode; events and ticks teach nothing here."""
        if self._precision is None:
            raise ServingOnly
        y = batch.target.y
        if y is None or len(batch) == 0:
            return Report(losses={})
        prediction = prediction or self.predict(batch.context, batch.query)
        x, weight = prediction.memo, batch.target.weight
        assert isinstance(x, np.ndarray)
        kept = np.exp(-len(batch) / self.config.memory)
        prior = self._precision * kept + np.eye(COLUMNS) * (self.config.precision * (1.0 - kept))
        before, told = self._weights, float(log_loss(_sigmoid(x @ self._weights), y).mean())
        for _ in range(ITERATIONS):
            risk = _sigmoid(x @ self._weights)
            posterior = prior + (x.T * (weight * risk * (1.0 - risk))) @ x
            slope = x.T @ (weight * (risk - y)) + prior @ (self._weights - before)
            move = np.linalg.solve(posterior, slope)
            self._weights = self._weights - move * min(1.0, STRIDE / max(float(np.abs(x @ move).max()), STRIDE))
        risk = _sigmoid(x @ self._weights)
        self._precision = prior + (x.T * (weight * risk * (1.0 - risk))) @ x
        return Report(losses={"risk_mature": told})

    def forget(self, users: Container[str]) -> None:
        """Nothing is kept by user: weights are of everybody's outcomes."""

    def serving_state(self) -> State:
        """Configuration and weights."""
        meta = {"name": self.name, "version": self.version, "config": asdict(self.config)}
        return {"meta": json_tensor(meta), "weights": torch.from_numpy(self._weights.copy())}

    def state(self) -> State:
        if self._precision is None:
            raise ServingOnly
        return {**self.serving_state(), "precision": torch.from_numpy(self._precision.copy())}

    def load(self, state: State) -> None:
        """See the protocol; everything is checked before anything changes."""
        check_names(state, {"meta", "weights", *({"precision"} & set(state))})
        check_meta(state, self.name, self.version, asdict(self.config))
        check_like("weights", state["weights"], torch.from_numpy(self._weights))
        if "precision" in state:
            check_like("precision", state["precision"], torch.zeros(COLUMNS, COLUMNS, dtype=torch.float64))
        self._weights = state["weights"].numpy().copy()
        self._precision = state["precision"].numpy().copy() if "precision" in state else None


def check_meta(state: State, name: str, version: str, config: dict[str, object]) -> None:
    """:raises ForeignState: another learner, version or configuration."""
    meta = from_json_tensor(state["meta"])
    if not isinstance(meta, dict) or (meta.get("name"), meta.get("version")) != (name, version):
        raise ForeignState(f"not a state of {name} version {version}")
    check_config(meta.get("config", {}), config)


def risky(risk: Floats, *, memo: object) -> Prediction:
    """A prediction of B rows that says nothing about when and of which type."""
    nothing = torch.zeros((len(risk), 0), dtype=torch.float64)
    return Prediction(
        quantiles=nothing, types=(), type_log_probs=nothing, risk=torch.from_numpy(np.asarray(risk)), memo=memo
    )


def columns(context: Context, query: Query, *, last_n: int) -> Floats:
    """[B, X]: one, the amount, the user's history, and what is known of the parties.

    :raises ValueError: there are no subjects.
    """
    subject = query.subject
    if subject is None:
        raise ValueError("a learner of outcomes was asked without subjects: Query.subject is None")
    amount = np.log1p(np.abs(subject.amount) / 1e6)
    bends = np.maximum(amount[:, None] - KNOTS, 0.0)
    own = _own(context, query, subject, amount, last_n)
    return np.concatenate([np.ones((len(query), 1)), amount[:, None], bends, own, subject.features], axis=1)


def _own(context: Context, query: Query, subject: Subject, amount: Floats, last_n: int) -> Floats:
    """[B, OWN] what the last `last_n` visible events tell: whether there are payments, how the amount lies among
    theirs, how many and how much lately, how long since the last one, and whether this merchant is among them."""
    index, real = _last(context, query, last_n)
    if len(context.at) == 0:
        context = _ONE_EVENT  # so that there is something to index; no row sees it
    times, sums, others = context.at[index], np.log1p(np.abs(context.amount[index]) / 1e6), context.other[index]
    paid = real & (context.kind[index] == "payment")
    count = paid.sum(axis=1)
    some = count > 0
    mean = np.where(paid, sums, 0.0).sum(axis=1) / np.maximum(count, 1)
    spread = np.sqrt((np.where(paid, sums - mean[:, None], 0.0) ** 2).sum(axis=1) / np.maximum(count, 1) + 0.05)
    since = np.where(paid, query.now[:, None] - times, 0) / DAY_US  # [B, N] days
    today, week = (np.where(paid, np.exp(-since / days), 0.0) for days in (1.0, 7.0))
    last = np.where(some, np.where(paid, since, np.inf).min(axis=1, initial=np.inf), 30.0)
    named = np.asarray([other is not None for other in subject.other], np.bool_)
    same = paid & (others == subject.other[:, None]) & named[:, None]
    return np.stack(
        [
            some.astype(np.float64),
            np.where(some, amount - mean, 0.0),
            np.where(some, (amount - mean) / spread, 0.0),
            np.where(some, np.maximum((amount - mean) / spread - 2.0, 0.0), 0.0),
            np.log1p(today.sum(axis=1)),
            np.log1p(week.sum(axis=1)),
            np.log1p((today * np.expm1(sums * paid)).sum(axis=1)),
            np.log1p(np.minimum(last, 30.0) * 24.0),
            np.log1p(same.sum(axis=1)),
        ],
        axis=1,
    )


def _last(context: Context, query: Query, last_n: int) -> tuple[Ints, Bools]:
    """[B, N] places of the last visible events in the ragged arrays, and which of them are real."""
    place = query.visible[:, None] - last_n + np.arange(last_n, dtype=np.int64)
    real = place >= 0
    return np.where(real, context.offsets[query.stack][:, None] + place, 0), real


def _sigmoid(logit: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logit, -30.0, 30.0))))
