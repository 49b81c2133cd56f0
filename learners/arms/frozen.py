"""The same learner, which stops learning after a warm-up: not to adapt is its whole point."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

import torch

from learners.contract.batch import Batch, Context, Query, Target, TargetKind
from learners.contract.needs import Needs
from learners.contract.protocol import ForeignState, Learner, Losses, Prediction, Report, ServingOnly, State
from learners.contract.state_codec import below, check_like, check_names, prefixed

WARMUP_EVENTS: Final = 20_000


class Frozen:
    """Learns like the learner inside for `warmup_events` events, and never again.

    The step in which the count is reached is the last one learnt from. State: the inner learner's under
    "inner.", and "events", the events seen while warming up.
    """

    def __init__(self, inner: Learner, *, warmup_events: int = WARMUP_EVENTS) -> None:
        self._inner = inner
        self.warmup_events: Final = warmup_events
        self._events: int | None = 0

    @property
    def name(self) -> str:
        return f"{self._inner.name}.frozen"

    @property
    def version(self) -> str:
        return self._inner.version

    @property
    def needs(self) -> Needs:
        return self._inner.needs

    @property
    def frozen(self) -> bool:
        """Whether the warm-up is over."""
        return self._events is None or self._events >= self.warmup_events

    def predict(self, context: Context, query: Query) -> Prediction:
        """As the inner learner; once frozen, without keeping a graph nobody will go back through."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self._inner.predict(context, query)

    def score(self, prediction: Prediction, target: Target) -> Losses:
        return self._inner.score(prediction, target)

    def learn(self, batch: Batch, prediction: Prediction | None = None) -> Report:
        """Learns during the warm-up; afterwards an empty report."""
        if self._events is None:
            raise ServingOnly
        if self.frozen:
            return Report(losses={})
        report = self._inner.learn(batch, prediction)
        if batch.target.kind is TargetKind.EVENT:
            self._events += len(batch)
        return report

    def forget(self, users: Container[str]) -> None:
        """As the inner learner, frozen or not."""
        self._inner.forget(users)

    def state(self) -> State:
        if self._events is None:
            raise ServingOnly
        return prefixed("inner.", self._inner.state()) | {"events": torch.tensor(self._events)}

    def serving_state(self) -> State:
        return prefixed("inner.", self._inner.serving_state())

    def load(self, state: State) -> None:
        foreign = sorted(name for name in state if name != "events" and not name.startswith("inner."))
        if foreign:
            raise ForeignState(f"names differ: foreign {foreign[:8]}")
        if "events" in state:
            check_like("events", state["events"], torch.tensor(0))
        else:
            check_names(state, set(self.serving_state()))
        self._inner.load(below("inner.", state))
        self._events = int(state["events"]) if "events" in state else None
