"""How well candidates are ranked, computed the same way from any arm's logits.

Losses, each for the rows that have it (the streams hold no impressions, so an AUC measures its sampler as well):

    rank            -log of the chosen item's share among all candidates, nats, each logit less log q
                    (Yi et al., RecSys 2019, equation 5); rows with sampled candidates
    auc_uniform     share of uniform negatives below the chosen item, ties half
    auc_popular     the same against negatives drawn by popularity
    mrr, ndcg10     1 / rank, and 1 / log2(1 + rank) up to rank 10, in the whole catalogue; ties share their ranks' mean

and each but `rank` again as "<name>_new" and "<name>_repeat", by whether the user's visible history has the item.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from learners.contract.batch import Candidates, Drawn, Target, TargetKind
from learners.contract.protocol import Loss

MEASURES = ("auc_uniform", "auc_popular", "mrr", "ndcg10")


def chosen_of(candidates: Candidates, target: Target) -> Tensor:
    """[B, C] bool: the chosen item, in the rows that have one; False everywhere for a tick."""
    if target.kind is TargetKind.TICK or target.drawn is None:
        return torch.zeros(candidates.mask.shape, dtype=torch.bool)
    return torch.from_numpy((target.drawn == Drawn.CHOSEN) & candidates.mask)


def rank_loss(logits: Tensor, candidates: Candidates, chosen: Tensor) -> Tensor:
    """[B] float64, with the logits' gradient; 0 for a row without a chosen item."""
    mask = torch.from_numpy(candidates.mask)
    corrected = (logits.double() - torch.from_numpy(candidates.log_q)).masked_fill(~mask, -torch.inf)
    some = chosen.any(-1)
    corrected = torch.where(some.unsqueeze(-1), corrected, 0.0)
    nats = corrected.logsumexp(-1) - torch.where(chosen, corrected, 0.0).sum(-1)
    return torch.where(some, nats, 0.0)


def measures(logits: Tensor, candidates: Candidates, target: Target) -> Mapping[str, Loss]:
    """All losses of the module's list.

    :param logits: [B, C] float64.
    """
    logits = logits.detach()
    chosen = chosen_of(candidates, target)
    some, mask = chosen.any(-1), torch.from_numpy(candidates.mask)
    own = torch.where(chosen, logits, 0.0).sum(-1, keepdim=True)
    beaten = (own > logits).double() + 0.5 * (own == logits).double()  # [B, C]
    drawn = torch.from_numpy(_drawn(candidates, target))
    against = {kind: mask & (drawn == kind) & some.unsqueeze(-1) for kind in Drawn if kind is not Drawn.CHOSEN}
    has = {kind: members.any(-1) for kind, members in against.items()}
    ranks = 1.0 + ((1.0 - beaten) * against[Drawn.CATALOGUE]).sum(-1)
    sampled = has[Drawn.UNIFORM] | has[Drawn.POPULAR]
    values = {
        "auc_uniform": (_mean(beaten, against[Drawn.UNIFORM]), has[Drawn.UNIFORM]),
        "auc_popular": (_mean(beaten, against[Drawn.POPULAR]), has[Drawn.POPULAR]),
        "mrr": (1.0 / ranks, has[Drawn.CATALOGUE]),
        "ndcg10": (torch.where(ranks <= 10.0, 1.0 / torch.log2(1.0 + ranks), 0.0), has[Drawn.CATALOGUE]),
    }
    losses = {"rank": _loss(rank_loss(logits, candidates, chosen), sampled)}
    repeat = np.zeros(len(some), np.bool_) if target.repeat is None else target.repeat
    again = torch.from_numpy(repeat)
    for name, (value, rows) in values.items():
        losses[name] = _loss(value, rows)
        losses[f"{name}_new"] = _loss(value, rows & ~again)
        losses[f"{name}_repeat"] = _loss(value, rows & again)
    return losses


def _drawn(candidates: Candidates, target: Target) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.zeros(candidates.mask.shape, np.int64) if target.drawn is None else target.drawn


def _mean(value: Tensor, members: Tensor) -> Tensor:
    return (value * members).sum(-1) / members.sum(-1).clamp_min(1)


def _loss(value: Tensor, rows: Tensor) -> Loss:
    return Loss(value=torch.where(rows, value, 0.0), mask=rows)
