"""How far a learner's losses stand above the best of its references: what nothing that learns should ever do for long.

A learner can be wrong by any factor and look steady, so a change is no sign of it; a reference that only counts is
not fooled by the same rows. Observed only: nothing here decides a weight, and a restart begins anew.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Final

from learners.arms.group import LEARNER, LossTotal

STEPS: Final = 32
"""Newest steps that are compared."""
NATS: Final = frozenset({"time", "type", "survival", "rank", "risk"})
"""Losses that are compared: each in nats, so that one bound fits all."""

Losses = Mapping[str, Mapping[str, LossTotal]]


class Excess:
    """The last steps' losses of all arms."""

    def __init__(self) -> None:
        self._steps: deque[Losses] = deque(maxlen=STEPS)

    def add(self, losses: Losses) -> dict[str, float]:
        """Takes a step's losses, by arm and name.

        :returns: name of loss -> nats that the learner's mean lies above the lowest of the references' over the
            last `STEPS` steps, below 0 where it beats all; empty until there are so many steps.
        """
        self._steps.append(losses)
        if len(self._steps) < STEPS:
            return {}
        found = {}
        for name in NATS & set(losses.get(LEARNER, {})):
            own = self._mean(LEARNER, name)
            others = [self._mean(arm, name) for arm in losses if arm != LEARNER]
            known = [mean for mean in others if not math.isnan(mean)]
            if known and not math.isnan(own):
                found[name] = own - min(known)
        return found

    def _mean(self, arm: str, name: str) -> float:
        """NaN where no step had such rows."""
        parts = [step[arm][name] for step in self._steps if name in step.get(arm, {})]
        count = sum(part.count for part in parts)
        return sum(part.sum for part in parts) / count if count else math.nan
