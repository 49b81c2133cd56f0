"""Counter-based randomness: a draw depends on what it is for and on nothing else."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from learners.contract.randomness import digest, uniform, uniform_tensor


def test_a_draw_does_not_depend_on_its_neighbours() -> None:
    keys = np.asarray([5, -1, 2**62, 0], dtype=np.int64)
    together = uniform(1, "dropout", keys)
    alone = [uniform(1, "dropout", keys[place : place + 1])[0] for place in (3, 1, 0, 2)]
    assert together.tolist() == [alone[2], alone[1], alone[3], alone[0]]


def test_seed_and_purpose_each_give_other_draws() -> None:
    keys = np.arange(100, dtype=np.int64)
    draws = [uniform(seed, purpose, keys) for seed in (1, 2) for purpose in ("a", "b")]
    assert len({tuple(draw) for draw in draws}) == 4


def test_draws_are_uniform_even_over_neighbouring_keys() -> None:
    draws = uniform(7, "dropout", np.arange(20_000, dtype=np.int64))
    assert stats.kstest(draws, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.03


def test_the_numbers_are_the_same_on_every_machine() -> None:
    """Golden values, written down when the function was: a change here changes every snapshot."""
    assert int(digest("a", 1)) == GOLDEN_DIGEST
    assert uniform(0, "x", np.asarray([0, 1], dtype=np.int64)).tolist() == GOLDEN_UNIFORM
    assert uniform_tensor(0, "x", (2,), 1.0).dtype == torch.float32


GOLDEN_DIGEST = 13_924_241_962_069_754_241
GOLDEN_UNIFORM = [0.620276690851793, 0.8323536670798166]
