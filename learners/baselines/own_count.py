"""The floor of every ranking: how often this user had the item, and how often everybody had it.

p(item | user) = (own count + kappa * share of all) / (own events + kappa): the posterior mean of a multinomial under
a Dirichlet prior. kappa is the one of a grid that has ranked best so far, so the floor too is learnt prequentially.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from learners.baselines.specs import OWN_COUNT, OwnCountConfig
from learners.blocks.popularity_counts import PopularityCounts
from learners.contract.batch import Batch, Candidates, Context, Floats, Query, Target, TargetKind
from learners.contract.needs import Needs
from learners.contract.protocol import Losses, Prediction, Report, State
from learners.contract.state_codec import below, check_like, check_names, prefixed
from learners.tasks.ranking_measures import chosen_of, measures, rank_loss

KAPPAS: Final = 4.0 ** np.arange(0, 7)
"""[K] events' worth of belief in what everybody does: 1 to 4,096."""
FORGET: Final = 0.999
"""Weight of the past, per step, in the losses that choose among them."""


@dataclass(frozen=True, kw_only=True)
class _Memo:
    candidates: Candidates
    logits: Tensor
    """[K, B, C] float64 for every kappa."""


class OwnCount:
    """Own count + popularity."""

    version: Final = OWN_COUNT.version

    def __init__(self, config: OwnCountConfig | None = None, name: str = OWN_COUNT.name) -> None:
        self.name: Final = name
        self.config: Final = config or OwnCountConfig()
        self._popularity = PopularityCounts(self.config.max_items)
        self._losses = torch.zeros(len(KAPPAS), dtype=torch.float64)

    @property
    def needs(self) -> Needs:
        return OWN_COUNT.needs(self.config)

    def predict(self, context: Context, query: Query) -> Prediction:
        """Log-probabilities, which need no training.

        :raises ValueError: there are no candidates to rank.
        """
        candidates = ranked(query)
        own, events = _own_counts(context, query, candidates, self.config.last_n)
        common = np.exp(self._popularity.log_share(candidates.item))
        kappa = KAPPAS[:, None, None]
        logits = np.log(own + kappa * common) - np.log(events[:, None] + kappa)
        memo = _Memo(candidates=candidates, logits=torch.from_numpy(np.where(candidates.mask, logits, 0.0)))
        return ranking(memo.logits[int(self._losses.argmin())], memo)

    def score(self, prediction: Prediction, target: Target) -> Losses:
        """See `learners/tasks/ranking_measures.py`."""
        assert isinstance(prediction.memo, _Memo)
        assert prediction.logits is not None
        return measures(prediction.logits, prediction.memo.candidates, target)

    def learn(self, batch: Batch, prediction: Prediction | None = None) -> Report:
        candidates = ranked(batch.query)
        chosen = chosen_of(candidates, batch.target)
        rows, losses = chosen.any(-1), {}
        if bool(rows.any()):
            memo = (prediction or self.predict(batch.context, batch.query)).memo
            assert isinstance(memo, _Memo)
            found = torch.stack([rank_loss(logits, candidates, chosen)[rows].mean() for logits in memo.logits])
            losses["rank"] = float(found[int(self._losses.argmin())])
            self._losses = FORGET * self._losses + found
        numbered = self._popularity.learn(choices(batch.target))
        actions = (f"item {new.evicted!r} gave its row to {new.name!r}" for new in numbered if new.evicted is not None)
        return Report(losses=losses, actions=tuple(actions))

    def forget(self, users: Container[str]) -> None:
        """Nothing is kept by user: own counts are made of each row's history, the others are of everybody."""

    def state(self) -> State:
        return {**prefixed("popularity.", self._popularity.state()), "kappa_losses": self._losses.clone()}

    def serving_state(self) -> State:
        """The whole state: counts are all there is."""
        return self.state()

    def load(self, state: State) -> None:
        check_names(state, {*prefixed("popularity.", self._popularity.state()), "kappa_losses"})
        check_like("kappa_losses", state["kappa_losses"], self._losses)
        self._popularity = PopularityCounts.from_state(below("popularity.", state))
        self._losses = state["kappa_losses"].clone()


def ranked(query: Query) -> Candidates:
    """:raises ValueError: nothing to rank."""
    if query.candidates is None:
        raise ValueError("a ranking learner was asked without candidates: Query.candidates is None")
    return query.candidates


def choices(target: Target) -> list[str]:
    """Items of the rows that count, in their order; none for a tick."""
    if target.kind is TargetKind.TICK or target.item is None or target.wanted is None:
        return []
    return [item for item, wanted in zip(target.item.tolist(), target.wanted.tolist(), strict=True) if wanted]


def ranking(logits: Tensor, memo: object) -> Prediction:
    """A prediction of B rows that says nothing about when and of which type."""
    nothing = torch.zeros((len(logits), 0), dtype=torch.float64)
    return Prediction(quantiles=nothing, types=(), type_log_probs=nothing, logits=logits, memo=memo)


def _own_counts(context: Context, query: Query, candidates: Candidates, last_n: int) -> tuple[Floats, Floats]:
    """[B, C] how often the visible history holds each candidate, and [B] how many behaviours it holds."""
    counted: dict[tuple[int, int], Counter[str]] = {}
    own, events = np.zeros(candidates.item.shape), np.zeros(len(query))
    for row, pair in enumerate(zip(query.stack.tolist(), query.visible.tolist(), strict=True)):
        if pair not in counted:
            start = int(context.offsets[pair[0]])
            items = [item for item in context.item[start : start + pair[1]].tolist() if item is not None]
            counted[pair] = Counter(items[-last_n:])
        own[row] = [counted[pair][item] for item in candidates.item[row].tolist()]
        events[row] = counted[pair].total()
    return own, events
