"""How well risks were predicted.

Losses of a step, in nats, each for the rows that have an outcome:

    risk          -log of the probability given to the outcome by the prediction as issued: the headline
    risk_mature   the same of the prediction at maturity, by newer weights from the same features

and of many rows together (outcomes are rare, so a share of right answers says nothing) the area under the receiver
operating characteristic and the average precision.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from learners.contract.batch import Bools, Floats, Target
from learners.contract.protocol import Loss, Losses

TINY = 1e-9
"""No risk is held nearer to 0 or 1 in a loss."""


def log_loss(risk: Floats, y: Floats) -> Floats:
    """[B] nats."""
    held = np.clip(risk, TINY, 1.0 - TINY)
    return np.asarray(-(y * np.log(held) + (1.0 - y) * np.log1p(-held)))


def losses(risk: Tensor, target: Target) -> Losses:
    """ "risk_mature" of the rows; none where no outcome is known."""
    value = np.zeros(len(risk)) if target.y is None else log_loss(risk.numpy(), target.y)
    mask = torch.full((len(risk),), target.y is not None, dtype=torch.bool)
    return {"risk_mature": Loss(value=torch.from_numpy(value), mask=mask)}


def area_under_roc(risk: Floats, positive: Bools) -> float:
    """Share of pairs (positive, negative) whose positive has the greater risk, ties half; NaN without either.

    By ranks (Mann and Whitney 1947).
    """
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    _, place, count = np.unique(risk, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2.0  # of each distinct risk, from 1
    above = float(mean_rank[place][positive].sum()) - positives * (positives + 1) / 2.0
    return above / (positives * negatives)


def average_precision(risk: Floats, positive: Bools) -> float:
    """Precision averaged over the positives found, from the greatest risk down; equal risks are one cut. NaN without
    positives."""
    total = int(positive.sum())
    if not total:
        return float("nan")
    order = np.argsort(-risk, kind="stable")
    cuts = np.flatnonzero(np.append(np.diff(risk[order]) != 0, True))
    found = np.cumsum(positive[order])[cuts]
    gained = np.diff(found, prepend=0)
    return float((gained * found / (cuts + 1)).sum() / total)
