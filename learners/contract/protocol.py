"""The contract every learner keeps: predict, score, learn, state, load.

The order of use is prequential: `predict`, then `score` that prediction, then `learn`. The conformance
suite (`tests/contract/test_learners.py`) runs over every learner and says what each verb may touch:

* `predict` never sees a Target, changes nothing, and answers bit for bit the same for the same call.
* `score` changes nothing. It may be called only before the next `learn`, since the memo belongs to the
  weights that made the prediction.
* `learn` changes only the learner.
* `state` is complete: `load(state())` goes on bit for bit as if nothing had happened.
* `serving_state` is what `predict` needs and no more.
* `forget` takes out what is kept under a user's name; weights and counts of everybody's events stay as they are.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from learners.contract.batch import Batch, Context, Query, Target
from learners.contract.needs import Needs

State = dict[str, Tensor]
"""Named tensors on the CPU. Strings and numbers travel inside as uint8 or int64 tensors, so that one hash
over sorted names covers everything."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """An answer for B rows: when and what next, or how the candidates rank, as the learner has it."""

    quantiles: Tensor
    """[B, Q] float64 seconds from `Query.now` to the next event, given silence until then; inf where the
    model holds it possible that nothing comes."""
    types: tuple[str, ...]
    """The K type names in the order of `type_log_probs`; the last is the reserved unknown type."""
    type_log_probs: Tensor
    """[B, K] log-probability of the next event's type, whenever it comes."""
    logits: Tensor | None = None
    """[B, C] float64, raw: nothing is subtracted for how a candidate was sampled. 0 where the mask is False. None
    from a learner that does not rank; one that does has no quantiles [B, 0] and no types [B, 0]."""
    risk: Tensor | None = None
    """[B] float64 probability of the outcome; None from a learner that predicts none; one that does says nothing
    about when and of which type."""
    memo: object = field(repr=False)
    """Whatever `score` and `learn` want to use again; nobody else looks inside."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One named loss of B rows, in nats (or as named)."""

    value: Tensor
    """[B] float64; 0 where the mask is False."""
    mask: Tensor
    """[B] bool; which rows have this loss."""


Losses = Mapping[str, Loss]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a `learn` did."""

    losses: Mapping[str, float]
    """Means over the rows, as trained on."""
    actions: tuple[str, ...] = ()
    """Reactions of the learner to what it saw (drift), in order. The journal keeps them; a replay that
    reacts otherwise is an error."""
    retrieved: Mapping[str, int] = field(default_factory=dict)
    """"layer.prompt" -> rows that retrieved it, those that did; empty for a learner without a pool."""


class Learner(Protocol):
    """Six verbs; see the module's docstring for what each may touch."""

    @property
    def name(self) -> str:
        """Stable name, e.g. "prompttpp"."""

    @property
    def version(self) -> str:
        """Version of the learner's state and meaning; a snapshot of another version is refused."""

    @property
    def needs(self) -> Needs: ...

    def predict(self, context: Context, query: Query) -> Prediction: ...

    def score(self, prediction: Prediction, target: Target) -> Losses:
        """Next event: losses "time" (-log density of the gap, per second), "type" (-log p(type | gap)), "error" and
        "survival". Ranking: those of `learners/tasks/ranking_measures.py`. Outcomes: those of
        `learners/tasks/outcome_measures.py`."""

    def learn(self, batch: Batch, prediction: Prediction | None = None) -> Report:
        """One step. `prediction` is the answer `predict` gave for the same rows, if there is one."""

    def forget(self, users: Container[str]) -> None:
        """Nothing kept under one of these users' names is left, in memory or in `state`; every answer stays the same.

        :param users: tells whether a name is one of theirs; it cannot be asked for the names (they are known by a
            keyed hash).
        """

    def state(self) -> State: ...

    def serving_state(self) -> State: ...

    def load(self, state: State) -> None:
        """Takes a `state()` or a `serving_state()`.

        :raises ForeignState: names or shapes are not this learner's; nothing was changed.
        """


class ForeignState(ValueError):
    """The tensors are not a state of this learner: wrong names, shapes or version."""


class ServingOnly(RuntimeError):
    """The learner holds a serving state, which has no optimizer: load a full state to learn from it."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)
