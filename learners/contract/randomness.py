"""Randomness as a function of what it is for: hash(seed, purpose, subject), never a shared stream.

A draw for one event cannot depend on its batch mates, on the order of rows or on how often something else
was drawn, so that a replay, another batch split or another learner beside this one all see the same draw.
Mixing is splitmix64 (Steele, Lea, Flood 2014); strings enter through BLAKE2b.
"""

from __future__ import annotations

import hashlib
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learners.contract.batch import Floats, Ints

Words = NDArray[np.uint64]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def digest(*parts: object) -> np.uint64:
    """64 bits of a tuple of strings and numbers; equal parts give equal bits on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return np.uint64(
        int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
    )


def _mix(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def uniform(seed: int, purpose: str, keys: Ints) -> Floats:
    """One number in [0, 1) per key, float64, of the shape of `keys`."""
    with np.errstate(over="ignore"):
        words = _mix(_mix(np.asarray(keys).astype(np.uint64) + GOLDEN) ^ digest(seed, purpose))
    return np.asarray((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def uniform_tensor(seed: int, purpose: str, shape: tuple[int, ...], bound: float) -> Tensor:
    """float32 weights in [-bound, bound) that depend on seed and purpose alone."""
    draws = uniform(seed, purpose, np.arange(prod(shape), dtype=np.int64))
    return torch.from_numpy(((2.0 * draws - 1.0) * bound).astype(np.float32)).reshape(shape)
