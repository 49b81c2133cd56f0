"""Signatures and tables against closed forms, brute force and each other (Cao et al., CIKM 2022, 4.1, 4.2, 4.4)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from learners.blocks.lazy_tables import rows_adagrad
from learners.blocks.optimizers import row_adagrad
from learners.blocks.signature_table import SignatureTable, build, read, read_counts
from learners.blocks.simhash import collision_probability, hash_id, hash_matrix, signatures
from learners.contract.batch import Ints

DRAWS = 20_000
ONE = torch.zeros(1, dtype=torch.int64)


def clustered(seed: int, length: int, width: int, *, clusters: int = 12) -> tuple[Tensor, Tensor]:
    """Behaviours [L, D] around a few centres, and a candidate [D] near one of them; all of length 1."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, width, generator=generator)
    near = centres[torch.randint(clusters, (length,), generator=generator)]
    behaviours = near + 0.5 * torch.randn(length, width, generator=generator)
    candidate = centres[0] + 0.5 * torch.randn(width, generator=generator)
    return torch.nn.functional.normalize(behaviours, dim=-1), torch.nn.functional.normalize(candidate, dim=-1)


def attention(behaviours: Tensor, candidate: Tensor, matrix: Tensor, *, normalise: bool) -> Tensor:
    """[D] as the table gives it."""
    mask = torch.ones(1, len(behaviours), dtype=torch.bool)
    own = signatures(behaviours, matrix).unsqueeze(0)
    sums, _ = build(behaviours.unsqueeze(0), own, mask, 2 ** matrix.shape[1])
    return read(sums, signatures(candidate, matrix).view(1, 1, -1), ONE, normalise=normalise)[0, 0]


@pytest.mark.parametrize("tau", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("cosine", [-0.5, 0.0, 0.3, 0.6, 0.8, 0.95])
def test_signatures_collide_as_often_as_the_angle_says(cosine: float, tau: int) -> None:
    left = torch.tensor([1.0, 0.0, 0.0, 0.0])
    right = torch.tensor([cosine, math.sqrt(1.0 - cosine**2), 0.0, 0.0])
    matrix = hash_matrix(tau, signatures=DRAWS, tau=tau, width=4)
    seen = float((signatures(left, matrix) == signatures(right, matrix)).double().mean())
    expected = float(collision_probability(left, right, tau))
    assert expected == pytest.approx((1.0 - math.acos(cosine) / math.pi) ** tau, abs=1e-6)
    assert abs(seen - expected) < 4.0 * math.sqrt(expected * (1.0 - expected) / DRAWS)


def test_plain_sums_approach_the_weighted_sum_as_signatures_are_added() -> None:
    behaviours, candidate = clustered(1, 1024, 128)
    truth = collision_probability(behaviours, candidate, 3) @ behaviours
    errors = {}
    for count in (256, 1024):
        found = attention(behaviours, candidate, hash_matrix(7, signatures=count, tau=3, width=128), normalise=False)
        errors[count] = float((found - truth).norm() / truth.norm())
    assert errors[256] < 0.12
    assert errors[1024] < 0.6 * errors[256] + 0.01


def test_scaled_sums_point_where_the_weighted_sum_does() -> None:
    """Their length is not that of weights which sum to one: only the direction is compared."""
    behaviours, candidate = clustered(1, 1024, 128)
    truth = collision_probability(behaviours, candidate, 3) @ behaviours
    softmax = (behaviours @ candidate / 0.5).softmax(0) @ behaviours
    cosine = torch.nn.functional.cosine_similarity
    found = {
        count: attention(behaviours, candidate, hash_matrix(7, signatures=count, tau=3, width=128), normalise=True)
        for count in (16, 256)
    }
    assert float(cosine(found[16], truth, dim=0)) > 0.93
    assert float(cosine(found[256], truth, dim=0)) > 0.99
    assert float(cosine(found[256], softmax, dim=0)) > 0.98
    assert float(cosine(truth, softmax, dim=0)) > 0.99


def test_reading_a_table_is_summing_the_behaviours_that_collide() -> None:
    behaviours, candidate = clustered(2, 200, 16)
    matrix = hash_matrix(3, signatures=16, tau=3, width=16)
    same = signatures(behaviours, matrix) == signatures(candidate, matrix)  # [L, G]
    direct = (same.double().T @ behaviours.double()).mean(0)
    found = attention(behaviours.double(), candidate.double(), matrix.double(), normalise=False)
    torch.testing.assert_close(found, direct, rtol=0, atol=1e-12)
    single = attention(behaviours, candidate, matrix, normalise=False)
    torch.testing.assert_close(single.double(), direct, rtol=1e-6, atol=1e-5)


def numbered(vectors: Tensor, matrix: Tensor) -> tuple[NDArray[np.float32], Ints]:
    return vectors.numpy(), signatures(vectors, matrix).numpy()


def test_adding_one_by_one_is_summing_at_once() -> None:
    vectors = torch.randn(5000, 32, generator=torch.Generator().manual_seed(0))
    matrix = hash_matrix(1, signatures=16, tau=3, width=32)
    table = SignatureTable.empty(16, 8, 32)
    for start in range(0, 5000, 50):
        table.add(*numbered(vectors[start : start + 50], matrix))
    mask = torch.ones(1, 5000, dtype=torch.bool)
    sums, counts = build(vectors.double().unsqueeze(0), signatures(vectors, matrix).unsqueeze(0), mask, 8)
    assert np.array_equal(table.counts, counts[0].numpy().astype(np.int32))
    assert float(np.abs(table.sums - sums[0].numpy()).max() / sums.abs().max()) < 1e-5


def test_a_moving_window_stays_near_the_window_summed_anew() -> None:
    vectors = torch.randn(5000, 32, generator=torch.Generator().manual_seed(0))
    matrix = hash_matrix(1, signatures=16, tau=3, width=32)
    table = SignatureTable.empty(16, 8, 32)
    for place in range(5000):
        table.add(*numbered(vectors[place : place + 1], matrix))
        if place >= 1024:
            table.take_away(*numbered(vectors[place - 1024 : place - 1023], matrix))
    anew = SignatureTable.empty(16, 8, 32)
    anew.add(*numbered(vectors[-1024:], matrix))
    assert np.array_equal(table.counts, anew.counts)
    assert float(np.abs(table.sums - anew.sums).max()) < 4e-4


def test_a_bucket_that_was_emptied_reads_as_nothing() -> None:
    """Scaled to length 1, what rounding leaves behind would be a whole interest."""
    vectors = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    matrix = hash_matrix(1, signatures=4, tau=1, width=8)
    table = SignatureTable.empty(4, 2, 8)
    table.add(*numbered(vectors, matrix))
    table.take_away(*numbered(vectors[[1, 0, 2]], matrix))
    assert not table.counts.any()
    assert not table.sums.any()


def test_order_does_not_matter_and_every_signature_sums_the_same_behaviours() -> None:
    vectors = torch.randn(1, 300, 32, generator=torch.Generator().manual_seed(0))
    matrix = hash_matrix(1, signatures=16, tau=3, width=32)
    own, mask = signatures(vectors, matrix), torch.ones(1, 300, dtype=torch.bool)
    sums, counts = build(vectors, own, mask, 8)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    again, _ = build(vectors[:, order], own[:, order], mask, 8)
    torch.testing.assert_close(again, sums, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(sums.sum(2), vectors.sum(1, keepdim=True).expand(1, 16, 32), rtol=1e-4, atol=1e-4)
    assert set(counts.sum(-1).flatten().tolist()) == {300.0}


def test_length_does_not_change_a_signature_and_padding_never_counts() -> None:
    vectors = torch.randn(1, 60, 16, generator=torch.Generator().manual_seed(0))
    matrix = hash_matrix(1, signatures=8, tau=5, width=16)
    own = signatures(vectors, matrix)
    assert torch.equal(signatures(vectors * 37.5, matrix), own)
    mask = torch.ones(1, 60, dtype=torch.bool)
    padded = torch.cat([vectors, torch.full((1, 100, 16), 5.0)], dim=1)
    longer = torch.cat([mask, torch.zeros(1, 100, dtype=torch.bool)], dim=1)
    left, right = build(vectors, own, mask, 32), build(padded, signatures(padded, matrix), longer, 32)
    torch.testing.assert_close(right[0], left[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(right[1], left[1])


def test_a_signature_does_not_depend_on_what_is_hashed_beside_it() -> None:
    vectors = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
    matrix = hash_matrix(1, signatures=16, tau=3, width=32)
    together = signatures(vectors, matrix)
    assert torch.equal(torch.cat([signatures(vector, matrix).unsqueeze(0) for vector in vectors]), together)


def test_gradient_reaches_what_collides_and_never_the_candidate_or_the_matrix() -> None:
    behaviours, candidate = clustered(2, 40, 16)
    matrix = hash_matrix(3, signatures=2, tau=3, width=16).requires_grad_()
    behaviours, candidate = behaviours.requires_grad_(), candidate.requires_grad_()
    attention(behaviours, candidate, matrix, normalise=True).square().sum().backward()  # type: ignore[no-untyped-call]
    collides = (signatures(behaviours, matrix) == signatures(candidate, matrix)).any(-1)
    assert candidate.grad is None
    assert matrix.grad is None
    assert behaviours.grad is not None
    assert 0 < int(collides.sum()) < 40
    # l2 takes the part along the sum away; what is left of a behaviour's gradient is 0 only by accident.
    summed = read(
        build(behaviours.unsqueeze(0), signatures(behaviours, matrix).unsqueeze(0), torch.ones(1, 40).bool(), 8)[0],
        signatures(candidate, matrix).view(1, 1, -1),
        ONE,
        normalise=False,
    ).sum()
    (gradient,) = torch.autograd.grad(summed, behaviours)
    assert torch.equal(gradient.abs().sum(-1) > 0, collides)
    assert not bool(behaviours.grad[~collides].any())


@pytest.mark.parametrize(("length", "expected"), [(1, 0.875), (5, 0.51), (10, 0.26), (50, 0.001)])
def test_short_histories_leave_buckets_empty_as_often_as_computed(length: int, expected: float) -> None:
    generator, width = torch.Generator().manual_seed(4), 64
    vectors = torch.randn(200, length, width, generator=generator)
    candidates = torch.randn(200, 1, width, generator=generator)
    matrix = hash_matrix(5, signatures=64, tau=3, width=width)
    _, counts = build(vectors, signatures(vectors, matrix), torch.ones(200, length, dtype=torch.bool), 8)
    hits = read_counts(counts, signatures(candidates, matrix), torch.arange(200))
    empty = float((hits == 0).double().mean())
    assert (1.0 - 2.0**-3) ** length == pytest.approx(expected, abs=5e-3)
    assert empty == pytest.approx(expected, abs=0.02)


def test_a_hash_matrix_is_standard_normal_and_known_by_its_bytes() -> None:
    matrix = hash_matrix(3, signatures=400, tau=5, width=32)
    assert torch.equal(matrix, hash_matrix(3, signatures=400, tau=5, width=32))
    assert float(matrix.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(matrix.std()) == pytest.approx(1.0, abs=0.02)
    assert bool(torch.isfinite(matrix).all())
    other = matrix.clone()
    other[0, 0, 0] += 1e-3
    assert len({hash_id(matrix), hash_id(other), hash_id(matrix.reshape(200, 10, 32))}) == 3


def test_a_lazy_step_is_the_dense_one_on_its_rows_and_touches_no_other() -> None:
    generator = torch.Generator().manual_seed(0)
    dense, sums = torch.randn(50, 4, generator=generator), torch.rand(50, generator=generator)
    lazy, lazy_sums, rows = dense.clone(), sums.clone(), torch.tensor([3, 17, 40])
    before = dense.clone()
    gradient = torch.zeros(50, 4)
    gradient[rows] = torch.randn(3, 4, generator=generator)
    row_adagrad(dense, gradient, sums, rate=0.1)
    rows_adagrad(lazy, rows, gradient[rows], lazy_sums, rate=0.1)
    torch.testing.assert_close(lazy, dense)
    torch.testing.assert_close(lazy_sums, sums)
    others = torch.ones(50, dtype=torch.bool).index_fill_(0, rows, False)
    assert torch.equal(lazy[others], before[others])
