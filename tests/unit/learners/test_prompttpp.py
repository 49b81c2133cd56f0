"""PromptTPP's own properties: the ones its official code breaks, and the ones its mathematics promises."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import ceil

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from learners.blocks.time_features import KNEE, bank
from learners.contract.batch import Batch, Query, TargetKind
from learners.contract.made_up.streams import (
    SECOND,
    MadeUpHistory,
    batch_of,
    context_of,
    random_batch,
    random_histories,
    words,
)
from learners.contract.protocol import ForeignState, State
from learners.models.prompttpp.learner import PromptTPP
from learners.models.prompttpp.network import encode, match_loss, retrieve, states, total_rate
from learners.models.prompttpp.spec import PromptTPPConfig

LENGTHS = [1, 10, 30, 60]


def learner_of(steps: int = 2, **changes: int | float | None) -> PromptTPP:
    defaults: dict[str, int | float | None] = {"seed": 4, "learning_rate": 0.01}
    learner = PromptTPP(PromptTPPConfig(**{**defaults, **changes}))  # type: ignore[arg-type]
    for step in range(steps):
        learner.learn(random_batch(100 + step, 8, 12))
    return learner


def rates(learner: PromptTPP, batch: Batch, since: np.ndarray) -> torch.Tensor:
    """[B, G] total rate per unit at `since` units after each row's last event."""
    with torch.no_grad():
        h = learner._histories(batch.context, batch.query)
        encoding = encode(learner._weights, learner.config, h, torch.from_numpy(h.type))
        return total_rate(learner._weights, states(learner._weights, learner.config, encoding, since))


def silence(learner: PromptTPP, batch: Batch, seconds: torch.Tensor) -> torch.Tensor:
    """[B] compensator over so many seconds from now."""
    at = batch.query.now + np.round(seconds.numpy() * SECOND).astype(np.int64)
    tick = replace(batch.target, kind=TargetKind.TICK, at=at)
    return learner.score(learner.predict(batch.context, batch.query), tick)["survival"].value


def moved(before: State, after: State) -> set[str]:
    return {
        name.removeprefix("weights.")
        for name in before
        if name.startswith("weights.") and not torch.equal(before[name], after[name])
    }


# Causality (spec, 8.1; 5.3 and 5.4 of the official code)


@pytest.mark.parametrize("pool", [0, 10])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_changed_event_leaves_every_earlier_intensity_bit_equal(pool: int, length: int) -> None:
    learner = learner_of(pool=pool, retrieved=pool // 2)
    history = random_histories(9, 1, length + 1)[0]
    batch = batch_of([history], [(0, visible) for visible in range(length + 1)])
    since = np.tile(np.asarray([[0.0, 1e-3, 0.5, 2.0, 30.0]]), (len(batch), 1))
    before = rates(learner, batch, since)
    for changed in {0, length // 2, length - 1}:
        at, types = batch.context.at.copy(), batch.context.type.copy()
        at[changed:] += 17 * SECOND if changed else 0
        types[changed] = "type-3" if types[changed] != "type-3" else "type-1"
        after = rates(learner, replace(batch, context=replace(batch.context, at=at, type=types)), since)
        assert torch.equal(after[: changed + 1], before[: changed + 1])
        assert not torch.equal(after[changed + 1 :], before[changed + 1 :])


@pytest.mark.parametrize("pool", [0, 10])
def test_a_query_time_does_not_reach_the_others(pool: int) -> None:
    learner, batch = learner_of(pool=pool, retrieved=pool // 2), random_batch(5, 4, 10)
    since = np.tile(np.linspace(0.0, 3.0, 7), (4, 1))
    other = since.copy()
    other[:, 3] = 400.0
    left, right = rates(learner, batch, since), rates(learner, batch, other)
    kept = [0, 1, 2, 4, 5, 6]
    assert torch.equal(left[:, kept], right[:, kept])


# Compensators and densities


def test_the_survival_term_is_the_integral_of_the_intensity() -> None:
    learner, batch = learner_of(20), random_batch(6, 6, 30)
    seconds = torch.tensor([1e-3, 3.0, 60.0, 600.0, 7200.0, 1e6], dtype=torch.float64)
    found = silence(learner, batch, seconds)

    for row, end in enumerate((seconds / learner.time_unit_s).tolist()):

        def rate(tau: float, row: int = row) -> float:
            return float(rates(learner, batch, np.full((6, 1), tau))[row, 0])

        knots = [0.0, *(x for x in 10.0 ** np.arange(-4.0, 4.0) if x < end), end]
        exact = sum(integrate.quad(rate, a, b, epsrel=1e-5)[0] for a, b in pairwise(knots))
        assert float(found[row]) == pytest.approx(exact, rel=5e-3)


@pytest.mark.slow
def test_few_nodes_agree_with_two_thousand() -> None:
    learner, batch = learner_of(20), random_batch(6, 32, 30)
    fine = PromptTPP(replace(learner.config, nodes=2000))
    fine._weights, fine._vocabulary, fine._unit = learner._weights, learner._vocabulary, learner._unit
    for gap_s in (0.01, 10.0, 1e3, 1e5):
        seconds = torch.full((32,), gap_s, dtype=torch.float64)
        torch.testing.assert_close(
            silence(learner, batch, seconds), silence(fine, batch, seconds), rtol=1e-3, atol=1e-7
        )


def test_the_densities_of_all_gaps_and_types_integrate_to_one() -> None:
    learner, batch = learner_of(5), random_batch(6, 1, 12)
    width = 20
    at = batch.query.now[0] + np.arange(1, 2001, dtype=np.int64) * width * SECOND
    rows = len(at)
    query = replace(
        batch.query,
        stack=np.zeros(rows, dtype=np.int64),
        visible=np.full(rows, batch.query.visible[0]),
        now=np.full(rows, batch.query.now[0]),
    )
    total = torch.zeros(rows, dtype=torch.float64)
    prediction = learner.predict(batch.context, query)
    for name in prediction.types:
        target = replace(
            batch.target,
            at=at,
            type=words([name] * rows),
            resolution=np.full(rows, width * SECOND),
            timed=np.ones(rows, dtype=np.bool_),
            weight=np.ones(rows),
        )
        losses = learner.score(prediction, target)
        total += torch.exp(-losses["time"].value - losses["type"].value) * width
    left = torch.exp(-silence(learner, batch, torch.tensor([2000.0 * width], dtype=torch.float64)))
    assert float(total.sum() + left[0]) == pytest.approx(1.0, abs=2e-3)


def test_a_fine_clock_is_scored_by_the_plain_density() -> None:
    learner, batch = learner_of(5), random_batch(6, 8, 12)
    gap = (batch.target.at - batch.query.now) / (learner.time_unit_s * SECOND)
    rate = rates(learner, batch, gap[:, None])[:, 0] / learner.time_unit_s
    fine = replace(batch.target, resolution=np.ones(8, dtype=np.int64))
    time = learner.score(learner.predict(batch.context, batch.query), fine)["time"].value
    gaps_s = torch.from_numpy(gap * learner.time_unit_s)
    torch.testing.assert_close(time, silence(learner, batch, gaps_s) - rate.log(), rtol=1e-4, atol=1e-5)


# Predictions


def test_quantiles_invert_the_compensator_given_silence_until_now() -> None:
    learner, batch = learner_of(20), random_batch(6, 16, 30)
    for waited in (0, 1, 3600, 10**6):
        late = replace(batch, query=replace(batch.query, now=batch.query.now + waited * SECOND))
        levels = (0.01, 0.1, 0.5, 0.9, 0.999)
        found = learner.predict(late.context, replace(late.query, quantiles=levels)).quantiles
        for column, level in enumerate(levels):
            expected = torch.full((16,), -np.log1p(-level), dtype=torch.float64)
            torch.testing.assert_close(silence(learner, late, found[:, column]), expected, rtol=5e-3, atol=1e-5)


def test_sampled_gaps_have_exponential_compensators() -> None:
    learner, batch = learner_of(20), random_batch(6, 1, 30)
    draws = learner.sample(batch.context, batch.query, 600, torch.Generator().manual_seed(1))[0]
    rows = len(draws)
    query = replace(
        batch.query,
        stack=np.zeros(rows, dtype=np.int64),
        visible=np.full(rows, batch.query.visible[0]),
        now=np.full(rows, batch.query.now[0]),
    )
    integrated = silence(learner, replace(batch, query=query), draws)
    assert stats.kstest(integrated.numpy(), "expon").pvalue > 0.01


def test_marginal_types_are_the_average_over_sampled_times() -> None:
    learner, batch = learner_of(30), random_batch(6, 1, 30)
    draws = learner.sample(batch.context, batch.query, 2000, torch.Generator().manual_seed(2))[0]
    rows = len(draws)
    query = Query(
        stack=np.zeros(rows, dtype=np.int64),
        visible=np.full(rows, batch.query.visible[0]),
        now=np.full(rows, batch.query.now[0]),
    )
    at = query.now + np.round(draws.numpy() * SECOND).astype(np.int64)
    prediction = learner.predict(batch.context, query)
    for column, name in enumerate(prediction.types):
        target = replace(
            batch.target,
            at=at,
            type=words([name] * rows),
            resolution=np.ones(rows, dtype=np.int64),
            timed=np.ones(rows, dtype=np.bool_),
            weight=np.ones(rows),
        )
        given = torch.exp(-learner.score(prediction, target)["type"].value)
        error = 4 * float(given.std()) / rows**0.5 + 2e-3
        assert float(prediction.type_log_probs[0, column].exp()) == pytest.approx(float(given.mean()), abs=error)


def test_a_quantile_outside_the_unit_interval_is_refused() -> None:
    learner, batch = learner_of(0), random_batch(6, 2, 5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        learner.predict(batch.context, replace(batch.query, quantiles=(1.0,)))


# Retrieval


def test_retrieval_is_brute_force_cosine() -> None:
    rng = np.random.default_rng(0)
    query = torch.from_numpy(rng.normal(size=(5, 7, 11)).astype(np.float32))
    keys = torch.from_numpy(rng.normal(size=(2, 10, 11)).astype(np.float32))
    chosen = retrieve(query, keys, 4)
    assert chosen.shape == (5, 7, 2, 10)
    for place in np.ndindex(5, 7, 2):
        q, k = query[place[0], place[1]].double(), keys[place[2]].double()
        cosine = (k @ q) / (k.norm(dim=-1) * q.norm())
        assert set(cosine.topk(4).indices.tolist()) == set(chosen[place].nonzero().flatten().tolist())


def test_of_equal_keys_the_first_are_retrieved_and_scaling_a_key_changes_nothing() -> None:
    query, keys = torch.ones(1, 4), torch.ones(1, 6, 4)
    assert retrieve(query, keys, 2)[0, 0].tolist() == [True, True, *[False] * 4]
    rng = np.random.default_rng(1)
    query = torch.from_numpy(rng.normal(size=(50, 8)).astype(np.float32))
    keys = torch.from_numpy(rng.normal(size=(1, 10, 8)).astype(np.float32))
    scale = torch.from_numpy(rng.uniform(0.1, 9.0, size=(1, 10, 1)).astype(np.float32))
    assert torch.equal(retrieve(query, keys, 3), retrieve(query, keys * scale, 3))
    assert bool(retrieve(query, keys, 10).all())


def test_without_prompts_there_is_exactly_the_backbone() -> None:
    bare, none = learner_of(0, pool=0, retrieved=0), learner_of(0, pool=10, retrieved=0)
    assert not any("pool" in name for name in bare.state())
    batch = random_batch(6, 8, 20)
    for _ in range(2):
        left, right = (one.predict(batch.context, batch.query).type_log_probs for one in (bare, none))
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)
        for one in (bare, none):
            one.learn(batch)


def test_a_retrieved_prompt_changes_the_answer_and_another_does_not() -> None:
    learner, batch = learner_of(3, retrieved=2), random_batch(6, 1, 20)
    since = np.asarray([[0.5]])
    before, state = rates(learner, batch, since), learner.state()
    h = learner._histories(batch.context, batch.query)
    chosen = encode(learner._weights, learner.config, h, torch.from_numpy(h.type)).chosen
    assert chosen is not None
    last = chosen[0, -1]
    for prompt in range(10):
        changed = {name: tensor.clone() for name, tensor in state.items()}
        changed["weights.pool.prompt"][-1, :, prompt] += 1.0
        other = learner_of(0, retrieved=2)
        other.load(changed)
        assert torch.equal(rates(other, batch, since), before) is not bool(last[prompt])


# Schedule and gradients (spec, 8.1; 5.1 of the official code)


@pytest.mark.parametrize("refresh_every", [1, 2, 3, 5])
def test_the_pool_moves_on_every_cth_step_and_the_backbone_on_each(refresh_every: int) -> None:
    learner, moves = learner_of(1, refresh_every=refresh_every), []
    steps = 7
    for step in range(1, steps):
        before = learner.state()
        learner.learn(random_batch(step, 8, 12))
        changed = moved(before, learner.state())
        assert {"qkv", "rate", "out", "type"} <= changed
        moves.append({"pool.key", "pool.prompt"} <= changed)
        assert moves[-1] is (step % refresh_every == 0)
    assert 1 + sum(moves) == ceil(steps / refresh_every)


def test_a_frozen_backbone_stands_still_while_the_pool_moves() -> None:
    learner = learner_of(1, warmup_events=8, backbone_factor=0.0, type_factor=0.0, refresh_every=1)
    before = learner.state()
    for step in range(4):
        learner.learn(random_batch(step, 8, 12))
    assert moved(before, learner.state()) == {"pool.key", "pool.prompt"}


def test_the_backbone_slows_down_after_the_warm_up() -> None:
    fast, slow = learner_of(1, warmup_events=10**9), learner_of(1, warmup_events=8)
    start = fast.state()["weights.qkv"]
    assert torch.equal(start, slow.state()["weights.qkv"])
    for one in (fast, slow):
        one.learn(random_batch(3, 8, 12))
    steps = [one.state()["weights.qkv"] - start for one in (fast, slow)]
    torch.testing.assert_close(steps[1], steps[0] * 0.1, rtol=1e-3, atol=1e-7)


def test_gradients_reach_only_the_retrieved_prompts() -> None:
    """Users of one event, so that what the rows retrieve is all that was retrieved."""
    learner = learner_of(0, retrieved=2)
    learner.learn(batch_of(random_histories(3, 12, 2), [(user, 1) for user in range(12)]))
    state = learner.state()
    touched = state["moments.pool.prompt.v"].sum(dim=(1, 3, 4)) > 0  # [layers, M]
    used = learner.usage > 0
    assert torch.equal(touched[-1], used[-1])
    assert not bool(used.all())
    keys = state["moments.pool.key.v"].sum(dim=-1) > 0
    assert torch.equal(keys, used)


def test_the_match_loss_draws_chosen_keys_to_their_queries_and_moves_nothing_else() -> None:
    learner = learner_of(1, warmup_events=8, backbone_factor=0.0, type_factor=0.0, refresh_every=1, match_weight=1.0)
    batch = random_batch(3, 8, 12)
    losses = [learner.learn(batch).losses["match"] for _ in range(40)]
    assert losses[-1] < losses[0] - 0.02

    generator = torch.Generator().manual_seed(1)
    query, keys = torch.randn(6, 5, generator=generator), torch.randn(2, 4, 5, generator=generator).requires_grad_()
    chosen = retrieve(query, keys, 2)
    (gradient,) = torch.autograd.grad(match_loss(query, keys, chosen), keys)
    assert torch.equal(gradient.abs().sum(-1) > 0, chosen.any(dim=0))


def test_usage_counts_what_rows_retrieve() -> None:
    learner = learner_of(50)
    assert learner.usage.shape == (2, 10)
    share = learner.usage.sum(dim=1) / (1 - 0.99**50)
    torch.testing.assert_close(share, torch.full((2,), 5.0), rtol=1e-4, atol=0)


# Types, time unit, state


def test_a_new_type_starts_where_its_name_says_whatever_came_before() -> None:
    first, second = learner_of(0), learner_of(0)
    histories = [
        MadeUpHistory(at=np.arange(3, dtype=np.int64) * SECOND, type=words(names))
        for names in (["a", "b", "c"], ["c", "b", "a"])
    ]
    for learner, history in zip((first, second), histories, strict=True):
        batch = batch_of([history], [(0, 2)])
        learner.learn(replace(batch, target=replace(batch.target, weight=np.zeros(1))))
    left, right = first.state(), second.state()
    for table in ("weights.type", "weights.out"):
        assert torch.equal(left[table][1], right[table][3])
        assert torch.equal(left[table][3], right[table][1])
        assert not torch.equal(left[table][1], left[table][3])


def test_tables_grow_and_an_evicted_type_leaves_no_trace() -> None:
    learner = learner_of(0, max_types=70)
    many = MadeUpHistory(at=np.arange(72, dtype=np.int64) * SECOND, type=words([f"t{i}" for i in range(72)]))
    report = learner.learn(batch_of([many], [(0, 69)]))
    assert len(learner.state()["weights.out"]) == 128
    assert report.actions == ("type 't0' gave its row to 't70'", "type 't1' gave its row to 't71'")
    state = learner.state()
    for name, tensor in state.items():
        if name.startswith(("moments.out", "moments.type")):
            assert not bool(tensor[1:3].any()), name
    prediction = learner.predict(context_of([many]), batch_of([many], [(0, 69)]).query)
    assert prediction.types[0] == "t70"
    assert len(prediction.types) == 71


def test_the_time_unit_is_the_geometric_mean_of_the_first_gaps() -> None:
    learner = learner_of(0)
    batch = random_batch(3, 8, 12)
    learner.learn(batch)
    gaps = (batch.target.at - batch.query.now) * 1e-6
    assert learner.time_unit_s == pytest.approx(float(np.exp(np.log(gaps).mean())))
    for step in range(40):
        learner.learn(random_batch(step, 8, 12))
    unit = learner.time_unit_s
    learner.learn(random_batch(99, 8, 12))
    assert learner.time_unit_s == unit
    assert learner_of(3, time_unit_s=7.0).time_unit_s == 7.0


def test_only_every_fourth_step_learns_events_as_unknown() -> None:
    always, never = learner_of(0, unknown_rate=0.25), learner_of(0, unknown_rate=0.0)
    for step in range(4):
        for one in (always, never):
            one.learn(random_batch(step, 8, 12))
        same = torch.equal(always.state()["weights.qkv"], never.state()["weights.qkv"])
        assert same is (step < 3)
    assert not torch.equal(always.state()["weights.type"][0], never.state()["weights.type"][0])


def test_a_restored_state_has_every_tensor_and_the_same_next_loss() -> None:
    learner, heir = learner_of(3), learner_of(0)
    state = learner.state()
    assert len(state) == EXPECTED_TENSORS
    heir.load(state)
    assert sum(torch.equal(tensor, state[name]) for name, tensor in heir.state().items()) == len(state)
    batch = random_batch(5, 8, 12)
    assert heir.learn(batch) == learner.learn(batch)


EXPECTED_TENSORS = 42
"""meta, vocabulary, unit; weights; one sum for the type table and two moments for each other; the rest."""


def test_a_state_of_another_configuration_is_refused_by_name() -> None:
    learner = learner_of(1, hidden=16)
    with pytest.raises(ForeignState, match="hidden: state 32, own 16"):
        learner.load(learner_of(1).state())
    with pytest.raises(ForeignState, match="not a state of finetune"):
        PromptTPP(learner_of(0).config, name="finetune").load(learner_of(1).state())


def test_the_forward_pass_keeps_to_the_device_it_is_given() -> None:
    """On "meta", which computes nothing, but refuses to mix devices as a GPU does."""
    learner, batch, meta = learner_of(2), random_batch(5, 8, 12), torch.device("meta")
    weights = {name: tensor.to(meta) for name, tensor in learner._weights.items()}
    h = learner._histories(batch.context, batch.query)
    encoding = encode(weights, learner.config, h.to(meta), torch.from_numpy(h.type).to(meta))
    rate = total_rate(weights, states(weights, learner.config, encoding, np.ones((8, 5))))
    assert rate.shape == (8, 5)
    assert rate.device == meta
    before = learner.predict(batch.context, batch.query).type_log_probs
    moved_here = learner.to(torch.device("cpu"))
    assert torch.equal(moved_here.predict(batch.context, batch.query).type_log_probs, before)


def test_marginal_types_agree_with_a_fine_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, batch = learner_of(60), random_batch(6, 32, 30)
    for waited in (0, 300, 5000):
        late = replace(batch.query, now=batch.query.now + waited * SECOND)
        coarse = learner.predict(batch.context, late).type_log_probs.exp()
        with monkeypatch.context() as patch:
            fine = np.concatenate([[0.0], 10.0 ** np.linspace(-5, 4, 400)])
            patch.setattr("learners.models.prompttpp.learner.TYPE_EDGES", fine)
            exact = learner.predict(batch.context, late).type_log_probs.exp()
        torch.testing.assert_close(coarse, exact, rtol=0, atol=5e-4)


def test_an_old_prediction_is_not_scored_with_new_weights() -> None:
    learner, batch = learner_of(1), random_batch(5, 8, 12)
    prediction = learner.predict(batch.context, batch.query)
    learner.learn(batch, prediction)
    with pytest.raises(ValueError, match="weights it has now"):
        learner.score(prediction, batch.target)


def test_rows_without_weight_teach_nothing() -> None:
    learner, batch = learner_of(2), random_batch(5, 8, 12)
    before = learner.state()
    silent = replace(batch, target=replace(batch.target, weight=np.zeros(8)))
    fresh = PromptTPP(learner.config)
    fresh.load(before)
    assert fresh.learn(silent).losses.keys() >= {"time", "type", "survival"}
    half = replace(batch, target=replace(batch.target, weight=np.full(8, 0.5)))
    assert learner.learn(half).losses["time"] == fresh_loss(before, learner.config, batch)


def fresh_loss(state: State, config: PromptTPPConfig, batch: Batch) -> float:
    learner = PromptTPP(config)
    learner.load(state)
    return learner.learn(batch).losses["time"]


def test_a_gradient_that_is_not_finite_moves_nothing_and_is_reported() -> None:
    learner, batch = learner_of(2), random_batch(5, 8, 12)
    before = learner.state()
    poisoned = replace(batch, target=replace(batch.target, weight=np.full(8, np.inf)))
    report = learner.learn(poisoned)
    assert report.actions == ("a gradient was not finite: no weight moved",)
    assert moved(before, learner.state()) == set()
    assert learner.learn(batch).actions == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"time_dim": 3}, "time_dim must be even"),
        ({"pool": 3, "retrieved": 4}, "between 0 and pool"),
    ],
)
def test_a_wrong_configuration_says_what_is_wrong(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptTPPConfig(**changes)


def test_the_bank_is_zero_at_zero_and_one_far_away() -> None:
    features = bank(np.asarray([0.0, KNEE, 1e9]))
    assert features.shape == (3, 12)
    assert not bool(features[0].any())
    assert float(features[1, 0]) == 0.5
    torch.testing.assert_close(features[2], torch.ones(12), atol=1e-5, rtol=0)


def test_it_learns_types_and_gaps_of_a_stream() -> None:
    """A first half teaches, a second half is only scored: below the marginal entropy and the Poisson loss."""
    learner = learner_of(0, learning_rate=0.005)
    for step in range(80):
        learner.learn(random_batch(step, 32, 16))
    batch = random_batch(1000, 64, 16)
    losses = learner.score(learner.predict(batch.context, batch.query), batch.target)
    gaps = (batch.target.at - batch.query.now) * 1e-6
    assert float(losses["type"].value.mean()) < 1.0 < np.log(5)
    assert float(losses["error"].value.mean()) < 0.35
    assert float(losses["time"].value.mean()) < np.log(gaps.mean()) + 1.0
