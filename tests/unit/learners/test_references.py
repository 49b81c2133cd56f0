"""Reference arms and the floor: what each is supposed to hold still, and that the floor is a density."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from learners import registry
from learners.arms.frozen import Frozen
from learners.arms.group import LossTotal
from learners.baselines.markov import MarkovCounts
from learners.contract.batch import Batch, Query, TargetKind
from learners.contract.made_up.streams import SECOND, batch_of, random_batch, random_histories, words
from learners.contract.protocol import State
from learners.models.prompttpp.learner import PromptTPP
from learners.models.prompttpp.spec import PromptTPPConfig, finetune_config, slow_config
from learners.registry import build, build_group


def same_bits(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_frozen_reference_learns_as_its_inner_learner_does_and_then_stops() -> None:
    inner, frozen = build("prompttpp", 1), Frozen(build("prompttpp", 1), warmup_events=20)
    for step in range(3):
        batch = random_batch(step, 8, 10)
        assert not frozen.frozen
        assert frozen.learn(batch, frozen.predict(batch.context, batch.query)) == inner.learn(batch)
    kept = frozen.state()
    assert frozen.frozen
    assert same_bits({name: kept[f"inner.{name}"] for name in inner.state()}, inner.state())
    report = frozen.learn(random_batch(9, 8, 10))
    assert report.losses == {}
    assert report.actions == ()
    assert same_bits(frozen.state(), kept)


def test_ticks_do_not_count_as_warm_up() -> None:
    frozen, batch = Frozen(MarkovCounts(), warmup_events=8), random_batch(1, 8, 10)
    frozen.learn(replace(batch, target=replace(batch.target, kind=TargetKind.TICK)))
    assert not frozen.frozen


def test_fine_tuning_has_no_pool_and_is_never_slowed_down() -> None:
    config = PromptTPPConfig(seed=3, hidden=16, learning_rate=0.01)
    tuned, slow = finetune_config(config), slow_config(config)
    assert (tuned.pool, tuned.retrieved, tuned.backbone_factor, tuned.type_factor) == (0, 0, 1.0, 1.0)
    assert (slow.pool, slow.retrieved, slow.backbone_factor) == (0, 0, 0.1)
    assert (tuned.seed, tuned.hidden, tuned.learning_rate) == (3, 16, 0.01)


def test_learners_are_found_by_name_and_a_wrong_name_gets_the_list() -> None:
    assert [build(name).name for name in registry.names()] == list(registry.names())
    assert [registry.build_variant("prompttpp", arm).name for arm in ("finetune", "slow")] == ["finetune", "slow"]
    with pytest.raises(registry.UnknownLearner, match=r"meant: prompttpp.*markov, own_count, prompttpp, risk, "):
        build("promptpp")


def test_baselines_are_variants_or_learners_and_share_options_by_name() -> None:
    arms = {name: build_group(name).arms for name in registry.names()}
    assert list(arms["sdim"]) == ["learner", "reference.sdim_frozen", "reference.sdim_unclocked", "reference.own_count"]
    assert list(arms["prompttpp"]) == ["learner", "reference.frozen", "reference.finetune", "reference.markov"]
    assert list(arms["risk"]) == ["learner", "reference.risk_rate"]
    assert list(arms["markov"]) == ["learner"]
    group = build_group("sdim", last_n=48, width=8)
    assert group.arms["reference.own_count"].needs.last_n == group.needs.last_n == 48
    assert build_group("risk", task="default").arms["reference.risk_rate"].needs.task == "default"


def test_options_are_checked_by_name_and_type() -> None:
    with pytest.raises(registry.BadOption, match=r"no option 'hiden' \(meant: hidden\?\); there are last_n, hidden"):
        build("prompttpp", hiden=64)
    with pytest.raises(registry.BadOption, match=r"Expected `int`, got `str` - at `\$.hidden`"):
        build("prompttpp", hidden="64")
    with pytest.raises(registry.BadOption, match="time_dim must be even and positive, got 3"):
        build("prompttpp", time_dim=3)
    with pytest.raises(registry.BadOption, match="no option 'seed'"):
        registry.spec_of("sdim").configured({"seed": 3}, seed=0)


def test_a_prediction_made_without_gradients_is_learnt_from_all_the_same() -> None:
    left, right, batch = build("prompttpp", 1), build("prompttpp", 1), random_batch(1, 8, 10)
    with torch.no_grad():
        prediction = left.predict(batch.context, batch.query)
        left.score(prediction, batch.target)
    assert left.learn(batch, prediction) == right.learn(batch)
    assert same_bits(left.state(), right.state())


def test_tallies_add_up() -> None:
    total = LossTotal(sum=2.0, count=3) + LossTotal(sum=1.0, count=1)
    assert (total.sum, total.count, total.mean) == (3.0, 4, 0.75)
    assert np.isnan(LossTotal().mean)


def taught_floor(steps: int = 60) -> MarkovCounts:
    floor = MarkovCounts()
    for step in range(steps):
        floor.learn(random_batch(step, 16, 6))
    return floor


def test_the_floor_learns_transitions() -> None:
    floor, batch = taught_floor(), random_batch(999, 64, 6)
    prediction = floor.predict(batch.context, batch.query)
    losses = floor.score(prediction, batch.target)
    best = [prediction.types[column] for column in prediction.type_log_probs.argmax(dim=1).tolist()]
    last = batch.context.type[batch.context.offsets[:-1] + batch.query.visible - 1]
    assert best == [f"type-{(int(str(name)[-1]) + 1) % 5}" for name in last]
    assert float(losses["error"].value.mean()) < 0.35


def test_the_floors_gaps_share_one_unit_of_probability_and_its_quantiles_invert_it() -> None:
    floor, batch = taught_floor(), random_batch(999, 4, 6)
    late = replace(batch.query, now=batch.query.now + 50 * SECOND, quantiles=(0.1, 0.5, 0.9))
    found = floor.predict(batch.context, late).quantiles
    for column, level in enumerate(late.quantiles):
        at = late.now + np.round(found[:, column].numpy() * SECOND).astype(np.int64)
        tick = replace(batch.target, kind=TargetKind.TICK, at=at)
        silence = floor.score(floor.predict(batch.context, late), tick)["survival"].value
        torch.testing.assert_close(silence, torch.full_like(silence, -np.log1p(-level)), rtol=1e-4, atol=1e-6)
    rows, width = 4000, 10
    query = Query(
        stack=np.zeros(rows, dtype=np.int64),
        visible=np.full(rows, 6, dtype=np.int64),
        now=np.full(rows, batch.query.now[0]),
    )
    target = replace(
        batch.target,
        at=query.now + np.arange(1, rows + 1, dtype=np.int64) * width * SECOND,
        type=words(["type-0"] * rows),
        resolution=np.full(rows, width * SECOND),
        timed=np.ones(rows, dtype=np.bool_),
        weight=np.ones(rows),
    )
    mass = torch.exp(-floor.score(floor.predict(batch.context, query), target)["time"].value) * width
    end = replace(target, kind=TargetKind.TICK, at=np.full(rows, target.at[-1]))
    left = torch.exp(-floor.score(floor.predict(batch.context, query), end)["survival"].value[0])
    assert float(mass.sum() + left) == pytest.approx(1.0, abs=1e-9)


def test_the_floors_residuals_are_near_exponential_on_its_own_ground() -> None:
    """Exponential gaps whose mean depends on the last type are what the floor can express."""
    floor = taught_floor(150)
    batch = batch_of(random_histories(77, 40, 31), [(s, v) for s in range(40) for v in range(1, 31)])
    tick = replace(batch.target, kind=TargetKind.TICK)
    residuals = floor.score(floor.predict(batch.context, batch.query), tick)["survival"].value.numpy()
    assert residuals.mean() == pytest.approx(1.0, abs=0.1)
    assert stats.kstest(residuals, "expon").statistic < 0.12


def test_the_model_beats_the_floor_where_gaps_depend_on_more_than_the_last_type() -> None:
    """Gaps alternate between two lengths whatever the type is: only a model of the history sees which."""

    def alternating(seed: int) -> Batch:
        rng = np.random.default_rng(seed)
        histories = random_histories(seed, 16, 13)
        for history in histories:
            slow = (np.arange(13) + rng.integers(2)) % 2 == 0
            gaps = np.where(slow, 900.0, 9.0) * rng.exponential(size=13) * SECOND
            history.at[:] = history.at[0] + np.cumsum(1 + gaps.astype(np.int64))
        return batch_of(histories, [(row, 12) for row in range(16)])

    model = PromptTPP(PromptTPPConfig(learning_rate=0.01, clip_norm=0.2))
    floor = MarkovCounts()
    losses = []
    for step in range(220):
        batch = alternating(step)
        row = []
        for learner in (model, floor):
            prediction = learner.predict(batch.context, batch.query)
            row.append(float(learner.score(prediction, batch.target)["time"].value.mean()))
            learner.learn(batch, prediction)
        losses.append(row)
    mean = np.asarray(losses[160:]).mean(axis=0)
    assert mean[0] < mean[1] - 0.3
