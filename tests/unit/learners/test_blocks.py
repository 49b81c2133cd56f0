"""Blocks against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from learners.blocks.interval import interval_nll, tick_of
from learners.blocks.optimizers import adam, clip, row_adagrad
from learners.blocks.padding import bucket, last_at, pad
from learners.blocks.quadrature import log_rule
from learners.blocks.thinning import BoundExceeded, next_times
from learners.contract.batch import Floats
from learners.contract.made_up.streams import SECOND, START, batch_of, hawkes, random_histories

KNEE = 4.0**-6


def test_the_rule_meets_the_closed_form_of_hawkes_compensators() -> None:
    """mu T + a / b sum (1 - exp(-b (T - t_i))), cut at the events; 20 nodes a gap, as the spec asks."""
    mu, jump, decay = 0.2, 0.8, 1.0
    for seed in range(5):
        times = np.asarray(hawkes(np.random.default_rng(seed), mu=mu, jump=jump, decay=decay, horizon=100.0))
        gaps, excited, total = np.diff(times), jump, 0.0
        for gap in gaps:
            nodes, weights = log_rule(np.zeros(1), np.asarray([gap]), nodes=20, knee=KNEE)
            total += float(((mu + excited * np.exp(-decay * nodes)) * weights).sum())
            excited = excited * np.exp(-decay * gap) + jump
        end, begin = times[-1], times[0]
        exact = mu * (end - begin) + jump / decay * (1.0 - np.exp(-decay * (end - times))).sum()
        assert total == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("gap", [1e-9, 1e-3, 0.3, 5.0, 400.0])
@pytest.mark.parametrize("start", [0.0, 0.2, 50.0])
def test_the_rule_meets_adaptive_quadrature_on_hawkes_like_rates(gap: float, start: float) -> None:
    def rate(tau: Floats) -> Floats:
        return np.asarray(0.2 + 3.0 * np.exp(-2.0 * tau) + 0.8 * np.exp(-0.1 * tau))

    nodes, weights = log_rule(np.asarray(start), np.asarray(gap), nodes=20, knee=KNEE)
    exact = integrate.quad(rate, start, start + gap, epsabs=0, epsrel=1e-11, limit=400)[0]
    assert float((rate(nodes) * weights).sum()) == pytest.approx(exact, rel=5e-3)


def test_a_microsecond_behind_ten_years_keeps_its_width() -> None:
    _, weights = log_rule(np.asarray([3.2e14]), np.asarray([1.0]), nodes=3, knee=KNEE)
    assert weights.sum() == pytest.approx(1.0, rel=1e-12)


def test_the_intervals_of_recorded_gaps_share_one_unit_of_probability() -> None:
    ticks, rate, width = np.arange(1, 4000, dtype=np.int64) * SECOND, 0.01, 1.0
    now = np.full(len(ticks), START)
    lo, hi = tick_of(now, START + ticks, np.full(len(ticks), SECOND))
    assert (hi - lo == SECOND).all()
    before = torch.from_numpy((lo - now) * 1e-6 * rate)
    inside = torch.full((len(ticks),), rate * width, dtype=torch.float64)
    nll = interval_nll(before, inside, torch.full((len(ticks),), width, dtype=torch.float64))
    assert float((-nll).exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_a_fine_clock_gives_the_plain_density() -> None:
    rate, gap, width = 0.37, 12.0, 1e-6
    nll = interval_nll(*(torch.tensor([x], dtype=torch.float64) for x in (rate * gap, rate * width, width)))
    assert float(nll) == pytest.approx(rate * gap - np.log(rate), rel=1e-6)


def test_ticks_are_cut_at_now_and_never_empty() -> None:
    now = np.asarray([100, 100, 100, 100], dtype=np.int64)
    at = np.asarray([150, 103, 100, 90], dtype=np.int64)
    lo, hi = tick_of(now, at, np.full(4, 10, dtype=np.int64))
    assert lo.tolist() == [140, 100, 100, 100]
    assert hi.tolist() == [150, 103, 110, 110]


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0, 2.0])
def test_thinning_a_constant_rate_gives_its_mean_gap(rate: float) -> None:
    generator = torch.Generator().manual_seed(3)
    gaps = next_times(lambda t: torch.full_like(t, rate), 2, 4000, generator=generator, window=1 / 16)
    assert float(gaps.mean()) == pytest.approx(1 / rate, abs=3 / rate / 8000**0.5)


def test_thinning_probes_ahead_of_a_step() -> None:
    """Rate 1 until time 1, then 20: mean 1 - 1/e + 1/(20 e) = .651 (the official bound gives 1.014)."""
    generator = torch.Generator().manual_seed(4)
    gaps = next_times(lambda t: torch.where(t < 1.0, 1.0, 20.0).double(), 1, 20_000, generator=generator, window=0.1)
    assert float(gaps.mean()) == pytest.approx(0.651, abs=3 * float(gaps.std()) / 20_000**0.5)


def test_thinned_gaps_have_exponential_compensators() -> None:
    generator = torch.Generator().manual_seed(5)
    gaps = next_times(lambda t: 0.3 + 2.0 * torch.exp(-t), 1, 5000, generator=generator, window=1 / 16).flatten()
    integrated = 0.3 * gaps + 2.0 * (1 - torch.exp(-gaps))
    assert stats.kstest(integrated.numpy(), "expon").pvalue > 0.01


def test_a_rate_above_its_bound_is_an_error() -> None:
    def spiked(t: torch.Tensor) -> torch.Tensor:
        return torch.where((t - 0.5).abs() < 0.02, 1000.0, 0.1).double()

    with pytest.raises(BoundExceeded):
        next_times(spiked, 1, 5000, generator=torch.Generator().manual_seed(6), window=4.0, probes=4)


def test_adam_takes_the_steps_of_the_textbook_one() -> None:
    start = torch.tensor([1.0, -2.0, 3.0])
    own, theirs = start.clone(), start.clone().requires_grad_()
    moments = {"w.m": torch.zeros(3), "w.v": torch.zeros(3)}
    textbook = torch.optim.Adam([theirs], lr=0.1)
    for step in range(1, 6):
        gradient = torch.tensor([0.3, -0.1, float(step)])
        adam({"w": own}, {"w": gradient}, moments, step=step, rates={"w": 0.1})
        theirs.grad = gradient.clone()
        textbook.step()
    torch.testing.assert_close(own, theirs.detach())


def test_row_adagrad_moves_touched_rows_alone() -> None:
    table, sums = torch.ones(3, 4), torch.zeros(3)
    for _ in range(3):
        gradient = torch.zeros(3, 4)
        gradient[1] = 2.0
        row_adagrad(table, gradient, sums, rate=0.1)
    assert torch.equal(table[0], torch.ones(4))
    assert torch.equal(table[2], torch.ones(4))
    assert float(table[1, 0]) == pytest.approx(1 - 0.1 * (1 + 2**-0.5 + 3**-0.5), rel=1e-6)


def test_clipping_bounds_the_joint_norm() -> None:
    gradients = [torch.full((4,), 3.0), torch.full((9,), 4.0)]
    assert clip(gradients, 1.0) == pytest.approx((36 + 144) ** 0.5)
    assert sum(float(gradient.square().sum()) for gradient in gradients) == pytest.approx(1.0)
    assert clip([], 1.0) == 0.0


def test_padding_rebases_each_stack_and_leaves_out_what_nobody_sees() -> None:
    batch = batch_of(random_histories(1, 2, 20), [(0, 3), (0, 9), (1, 0)])
    padded = pad(batch.context, batch.query)
    assert padded.at.shape == (2, 16)
    assert padded.real.sum(axis=1).tolist() == [9, 0]
    assert padded.at[:, 0].tolist() == [0, 0]
    assert (padded.at[0, :9] == batch.context.at[:9] - batch.context.at[0]).all()
    assert last_at(batch.context, batch.query).tolist() == batch.query.now.tolist()


def test_there_are_few_padded_lengths() -> None:
    assert [bucket(length) for length in (0, 1, 8, 9, 64, 65, 128, 129, 1000)] == [
        *(8, 8, 8, 16, 64, 72, 128, 256, 1024)
    ]
