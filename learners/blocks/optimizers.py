"""Two optimisers whose whole memory is named tensors, so that a snapshot can hold it.

Both change weights in place and take gradients as arguments. Neither moves a row whose gradient is zero
and always was: Adam, because its moments are then zero; `row_adagrad`, because it has no momentum at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import torch
from torch import Tensor

BETA_1: Final = 0.9
BETA_2: Final = 0.999
EPSILON: Final = 1e-8


def clip(gradients: Iterable[Tensor], bound: float) -> float:
    """Scales all gradients in place so that their joint norm is at most `bound`; returns the norm before."""
    kept = list(gradients)
    if not kept:
        return 0.0
    norm = float(torch.stack([gradient.norm() for gradient in kept]).norm())
    if norm > bound:
        for gradient in kept:
            gradient.mul_(bound / norm)
    return norm


def adam(
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    *,
    step: int,
    rates: Mapping[str, float],
) -> None:
    """One Adam step (Kingma and Ba 2015, algorithm 1), in place.

    :param moments: "<name>.m" and "<name>.v" for each name in `gradients`.
    :param step: 1 for the first.
    """
    correction_1, correction_2 = 1.0 - BETA_1**step, 1.0 - BETA_2**step
    for name, gradient in gradients.items():
        first, second = moments[f"{name}.m"], moments[f"{name}.v"]
        first.lerp_(gradient, 1.0 - BETA_1)
        second.mul_(BETA_2).addcmul_(gradient, gradient, value=1.0 - BETA_2)
        scale = (second / correction_2).sqrt_().add_(EPSILON)
        weights[name].addcdiv_(first, scale, value=-rates[name] / correction_1)


def row_adagrad(weight: Tensor, gradient: Tensor, sums: Tensor, *, rate: float) -> None:
    """One row-wise Adagrad step, in place: each row has one sum of mean squares.

    Lazy by itself: a row nobody touched has gradient zero and stays where it is, bit for bit.

    :param weight, gradient: [rows, D]; :param sums: [rows].
    """
    sums.add_(gradient.square().mean(dim=1))
    weight.sub_(rate * gradient / (sums.sqrt() + EPSILON).unsqueeze(1))
