"""Attention of reference 2 of `models/prompttpp.py` (AttNHP), with the prompt prefix of reference 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What N rows of one layer look at: the P = M * Lp prompts of the pool (0 without one), then L events.

    A prompt's key is a learnt part plus a temporal part which is the same for all prompts of a position:
    q.(k + t) = [q, q.t].[k, 1]. With one more column (Y = D + 1; D without a pool) positions with different
    prompts share one product, and no prompt is ever gathered.
    """

    key: Tensor
    value: Tensor
    """[H, N, P + L, Y]"""
    mask: Tensor
    """[N, G or 1, P + L] bool: True where a row may look."""
    time_key: Tensor | None
    time_value: Tensor | None
    """[H, N, G or 1, D]"""


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each head's own map: x [H, N, G, X], weight [H, X, Y], bias [H, 1, Y] -> [H, N, G, Y]."""
    flat = torch.baddbmm(bias, x.flatten(1, 2), weight)  # [H, N * G, Y]
    return flat.view(*x.shape[:3], weight.shape[-1])


def attend(q: Tensor, memory: Memory, own: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Attention over [prompts | events | the row itself]; references 1 (prefix form) and 2.

    :param q: [H, N, G, D].
    :param own: the row's own key and value [H, N, G, D], where it is not among the events.
    :returns: [H, N, G, D].
    """
    d = q.shape[-1]
    q = q * d**-0.5
    asked = q
    if memory.time_key is not None:
        asked = torch.cat([q, (q * memory.time_key).sum(-1, keepdim=True)], dim=-1)  # [H, N, G, Y]
    scores = (asked @ memory.key.transpose(-1, -2)).masked_fill(~memory.mask, -torch.inf)
    if own is not None:
        scores = torch.cat([scores, (q * own[0]).sum(-1, keepdim=True)], dim=-1)  # [H, N, G, P + L + 1]
    share = scores.softmax(dim=-1)
    seen: Tensor = (share if own is None else share[..., :-1]) @ memory.value  # [H, N, G, Y]
    if memory.time_value is not None:
        seen = seen[..., :d] + seen[..., d:] * memory.time_value
    return seen if own is None else seen + share[..., -1:] * own[1]
