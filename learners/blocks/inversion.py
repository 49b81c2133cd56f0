"""Quantiles of the next event's time, by inverting its compensator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from learners.contract.batch import Floats

Compensators = Callable[[Floats], tuple[Floats, Floats]]
"""Edges [P + 1] or [B, P + 1], in units from now, to the compensator of each panel [B, P] (positive) and
the rate [B, 1] at the end of the last."""

TIME_EDGES: Final = np.concatenate([[0.0], 10.0 ** np.linspace(-6, 6, 48)])
"""Panels, units from now, in which quantiles are bracketed; the rate counts as constant behind the last."""
REFINED: Final = 8


def quantile_times(compensators: Compensators, rows: int, quantiles: tuple[float, ...]) -> Floats:
    """[B, Q] units from now at which the compensator reaches -log(1 - q).

    Bracketed in a panel of `TIME_EDGES`, then in an eighth of it, then linear; the rate counts as constant
    behind the last panel, so every answer is finite. Not decreasing in q.
    """
    level = -np.log1p(-np.asarray(quantiles, dtype=np.float64))[None, :]  # [1, Q]
    mass, rate = compensators(TIME_EDGES)
    edges = np.broadcast_to(TIME_EDGES, (rows, len(TIME_EDGES)))
    reached = np.concatenate([np.zeros((rows, 1)), mass.cumsum(axis=1)], axis=1)  # [B, P + 1]
    panel = (reached[:, 1:-1, None] < level[:, None, :]).sum(axis=1)  # [B, Q]
    low, high = (np.take_along_axis(edges, panel + side, axis=1) for side in (0, 1))
    within = (level - np.take_along_axis(reached, panel, axis=1)).clip(0.0)  # compensator left to go
    fine = low[..., None] + (high - low)[..., None] * np.linspace(0.0, 1.0, REFINED + 1)
    pieces = np.stack([compensators(fine[:, q])[0] for q in range(len(quantiles))], axis=1)
    # [B, Q, 8]; scaled to the panel's own total, so that the bracket holds to the last bit
    pieces *= (np.take_along_axis(mass, panel, axis=1) / pieces.sum(axis=-1))[..., None]
    upto = np.concatenate([np.zeros((*panel.shape, 1)), pieces.cumsum(axis=-1)], axis=-1)
    part = (upto[..., 1:-1] < within[..., None]).sum(axis=-1)[..., None]
    left = within[..., None] - np.take_along_axis(upto, part, axis=-1)
    slope = np.take_along_axis(pieces, part, axis=-1) / (high - low)[..., None] * REFINED
    found = (np.take_along_axis(fine, part, axis=-1) + left / slope)[..., 0]
    beyond = TIME_EDGES[-1] + (level - reached[:, -1:]) / rate
    return np.asarray(np.where(level > reached[:, -1:], beyond, found))
