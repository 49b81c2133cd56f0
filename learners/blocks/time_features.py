"""Times and gaps as features; both in a model's own unit, both float64 on the way in."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
import torch
from torch import Tensor

from learners.contract.batch import Floats

BANK: Final = 4.0 ** np.arange(-6, 6, dtype=np.float64)
"""[R] half-saturation points, in units: a bank feature is gap / (gap + point)."""
KNEE: Final = float(BANK[0])
"""Gaps below the smallest point look alike: the knee of every quadrature over these features."""


def waves(t: Floats, width: int) -> Tensor:
    """[..., T] float32: sines and cosines of t (units), frequencies 10000^(-2i/T)."""
    frequencies = 10000.0 ** (-np.arange(0, width, 2) / width)
    phases = t[..., None] * frequencies
    return torch.from_numpy(np.concatenate([np.sin(phases), np.cos(phases)], axis=-1).astype(np.float32))


def bank(gap: Floats) -> Tensor:
    """[..., R] float32: gap / (gap + point), each 0 at 0 and 1 far away."""
    return torch.from_numpy((gap[..., None] / (gap[..., None] + BANK)).astype(np.float32))


@lru_cache(maxsize=32)
def decays(length: int, decay: float) -> Tensor:
    """[L, L] float32, lower triangular, rows sum to 1: an average that forgets, as one product."""
    behind = np.arange(length)[:, None] - np.arange(length)[None, :]
    weights = np.where(behind >= 0, float(decay) ** np.maximum(behind, 0), 0.0)
    return torch.from_numpy((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))
