"""The floor of every risk: the share of bad outcomes among those known lately, the same for every payment."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

import numpy as np
import torch

from learners.baselines.logistic_risk import risky
from learners.baselines.specs import RISK_RATE, RiskConfig
from learners.contract.batch import Batch, Context, Query, Target, superseded
from learners.contract.needs import Needs
from learners.contract.protocol import Losses, Prediction, Report, State
from learners.contract.state_codec import check_like, check_names
from learners.tasks.outcome_measures import losses

BELIEF: Final = 100.0
"""Outcomes' worth of belief in the prior."""


class OutcomeRate:
    """A constant rate, learnt from the same labels and fading as slowly as `Risk` does."""

    version: Final = RISK_RATE.version

    def __init__(self, config: RiskConfig | None = None, name: str = RISK_RATE.name) -> None:
        self.name: Final = name
        self.config: Final = config or RiskConfig()
        self._sums = np.asarray([BELIEF * self.config.prior, BELIEF])
        """Bad outcomes, outcomes."""

    @property
    def needs(self) -> Needs:
        return RISK_RATE.needs(self.config)

    def predict(self, context: Context, query: Query) -> Prediction:
        return risky(np.full(len(query), self._sums[0] / self._sums[1]), memo=None)

    def score(self, prediction: Prediction, target: Target) -> Losses:
        """See `learners/tasks/outcome_measures.py`."""
        assert prediction.risk is not None
        return losses(prediction.risk, target)

    def learn(self, batch: Batch, prediction: Prediction | None = None) -> Report:
        y, weight = batch.target.y, batch.target.weight
        if y is not None and len(batch):
            before = superseded(batch.target)
            fresh = np.isnan(before)
            kept = np.exp(-int(fresh.sum()) / self.config.memory)
            self._sums = self._sums * kept + np.asarray([(weight * y)[fresh].sum(), weight[fresh].sum()])
            # A correction moves a case that was counted; no more can be bad than there are.
            moved = (weight * (y - before))[~fresh].sum()
            self._sums[0] = np.clip(self._sums[0] + moved, 0.0, self._sums[1])
        return Report(losses={})

    def forget(self, users: Container[str]) -> None:
        """Nothing is kept by user: the rate is everybody's."""

    def state(self) -> State:
        return {"sums": torch.from_numpy(self._sums.copy())}

    def serving_state(self) -> State:
        """The whole state: the rate is all there is."""
        return self.state()

    def load(self, state: State) -> None:
        check_names(state, {"sums"})
        check_like("sums", state["sums"], torch.from_numpy(self._sums))
        self._sums = state["sums"].numpy().copy()
