"""Where an event is known to lie, and what that costs: gaps are known up to the stream's clock tick.

A recorded gap of k ticks stands for ((k - 1) ticks, k ticks]: a gap below one tick cannot be recorded as
another instant (those events form one mark set), so these intervals, and their probabilities, sum to 1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from learners.contract.batch import Bools, Ints, Target, TargetKind


def tick_of(now: Ints, at: Ints, resolution: Ints) -> tuple[Ints, Ints]:
    """Bounds (lo, hi], microseconds, of the clock tick in which an event recorded at `at` happened.

    The user is known to be silent until `now`, so the tick is cut there. An event at or before `now`
    (which only a disordered clock gives) is taken as one of the first tick after it. All [B].
    """
    lo = np.maximum(now, at - resolution)
    hi = np.where(at > now, at, now + np.maximum(resolution, 1))
    return np.minimum(lo, hi - 1), hi


def interval_nll(before: Tensor, inside: Tensor, width_s: Tensor) -> Tensor:
    """-log of the mean density over the tick: nats, of a density per second.

    P(tick) = exp(-before) (1 - exp(-inside)) with the compensators of the silence and of the tick.

    :param before, inside, width_s: [B] float64; width in seconds.
    """
    return before - torch.log(-torch.expm1(-inside.clamp_min(1e-200))) + torch.log(width_s)


def rows_with(target: Target) -> tuple[Bools, Bools, Bools]:
    """Which rows have a time loss, a type loss and a survival loss; [B] each."""
    every = np.ones(len(target.at), dtype=np.bool_)
    if target.kind is TargetKind.TICK:
        return ~every, ~every, every
    return np.asarray(target.timed, dtype=np.bool_), every, ~every
