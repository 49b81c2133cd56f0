"""SimHash signatures: directions that are close get equal numbers, with a probability that is known.

References:
1) Cao et al., "Sampling Is All You Need on Modeling Long-Term User Behaviors for CTR Prediction", CIKM 2022, 4.1
   (equations 5 to 15): https://arxiv.org/abs/2205.10249
2) Charikar, "Similarity Estimation Techniques from Rounding Algorithms", STOC 2002.

A signature is `tau` bits; `G` of them are drawn independently (the paper's m = G * tau bits). The matrix is
data: drawn once, stored, and known by the digest of its bytes.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from learners.contract.randomness import uniform


def hash_matrix(seed: int, *, signatures: int, tau: int, width: int) -> Tensor:
    """[G, tau, D] float32, standard normal (reference 1, equation 5), a function of the arguments alone."""
    keys = np.arange(signatures * tau * width, dtype=np.int64)
    radius = np.sqrt(-2.0 * np.log1p(-uniform(seed, "simhash.radius", keys)))
    normal = radius * np.cos(2.0 * np.pi * uniform(seed, "simhash.angle", keys))  # Box and Muller 1958
    return torch.from_numpy(normal.astype(np.float32)).reshape(signatures, tau, width)


def hash_id(matrix: Tensor) -> str:
    """16 hexadecimal digits of the matrix's shape and bytes: tables of two matrices never mix."""
    content = repr(tuple(matrix.shape)).encode() + matrix.contiguous().numpy().tobytes()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def signatures(vectors: Tensor, matrix: Tensor) -> Tensor:
    """Signature g of x: bit k is 1 where matrix[g, k] . x > 0 (reference 1, equations 5 and 7). No gradient.

    :param vectors: [..., D]; :param matrix: [G, tau, D].
    :returns: [..., G] int64 in [0, 2^tau). A zero vector gets 0: who pads must mask.
    """
    count, tau, width = matrix.shape
    # A matrix product may take another kernel for another number of rows, and a bit at 0 would then flip: the
    # products are summed in one fixed order, so that a vector's signature does not depend on its neighbours.
    flat = vectors.detach().reshape(-1, width)  # [N, D]
    projected = flat.new_zeros(len(flat), count * tau)
    for column in range(width):
        projected += flat[:, column : column + 1] * matrix[:, :, column].reshape(-1)
    bits = (projected > 0).view(-1, count, tau)
    number = (bits * (1 << torch.arange(tau))).sum(-1)
    return number.view(*vectors.shape[:-1], count)


def collision_probability(left: Tensor, right: Tensor, tau: int) -> Tensor:
    """(1 - angle / pi)^tau, the probability that one signature of both is equal (reference 1, equations 13, 15).

    :param left, right: [..., D]; :returns: [...].
    """
    cosine = torch.nn.functional.cosine_similarity(left, right, dim=-1).clamp(-1.0, 1.0)
    return (1.0 - cosine.acos() / torch.pi) ** tau
