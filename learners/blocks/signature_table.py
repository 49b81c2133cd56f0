"""Behaviours summed by signature, and read by a candidate's: attention at a price that length does not enter.

Reference: Cao et al., CIKM 2022, 4.2 (equations 11, 12) and 4.4, https://arxiv.org/abs/2205.10249. The layout, the
counts beside the sums, and adding and taking away single behaviours follow from equation 12.

V views of histories, L behaviours, G signatures of tau bits (R = 2^tau buckets each), D width, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from learners.contract.batch import Ints

TINY = 1e-12
"""Norms below it count as this: an empty bucket reads as the zero vector."""
_PORTION = 1024
"""Behaviours summed at a time: bounds the memory of `SignatureTable.of`, and the rounding of long histories."""


def build(vectors: Tensor, signatures: Tensor, mask: Tensor, buckets: int) -> tuple[Tensor, Tensor]:
    """Sums and counts of the behaviours of each bucket.

    One product with a 0/1 matrix: its backward is a product as well, the same bits on every run.

    :param vectors: [V, L, D]; signatures: [V, L, G] int64; mask: [V, L] bool, False for padding.
    :returns: sums [V, G, R, D] with the vectors' gradient; counts [V, G, R] float.
    """
    views, length, count = signatures.shape
    member = vectors.new_zeros(views, length, count, buckets)
    member.scatter_(-1, signatures.unsqueeze(-1), mask.to(vectors.dtype)[:, :, None, None].expand(-1, -1, count, 1))
    flat = member.flatten(2)  # [V, L, G * R]
    sums = (flat.transpose(1, 2) @ vectors).view(views, count, buckets, vectors.shape[-1])
    return sums, flat.sum(1).view(views, count, buckets)


def read(sums: Tensor, signatures: Tensor, view: Tensor, *, normalise: bool = True) -> Tensor:
    """Mean over g of the bucket a candidate falls into, each scaled to length 1 (equation 12).

    :param sums: [V, G, R, D]; signatures: [B, C, G] of the candidates; view: [B] which table a row reads.
    :param normalise: False: plain sums, whose mean is an unbiased estimate of the sum over behaviours of
        (1 - angle / pi)^tau times the vector.
    :returns: [B, C, D]; no gradient to the candidates.
    """
    if normalise:
        sums = F.normalize(sums, dim=-1, eps=TINY)
    views, count, buckets, width = sums.shape
    cell = (view[:, None, None] * count + torch.arange(count)) * buckets + signatures  # [B, C, G]
    gathered = sums.reshape(views * count * buckets, width).index_select(0, cell.flatten())
    return gathered.view(*cell.shape, width).mean(dim=-2)


def read_counts(counts: Tensor, signatures: Tensor, view: Tensor) -> Tensor:
    """[V, G, R], [B, C, G], [B] -> [B, C, G]: how many behaviours share each signature with the candidate."""
    cell = (view[:, None, None] * counts.shape[1] + torch.arange(counts.shape[1])) * counts.shape[2] + signatures
    return counts.flatten()[cell]


@dataclass(frozen=True, kw_only=True)
class SignatureTable:
    """One user's table, changed in place by single behaviours."""

    sums: NDArray[np.float32]
    """[G, R, D]"""
    counts: NDArray[np.int32]
    """[G, R]"""

    @classmethod
    def empty(cls, count: int, buckets: int, width: int) -> SignatureTable:
        return cls(sums=np.zeros((count, buckets, width), np.float32), counts=np.zeros((count, buckets), np.int32))

    @classmethod
    def of(cls, vectors: NDArray[np.float32], signatures: Ints, buckets: int) -> SignatureTable:
        """The table of N behaviours, [N, D] and [N, G]: as `add` to an empty one, many times as fast."""
        table = cls.empty(signatures.shape[1], buckets, vectors.shape[1])
        for start in range(0, len(vectors), _PORTION):
            portion = slice(start, start + _PORTION)
            member = (signatures[portion].T[:, :, None] == np.arange(buckets)).astype(np.float32)  # [G, N, R]
            table.sums[...] += member.transpose(0, 2, 1) @ vectors[portion]
            table.counts[...] += member.sum(axis=1).astype(np.int32)
        return table

    def add(self, vectors: NDArray[np.float32], signatures: Ints) -> None:
        """Adds behaviours in their order: [N, D] and [N, G]."""
        every = np.arange(len(self.counts))
        np.add.at(self.sums, (every, signatures), vectors[:, None, :])
        np.add.at(self.counts, (every, signatures), 1)

    def take_away(self, vectors: NDArray[np.float32], signatures: Ints) -> None:
        """The inverse of `add`, for the SAME vectors and signatures; sums keep a rounding error of each.

        A bucket that gets empty is set to 0: scaled to length 1, what rounding leaves there would be an interest.
        """
        every = np.arange(len(self.counts))
        np.subtract.at(self.sums, (every, signatures), vectors[:, None, :])
        np.subtract.at(self.counts, (every, signatures), 1)
        self.sums[self.counts == 0] = 0.0

    def copy(self) -> SignatureTable:
        return SignatureTable(sums=self.sums.copy(), counts=self.counts.copy())
