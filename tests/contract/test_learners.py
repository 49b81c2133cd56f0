"""What every learner and every reference keeps, whatever it computes (`learners/contract/protocol.py`).

Bit equality is asked for at equal shapes; where shapes differ (batch mates, padding) 1e-6 is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from learners import registry
from learners.arms.frozen import Frozen
from learners.baselines.counterparty_features import FEATURES, without_features
from learners.contract.batch import Batch, Candidates, Drawn, Query, Subject, TargetKind
from learners.contract.made_up import streams
from learners.contract.made_up.streams import SECOND, START, MadeUpHistory, context_of, random_histories, words
from learners.contract.needs import TaskKind
from learners.contract.protocol import ForeignState, Learner, Losses, Prediction, ServingOnly, State
from learners.contract.spec import options_of
from learners.contract.state_codec import from_json_tensor
from learners.models.sdim.learner import SDIM
from learners.registry import build, build_group
from learners.tasks.ranking import Ranking, RankingConfig

QUANTILES = (0.1, 0.5, 0.9)
YEAR = 365 * 86_400 * SECOND


SMALL: dict[TaskKind, dict[str, int]] = {
    "next_event": {"warmup_events": 24},
    "ranking": {"warmup_events": 24, "publish_every": 2, "width": 8, "bits": 12, "short_n": 4, "last_n": 64},
    "outcome": {"last_n": 16},
}
"""Options, where a learner has them, with which a warm-up ends within a test's few steps."""


def arms(kind: TaskKind | None = None) -> list[str]:
    """All learners that are installed, and their variants: "learner" or "learner:variant"."""
    learners = [name for name in registry.names() if kind in (None, *(task.kind for task in registry.tasks_of(name)))]
    return [*learners, *(f"{name}:{variant}" for name in learners for variant in registry.arms_of(name))]


@pytest.fixture(autouse=True)
def one_deterministic_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(params=arms())
def make(request: pytest.FixtureRequest) -> Callable[[], Learner]:
    """Builds equal, fresh learners; the warm-up ends, and what ranks publishes, within a test's few steps."""
    return builder(request.param)


@pytest.fixture(params=arms("next_event"))
def make_next(request: pytest.FixtureRequest) -> Callable[[], Learner]:
    """The same of those that say when and what next."""
    return builder(request.param)


@pytest.fixture(params=arms("ranking"))
def make_ranker(request: pytest.FixtureRequest) -> Callable[[], Learner]:
    """The same of those that rank."""
    return builder(request.param)


@pytest.fixture(params=arms("outcome"))
def make_outcome(request: pytest.FixtureRequest) -> Callable[[], Learner]:
    """The same of those that predict what comes of a payment."""
    return builder(request.param)


def builder(name: str) -> Callable[[], Learner]:
    learner, _, variant = name.partition(":")
    known = options_of(registry.spec_of(learner).config)
    options = {option: value for option, value in SMALL[registry.tasks_of(learner)[0].kind].items() if option in known}
    if variant:
        return lambda: registry.build_variant(learner, variant, 3, **options)
    return lambda: build(learner, 3, **options)


@cache
def catalogue() -> Ranking:
    """Knows the items of `named`, some more frequent than others."""
    ranking = Ranking(RankingConfig(seed=5, negatives=4))
    for step in range(4):
        ranking.learn(named(streams.random_batch(step, 12, 3)))
    return ranking


def items_of(types: Any, keys: Any) -> Any:
    return words([f"{name}/{key % 3}" for name, key in zip(types, keys, strict=True)])


def named(batch: Batch) -> Batch:
    """With what learners read beyond times and types: users and items, money and who got it, and outcomes."""
    shops = [f"shop {key % 4}" for key in batch.context.key]
    return replace(
        batch,
        context=replace(
            batch.context,
            item=items_of(batch.context.type, batch.context.key),
            kind=words(["payment" if key % 3 else "user" for key in batch.context.key]),
            amount=batch.context.key % 977 * 10**6,
            other=words(shops),
        ),
        query=replace(
            batch.query,
            user=words([f"user {stack}" for stack in batch.query.stack]),
            subject=subjects(batch.origin.key),
        ),
        target=replace(
            batch.target,
            item=items_of(batch.target.type, batch.origin.key),
            y=(batch.origin.key % 3 == 0).astype(float),
        ),
        origin=replace(batch.origin, newest=np.ones(len(batch), dtype=np.bool_)),
    )


def subjects(keys: Any) -> Subject:
    """Payments, and what was known of their parties."""
    subject = without_features((keys % 977 * 10**6).tolist(), [f"shop {key % 4}" for key in keys])
    return replace(subject, features=np.outer(keys % 5, np.linspace(-1.0, 1.0, FEATURES)))


def batch_of(
    histories: list[MadeUpHistory], rows: list[tuple[int, int]], *, resolution: int = 1, first_key: int = 0
) -> Batch:
    return catalogue().ask(named(streams.batch_of(histories, rows, resolution=resolution, first_key=first_key)))


def random_batch(seed: int, rows: int, length: int) -> Batch:
    return catalogue().ask(named(streams.random_batch(seed, rows, length)))


def take(batch: Batch, rows: list[int]) -> Batch:
    """Some rows of a batch, the context whole."""
    index = np.asarray(rows, dtype=np.int64)

    def cut(part: Any) -> Any:
        fields = {name: value[index] for name, value in vars(part).items() if isinstance(value, np.ndarray)}
        return replace(part, **fields)

    query = cut(batch.query)
    if query.candidates is not None:
        query = replace(query, candidates=cut(query.candidates))
    if query.subject is not None:
        query = replace(query, subject=cut(query.subject))
    return replace(batch, query=query, target=cut(batch.target), origin=cut(batch.origin))


def shared_batch(seed: int = 0, *, users: int = 3, length: int = 12) -> Batch:
    """Users with several rows each, an empty history among them."""
    histories = random_histories(seed, users, length)
    rows = [(user, visible) for user in range(users) for visible in (0, 1, length // 2, length - 2)]
    return batch_of(histories, rows, resolution=SECOND, first_key=100 * seed)


def asked(batch: Batch) -> Query:
    return replace(batch.query, quantiles=QUANTILES)


def taught(make: Callable[[], Learner], steps: int = 3) -> Learner:
    learner = make()
    for step in range(steps):
        learner.learn(shared_batch(step))
    return learner


def answers(prediction: Prediction) -> dict[str, torch.Tensor]:
    more = {"logits": prediction.logits, "risk": prediction.risk}
    given = {name: answer for name, answer in more.items() if answer is not None}
    return {"quantiles": prediction.quantiles, "types": prediction.type_log_probs, **given}


def same_bits(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def values(losses: Losses) -> State:
    return {name: loss.value for name, loss in losses.items()}


def finite(*states: State) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for state in states for tensor in state.values())


def whole_step(learner: Learner, batch: Batch) -> tuple[State, State]:
    prediction = learner.predict(batch.context, asked(batch))
    losses = learner.score(prediction, batch.target)
    learner.learn(batch, prediction)
    return answers(prediction), values(losses)


def test_a_prediction_has_the_shapes_and_types_it_promises(make_next: Callable[[], Learner]) -> None:
    learner, batch = taught(make_next), shared_batch(5)
    prediction = learner.predict(batch.context, asked(batch))
    assert prediction.quantiles.shape == (len(batch), 3)
    assert prediction.quantiles.dtype == prediction.type_log_probs.dtype == torch.float64
    assert prediction.type_log_probs.shape == (len(batch), len(prediction.types))
    total = prediction.type_log_probs.exp().sum(dim=1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)
    assert bool((prediction.quantiles.diff(dim=1) >= 0).all())
    assert bool((prediction.quantiles >= 0).all())
    assert set(prediction.types[:-1]) == {f"type-{kind}" for kind in range(5)}


def test_asking_for_no_quantiles_gives_the_same_types(make_next: Callable[[], Learner]) -> None:
    learner, batch = taught(make_next), shared_batch(5)
    without = learner.predict(batch.context, batch.query)
    assert without.quantiles.shape == (len(batch), 0)
    assert torch.equal(without.type_log_probs, learner.predict(batch.context, asked(batch)).type_log_probs)


def test_every_loss_has_a_value_and_a_mask_for_each_row(make_next: Callable[[], Learner]) -> None:
    learner, batch = taught(make_next), shared_batch(5)
    losses = learner.score(learner.predict(batch.context, batch.query), batch.target)
    assert set(losses) == {"time", "type", "error", "survival"}
    for loss in losses.values():
        assert loss.value.shape == loss.mask.shape == (len(batch),)
        assert loss.value.dtype == torch.float64
        assert not bool(loss.value[~loss.mask].any())
    assert losses["time"].mask.tolist() == batch.target.timed.tolist()
    assert bool(losses["type"].mask.all())
    assert not bool(losses["survival"].mask.any())


def test_permuting_the_targets_leaves_predictions_bit_equal(make: Callable[[], Learner]) -> None:
    learner, batch = taught(make), shared_batch(5)
    before = answers(learner.predict(batch.context, asked(batch)))
    order = np.random.default_rng(0).permutation(len(batch))
    shuffled = replace(take(batch, order.tolist()).target, kind=batch.target.kind)
    learner.score(learner.predict(batch.context, batch.query), shuffled)
    assert same_bits(answers(learner.predict(batch.context, asked(batch))), before)


def test_changing_what_lies_behind_the_row_leaves_predictions_bit_equal(make: Callable[[], Learner]) -> None:
    learner, batch = taught(make), shared_batch(5)
    before = answers(learner.predict(batch.context, asked(batch)))
    context, rng = batch.context, np.random.default_rng(1)
    for row in range(len(batch)):
        stack, visible = int(batch.query.stack[row]), int(batch.query.visible[row])
        hidden = np.arange(context.offsets[stack] + visible, context.offsets[stack + 1])
        at, keys = context.at.copy(), context.key.copy()
        types, kinds, roles, items = (getattr(context, name).copy() for name in ("type", "kind", "role", "item"))
        at[hidden] = at[hidden] + np.sort(rng.integers(YEAR, size=len(hidden)))
        types[hidden] = words([f"type-{kind}" for kind in rng.integers(7, size=len(hidden))])
        kinds[hidden], roles[hidden], keys[hidden] = "relation", "counterpart", 5
        items[hidden] = items[rng.integers(len(items), size=len(hidden))]
        changed = replace(context, at=at, type=types, item=items, kind=kinds, role=roles, key=keys)
        after = answers(learner.predict(changed, asked(batch)))
        assert all(torch.equal(after[name][row], before[name][row]) for name in before)


def test_batch_mates_do_not_matter(make: Callable[[], Learner]) -> None:
    learner, batch = taught(make), shared_batch(5)
    together = learner.predict(batch.context, asked(batch))
    losses = values(learner.score(together, batch.target))
    for row in range(len(batch)):
        one = take(batch, [row])
        alone = learner.predict(batch.context, asked(one))
        for name, answer in answers(alone).items():
            torch.testing.assert_close(answer[0], answers(together)[name][row], rtol=1e-5, atol=1e-6)
        for name, value in values(learner.score(alone, one.target)).items():
            torch.testing.assert_close(value[0], losses[name][row], rtol=1e-6, atol=2e-6)


def test_padding_does_not_matter(make: Callable[[], Learner]) -> None:
    learner = taught(make)
    short, long = random_histories(7, 1, 7), random_histories(8, 1, 60)
    alone = batch_of(short, [(0, 6)])
    padded = batch_of([*short, *long], [(0, 6), (1, 50)])
    left = answers(learner.predict(alone.context, asked(alone)))
    right = answers(learner.predict(padded.context, asked(padded)))
    for name, answer in left.items():
        torch.testing.assert_close(answer[0], right[name][0], rtol=1e-5, atol=1e-6)


def test_a_serving_state_answers_like_the_state(make: Callable[[], Learner]) -> None:
    learner, batch = taught(make), shared_batch(5)
    full, serving = make(), make()
    full.load(learner.state())
    serving.load(learner.serving_state())
    expected = answers(learner.predict(batch.context, asked(batch)))
    assert same_bits(answers(full.predict(batch.context, asked(batch))), expected)
    assert same_bits(answers(serving.predict(batch.context, asked(batch))), expected)
    assert same_bits(serving.serving_state(), learner.serving_state())


def test_a_serving_state_without_optimizer_refuses_to_learn(make: Callable[[], Learner]) -> None:
    learner, serving = taught(make), make()
    if learner.serving_state().keys() == learner.state().keys():
        pytest.skip("this learner's serving state is complete")
    serving.load(learner.serving_state())
    with pytest.raises(ServingOnly):
        serving.learn(shared_batch(5))


def test_predict_and_score_change_nothing(make: Callable[[], Learner]) -> None:
    learner, batch = taught(make), shared_batch(5)
    before = learner.state()
    first = learner.predict(batch.context, asked(batch))
    losses = values(learner.score(first, batch.target))
    second = learner.predict(batch.context, asked(batch))
    assert same_bits(learner.state(), before)
    assert same_bits(answers(second), answers(first))
    assert same_bits(values(learner.score(second, batch.target)), losses)


def test_learn_leaves_its_inputs_alone(make: Callable[[], Learner]) -> None:
    learner, batch, copy = taught(make), shared_batch(5), shared_batch(5)
    learner.learn(batch, learner.predict(batch.context, batch.query))
    for part in ("context", "query", "target", "origin"):
        for name, value in vars(getattr(batch, part)).items():
            other = getattr(getattr(copy, part), name)
            if isinstance(value, Candidates):
                value, other = value.item, other.item
            if isinstance(value, Subject):
                assert np.array_equal(value.other, other.other)
                value, other = value.features, other.features
            assert np.array_equal(value, other), (part, name)


def test_learning_with_and_without_the_prediction_is_the_same(make: Callable[[], Learner]) -> None:
    left, right, batch = taught(make, 1), taught(make, 1), shared_batch(5)
    with_it = left.learn(batch, left.predict(batch.context, batch.query))
    without = right.learn(batch)
    assert with_it == without
    assert same_bits(left.state(), right.state())


def test_states_do_not_share_memory_with_the_learner(make: Callable[[], Learner]) -> None:
    learner = taught(make, 1)
    state, serving = learner.state(), learner.serving_state()
    copies = [{name: tensor.clone() for name, tensor in part.items()} for part in (state, serving)]
    learner.learn(shared_batch(5))
    assert same_bits(state, copies[0])
    assert same_bits(serving, copies[1])


@pytest.mark.parametrize("kill_after", range(5))
def test_a_loaded_state_goes_on_bit_for_bit(make: Callable[[], Learner], kill_after: int) -> None:
    learner = make()
    for step in range(kill_after):
        whole_step(learner, shared_batch(step))
    heir, state = make(), learner.state()
    heir.load({name: state[name] for name in sorted(state, reverse=True)})  # a file keeps no order
    assert same_bits(heir.state(), learner.state())
    for step in range(kill_after, 6):
        left, right = whole_step(learner, shared_batch(step)), whole_step(heir, shared_batch(step))
        assert same_bits(left[0], right[0])
        assert same_bits(left[1], right[1])
    assert same_bits(heir.state(), learner.state())


def test_two_runs_of_the_same_steps_are_bit_equal(make: Callable[[], Learner]) -> None:
    assert same_bits(taught(make, 5).state(), taught(make, 5).state())


def test_adding_a_billion_seconds_changes_no_bit(make: Callable[[], Learner]) -> None:
    left, right = make(), make()
    for step in range(4):
        batch = shared_batch(step)
        moved = replace(
            batch,
            context=replace(batch.context, at=batch.context.at + 10**9 * SECOND),
            query=replace(batch.query, now=batch.query.now + 10**9 * SECOND),
            target=replace(batch.target, at=batch.target.at + 10**9 * SECOND),
        )
        one, other = whole_step(left, batch), whole_step(right, moved)
        assert same_bits(one[0], other[0])
        assert same_bits(one[1], other[1])
    assert same_bits(left.state(), right.state())


def test_unknown_types_kinds_and_roles_are_answered_and_learnt(make: Callable[[], Learner]) -> None:
    learner, batch = taught(make), shared_batch(5)
    strange = replace(
        batch,
        context=replace(
            batch.context,
            type=words([f"new {place % 90}" for place in range(len(batch.context.type))]),
            item=words(
                [f"item \ud800 {place % 90}" if place % 2 else None for place in range(len(batch.context.type))]
            ),
            kind=words(["никогда"] * len(batch.context.kind)),
            role=words(["\ud800"] * len(batch.context.role)),
        ),
        target=replace(batch.target, type=words([f"newer {row} \ud800" for row in range(len(batch))])),
    )
    first, second = whole_step(learner, strange), whole_step(learner, strange)
    assert finite(*first, *second, learner.state())
    learns_types = first[0]["types"].shape[1] > 0
    if learns_types and not (isinstance(learner, Frozen) and learner.frozen):
        assert "newer 0 \ud800" in learner.predict(batch.context, batch.query).types


def test_an_unseen_type_is_scored_as_the_unknown_one(make_next: Callable[[], Learner]) -> None:
    learner, batch = taught(make_next), random_batch(4, 6, 8)
    prediction = learner.predict(batch.context, batch.query)
    scores = [
        learner.score(prediction, replace(batch.target, type=words([name] * 6)))["type"].value
        for name in ("never seen", "never seen either")
    ]
    assert torch.equal(scores[0], scores[1])
    assert finite({"type": scores[0]})


def test_empty_histories_and_users_of_one_event_work(make: Callable[[], Learner]) -> None:
    learner = make()
    empty = context_of([MadeUpHistory(at=np.asarray([], dtype=np.int64), type=words([])) for _ in range(2)])
    one = MadeUpHistory(at=np.asarray([START]), type=words(["only"]))
    for _ in range(3):
        batch = batch_of([one, *random_histories(1, 1, 3)], [(0, 0), (1, 0), (1, 1)])
        first, losses = whole_step(learner, batch)
        assert finite(first, losses)
        if "time" in losses:
            assert losses["time"][:2].tolist() == [0.0, 0.0]
    nobody = replace(batch, context=empty)
    nobody = replace(
        nobody,
        query=replace(batch.query, stack=np.asarray([0, 1, 1]), visible=np.zeros(3, dtype=np.int64)),
    )
    assert finite(*whole_step(learner, nobody), learner.state())


def test_a_batch_without_rows_is_answered_and_teaches_nothing(make: Callable[[], Learner]) -> None:
    learner, empty = taught(make), take(shared_batch(5), [])
    empty = replace(empty, query=asked(empty))
    before, prediction = learner.state(), learner.predict(empty.context, empty.query)
    assert len(prediction.quantiles) == 0
    assert all(loss.value.shape == (0,) for loss in learner.score(prediction, empty.target).values())
    learner.learn(empty, prediction)
    assert same_bits(learner.state(), before)


def test_simultaneous_events_are_scored_by_type_alone(make_next: Callable[[], Learner]) -> None:
    learner = taught(make_next)
    at = START + np.asarray([0, 5, 5, 5, 9], dtype=np.int64) * SECOND
    basket = MadeUpHistory(at=at, type=words(["type-0", "type-1", "type-2", "type-1", "type-3"]))
    batch = batch_of([basket], [(0, 1)] * 3 + [(0, 4)], resolution=SECOND)
    batch = replace(
        batch,
        target=replace(
            batch.target,
            timed=np.asarray([True, False, False, True]),
            type=words(["type-1", "type-2", "type-1", "type-3"]),
        ),
    )
    predictions, losses = whole_step(learner, batch)
    assert finite(predictions, losses, learner.state())
    assert [bool(value) for value in losses["time"]] == [True, False, False, True]
    assert losses["type"][0] == losses["type"][2]


@pytest.mark.parametrize("gap", [0, 1, SECOND, 10 * YEAR])
@pytest.mark.parametrize("resolution", [1, SECOND, 3600 * SECOND])
def test_gaps_from_nothing_to_ten_years_stay_finite(make: Callable[[], Learner], gap: int, resolution: int) -> None:
    learner = taught(make, 1)
    at = START + np.asarray([0, 7, 7, 7, 7 + gap, 7 + 2 * gap], dtype=np.int64)
    histories = [MadeUpHistory(at=at, type=words(["a", "b", "a", "c", "a", "b"])), *random_histories(2, 1, 9)]
    batch = batch_of(histories, [(0, 4), (0, 5), (1, 4)], resolution=resolution)
    batch = replace(batch, target=replace(batch.target, timed=np.asarray([True, True, True])))
    for _ in range(3):
        assert finite(*whole_step(learner, batch))
    assert finite(learner.state())
    late = replace(batch.query, now=batch.query.now + 10 * YEAR, quantiles=QUANTILES)
    assert finite(answers(learner.predict(batch.context, late)))


def test_a_tick_is_a_survival_term_and_adds_up(make_next: Callable[[], Learner]) -> None:
    learner, batch = taught(make_next), random_batch(4, 6, 8)

    def silence(begin_s: int, end_s: int) -> torch.Tensor:
        query = replace(batch.query, now=batch.query.now + begin_s * SECOND)
        tick = replace(batch.target, kind=TargetKind.TICK, at=batch.query.now + end_s * SECOND)
        losses = learner.score(learner.predict(batch.context, query), tick)
        assert not any(bool(losses[name].mask.any()) for name in ("time", "type", "error"))
        assert bool(losses["survival"].mask.all())
        return losses["survival"].value

    whole = silence(0, 900)
    assert bool((whole > 0).all())
    torch.testing.assert_close(silence(0, 100) + silence(100, 900), whole, rtol=2e-3, atol=1e-6)


def test_learning_from_ticks_makes_silence_likelier(make_next: Callable[[], Learner]) -> None:
    learner, batch = taught(make_next, 1), random_batch(4, 6, 8)
    tick = replace(batch, target=replace(batch.target, kind=TargetKind.TICK, at=batch.query.now + 10**4 * SECOND))
    before = learner.score(learner.predict(batch.context, batch.query), tick.target)["survival"].value.mean()
    for _ in range(5):
        learner.learn(tick)
    after = learner.score(learner.predict(batch.context, batch.query), tick.target)["survival"].value.mean()
    assert after <= before
    assert finite(learner.state())


def test_forgetting_users_takes_their_names_and_leaves_every_answer(make: Callable[[], Learner]) -> None:
    learner, batch = taught(make), shared_batch(5)
    before = answers(learner.predict(batch.context, asked(batch)))
    learner.forget(frozenset({"user 0", "user 2"}))
    assert same_bits(answers(learner.predict(batch.context, asked(batch))), before)
    for name in ("user 0", "user 2"):
        assert not any(name.encode() in tensor.numpy().tobytes() for tensor in learner.state().values())
    heir = make()
    heir.load(learner.state())
    whole_step(learner, batch)
    whole_step(heir, batch)
    assert same_bits(heir.state(), learner.state())


def test_forgetting_nobody_changes_nothing(make: Callable[[], Learner]) -> None:
    learner = taught(make)
    before = learner.state()
    learner.forget(frozenset({"somebody else"}))
    assert same_bits(learner.state(), before)


def test_a_foreign_state_is_refused_and_changes_nothing(make: Callable[[], Learner]) -> None:
    learner, other = taught(make, 1), taught(make, 2).state()
    before = learner.state()
    names = sorted(other)
    foreign = [
        {},
        {**other, "stranger": torch.zeros(1)},
        {name: other[name] for name in names[1:]},
        {name: other[name] for name in names[:-1]},
        *({**other, name: torch.zeros(3, 1, 4, 1, 5)} for name in names),
    ]
    for state in foreign:
        with pytest.raises(ForeignState):
            learner.load(state)
        assert same_bits(learner.state(), before)


def test_a_state_is_made_of_plain_cpu_tensors(make: Callable[[], Learner]) -> None:
    for state in (taught(make).state(), taught(make).serving_state()):
        for name, tensor in state.items():
            assert tensor.device.type == "cpu", name
            assert tensor.is_contiguous(), name
            assert not tensor.requires_grad, name


def test_a_cohort_is_its_arms_side_by_side() -> None:
    arm_group, alone = build_group("prompttpp", 3, warmup_events=24), build("prompttpp", 3, warmup_events=24)
    for step in range(3):
        batch = shared_batch(step)
        prediction = alone.predict(batch.context, batch.query)
        expected = alone.score(prediction, batch.target)
        alone.learn(batch, prediction)
        report = arm_group.step(batch)
        assert set(report.losses) == {"learner", "reference.frozen", "reference.finetune", "reference.markov"}
        for name, loss in expected.items():
            assert report.losses["learner"][name].sum == float(loss.value.sum())
            assert report.losses["learner"][name].count == int(loss.mask.sum())
    assert same_bits(arm_group.serving_state(), alone.serving_state())
    state = arm_group.state()
    assert {name.partition("/")[0] for name in state} == set(report.losses)
    heir = build_group("prompttpp", 3, warmup_events=24)
    heir.load(state)
    assert heir.step(shared_batch(9)).losses == arm_group.step(shared_batch(9)).losses
    assert same_bits(heir.state(), arm_group.state())


def test_a_cohort_refuses_foreign_arms_and_keeps_its_own() -> None:
    arm_group = build_group("prompttpp", 3)
    arm_group.step(shared_batch(0))
    before, other = arm_group.state(), build_group("prompttpp", 3)
    other.step(shared_batch(1))
    foreign = other.state()
    for broken in (
        {name: tensor for name, tensor in foreign.items() if not name.startswith("reference.markov/")},
        {name: tensor for name, tensor in foreign.items() if name != "reference.markov/types"},
    ):
        with pytest.raises(ForeignState):
            arm_group.load(broken)
        assert same_bits(arm_group.state(), before)


# Ranking


def test_a_ranking_has_one_raw_logit_for_each_candidate_and_nothing_else(make_ranker: Callable[[], Learner]) -> None:
    learner, batch = taught(make_ranker), shared_batch(5)
    prediction = learner.predict(batch.context, asked(batch))
    assert batch.query.candidates is not None
    assert prediction.logits is not None
    assert prediction.logits.shape == batch.query.candidates.mask.shape
    assert prediction.logits.dtype == torch.float64
    assert not bool(prediction.logits[~torch.from_numpy(batch.query.candidates.mask)].any())
    assert prediction.quantiles.shape == prediction.type_log_probs.shape == (len(batch), 0)
    skewed = replace(batch.query.candidates, log_q=batch.query.candidates.log_q - 3.0)
    served = learner.predict(batch.context, replace(batch.query, candidates=skewed))
    assert served.logits is not None
    assert torch.equal(served.logits, prediction.logits)


def test_the_place_of_a_candidate_says_nothing(make_ranker: Callable[[], Learner]) -> None:
    learner, batch = taught(make_ranker), shared_batch(5)
    shown = batch.query.candidates
    assert shown is not None
    order = np.random.default_rng(2).permutation(shown.mask.shape[1])
    moved = Candidates(item=shown.item[:, order], mask=shown.mask[:, order], log_q=shown.log_q[:, order])
    before = learner.predict(batch.context, batch.query).logits
    after = learner.predict(batch.context, replace(batch.query, candidates=moved)).logits
    assert before is not None
    assert after is not None
    torch.testing.assert_close(after, before[:, torch.from_numpy(order)], rtol=1e-5, atol=1e-6)


def test_the_name_of_a_user_says_nothing(make_ranker: Callable[[], Learner]) -> None:
    learner, batch = taught(make_ranker), shared_batch(5)
    renamed = replace(batch.query, user=words([f"somebody {row}" for row in range(len(batch))]))
    expected = answers(learner.predict(batch.context, batch.query))
    assert same_bits(answers(learner.predict(batch.context, renamed)), expected)


def test_other_candidates_of_a_row_do_not_matter(make_ranker: Callable[[], Learner]) -> None:
    learner, batch = taught(make_ranker), shared_batch(5)
    shown = batch.query.candidates
    assert shown is not None
    two = Candidates(item=shown.item[:, :2], mask=shown.mask[:, :2], log_q=shown.log_q[:, :2])
    all_of, alone = (
        learner.predict(batch.context, replace(batch.query, candidates=candidates)).logits
        for candidates in (shown, two)
    )
    assert all_of is not None
    assert alone is not None
    torch.testing.assert_close(alone, all_of[:, :2], rtol=1e-5, atol=1e-6)


def test_a_rank_loss_is_the_chosen_items_corrected_share(make_ranker: Callable[[], Learner]) -> None:
    learner, batch = taught(make_ranker), shared_batch(5)
    shown = batch.query.candidates
    assert shown is not None
    assert batch.target.drawn is not None
    prediction = learner.predict(batch.context, batch.query)
    assert prediction.logits is not None
    losses = learner.score(prediction, batch.target)
    corrected = prediction.logits.numpy() - shown.log_q
    ranked = shown.mask.any(axis=1)
    assert losses["rank"].mask.tolist() == ranked.tolist()
    assert ranked.sum() > 6
    for row in np.flatnonzero(ranked).tolist():
        shares = np.exp(corrected[row][shown.mask[row]])
        own = np.exp(corrected[row][batch.target.drawn[row] == Drawn.CHOSEN])
        assert losses["rank"].value[row].item() == pytest.approx(-np.log(own / shares.sum()).item(), abs=1e-9)


def test_a_tick_teaches_a_ranking_nothing(make_ranker: Callable[[], Learner]) -> None:
    learner, batch = taught(make_ranker), shared_batch(5)
    tick = replace(batch, target=replace(batch.target, kind=TargetKind.TICK, drawn=None))
    before, prediction = learner.state(), learner.predict(tick.context, tick.query)
    assert not any(bool(loss.mask.any()) for loss in learner.score(prediction, tick.target).values())
    learner.learn(tick, prediction)
    assert same_bits(learner.state(), before)


def test_a_ranking_learner_without_candidates_says_what_is_missing(make_ranker: Callable[[], Learner]) -> None:
    learner, batch = taught(make_ranker), shared_batch(5)
    with pytest.raises(ValueError, match=r"Query\.candidates"):
        learner.predict(batch.context, replace(batch.query, candidates=None))


def small_group(**asked: float) -> Any:
    return build_group(
        "sdim",
        3,
        tasks={"ranking": {"negatives": 4, **asked}},
        warmup_events=24,
        publish_every=2,
        width=8,
        bits=12,
        short_n=4,
    )


def plain(step: int) -> Batch:
    """Users and items, but nobody has asked for candidates yet."""
    histories = random_histories(step, 3, 12)
    rows = [(user, visible) for user in range(3) for visible in (0, 1, 6, 10)]
    return named(streams.batch_of(histories, rows, resolution=SECOND, first_key=100 * step))


def test_a_ranking_cohort_goes_on_from_its_state_bit_for_bit() -> None:
    arm_group, heir = small_group(census_rate=0.5), small_group(census_rate=0.5)
    for step in range(4):
        arm_group.step(plain(step))
    state = arm_group.state()
    assert {name.partition("/")[0] for name in state} == {*arm_group.arms, "ranking"}
    heir.load({name: state[name] for name in sorted(state, reverse=True)})
    left, right = arm_group.step(plain(9)), heir.step(plain(9))
    assert left.losses == right.losses
    assert left.losses["learner"]["mrr"].count > 0
    assert same_bits(heir.state(), arm_group.state())


def test_a_ranking_cohort_holds_no_name_and_forgets_baskets_and_windows() -> None:
    arm_group = small_group()
    for step in range(3):
        arm_group.step(plain(step))
    state = arm_group.state()
    assert not any(b"user " in tensor.numpy().tobytes() for tensor in state.values())
    assert from_json_tensor(state["ranking/baskets"])
    sdim = arm_group.learner
    assert isinstance(sdim, SDIM)
    assert sdim.without_window(["user 0", "user 1"]) == []
    assert "user 0" in sdim.touched
    arm_group.forget(frozenset({"user 0"}))
    left = arm_group.state()
    assert from_json_tensor(left.pop("ranking/baskets")) == []
    assert same_bits(left, {name: tensor for name, tensor in state.items() if name != "ranking/baskets"})
    assert sdim.without_window(["user 0", "user 1"]) == ["user 0"]
    assert "user 0" not in sdim.touched


def test_every_arm_of_a_ranking_cohort_is_asked_the_same() -> None:
    arm_group, actions = small_group(census_rate=0.5), list[str]()
    for step in range(3):
        report = arm_group.step(plain(step))
        actions += report.actions
    names = set(report.losses["reference.own_count"])
    for name in names:
        assert len({losses[name].count for losses in report.losses.values()}) == 1, name
    assert 0 < report.losses["learner"]["rank"].count <= len(plain(0))
    assert any(action.startswith("learner: published ") for action in actions)


def test_a_ranking_cohort_refuses_a_batch_that_names_nobody_and_changes_nothing() -> None:
    arm_group = small_group()
    arm_group.step(plain(0))
    before, batch = arm_group.state(), plain(1)
    with pytest.raises(ValueError, match=r"Query\.user and Target\.item"):
        arm_group.step(replace(batch, query=replace(batch.query, user=None)))
    assert same_bits(arm_group.state(), before)


# Outcomes


def test_a_risk_is_a_probability_for_each_row_and_nothing_else_is_said(make_outcome: Callable[[], Learner]) -> None:
    learner, batch = taught(make_outcome), shared_batch(5)
    prediction = learner.predict(batch.context, asked(batch))
    assert prediction.risk is not None
    assert prediction.risk.shape == (len(batch),)
    assert prediction.risk.dtype == torch.float64
    assert bool(((prediction.risk > 0) & (prediction.risk < 1)).all())
    assert prediction.logits is None
    assert prediction.quantiles.shape == prediction.type_log_probs.shape == (len(batch), 0)


def test_the_names_of_payers_say_nothing_to_an_arm(make_outcome: Callable[[], Learner]) -> None:
    learner, batch = taught(make_outcome), shared_batch(5)
    renamed = replace(batch.query, user=words([f"somebody {row}" for row in range(len(batch))]))
    expected = answers(learner.predict(batch.context, batch.query))
    assert same_bits(answers(learner.predict(batch.context, renamed)), expected)


@pytest.mark.parametrize("kind", [TargetKind.EVENT, TargetKind.TICK])
def test_without_an_outcome_nothing_is_learnt_of_one(make_outcome: Callable[[], Learner], kind: TargetKind) -> None:
    learner, batch = taught(make_outcome), shared_batch(5)
    unknown = replace(batch, target=replace(batch.target, kind=kind, y=None))
    before, prediction = learner.state(), learner.predict(batch.context, batch.query)
    assert not any(bool(loss.mask.any()) for loss in learner.score(prediction, unknown.target).values())
    learner.learn(unknown, prediction)
    assert same_bits(learner.state(), before)


def test_learning_bad_outcomes_makes_them_likelier(make_outcome: Callable[[], Learner]) -> None:
    learner, batch = taught(make_outcome), shared_batch(5)
    found = []
    for y in (0.0, 1.0):
        other = make_outcome()
        other.load(learner.state())
        other.learn(replace(batch, target=replace(batch.target, y=np.full(len(batch), y))))
        found.append(other.predict(batch.context, batch.query).risk)
    good, bad = found
    assert good is not None
    assert bad is not None
    assert bool((good < bad).all())


def test_a_learner_of_outcomes_without_subjects_says_what_is_missing() -> None:
    batch = shared_batch(5)
    with pytest.raises(ValueError, match=r"Query\.subject"):
        build("risk").predict(batch.context, replace(batch.query, subject=None))
    arm_group = build_group("risk")
    before = arm_group.state()
    with pytest.raises(ValueError, match=r"Query\.user and Query\.subject"):
        arm_group.step(replace(batch, query=replace(batch.query, user=None)))
    assert same_bits(arm_group.state(), before)
