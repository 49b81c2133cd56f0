"""SDIM as a learner: what moves between publications and what does not, and where its gradient goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from learners.contract.batch import Batch, Candidates
from learners.contract.made_up.shop import Purchase, Shop, purchases
from learners.contract.made_up.streams import SECOND, words
from learners.contract.protocol import Losses
from learners.contract.state_codec import from_json_tensor
from learners.contract.string_index import UNKNOWN, UNKNOWN_NAME
from learners.models.sdim.embedding_version import EmbeddingVersion
from learners.models.sdim.learner import SDIM
from learners.models.sdim.network import item_row
from learners.models.sdim.spec import SDIMConfig, unclocked_config
from learners.tasks.ranking import Ranking, RankingConfig

CONFIG = SDIMConfig(seed=2, width=16, bits=24, last_n=64, short_n=6, publish_every=5, publish_drift=1.0, table_users=0)


def asked(seed: int, count: int, *, rows: int = 16) -> Iterator[Batch]:
    """Steps of a shop with their candidates."""
    shop, ranking, events = Shop(), Ranking(RankingConfig(negatives=4)), purchases(seed, count, users=12)
    for start in range(0, count, rows):
        batch = ranking.ask(shop.step(events[start : start + rows]))
        yield batch
        ranking.learn(batch)


def taught(config: SDIMConfig = CONFIG, *, count: int = 320) -> SDIM:
    learner = SDIM(config)
    for batch in asked(5, count):
        learner.learn(batch)
    return learner


def logits(learner: SDIM, batch: Batch) -> torch.Tensor:
    found = learner.predict(batch.context, batch.query).logits
    assert found is not None
    return found


def scored(learner: SDIM, batch: Batch) -> Losses:
    return learner.score(learner.predict(batch.context, batch.query), batch.target)


def test_answers_stand_still_between_publications_while_the_weights_learn() -> None:
    learner, (_, probe) = SDIM(CONFIG), asked(9, 32)
    published, answers, fresh = [], [], []
    for batch in asked(5, 16 * 16):
        report = learner.learn(batch)
        published.append(any(action.startswith("published ") for action in report.actions))
        answers.append(logits(learner, probe))
        fresh.append(float(scored(learner, probe)["fresh_rank"].value.sum()))
    assert [step for step, said in enumerate(published, start=1) if said] == [5, 10, 15]
    for step in range(1, 16):
        assert torch.equal(answers[step], answers[step - 1]) != published[step]
    assert len(set(fresh)) == 16


def test_a_publication_comes_early_when_many_signatures_would_change() -> None:
    eager = SDIM(replace(CONFIG, publish_every=1000, check_every=4, publish_drift=0.0))
    calm = SDIM(replace(CONFIG, publish_every=1000, check_every=4, publish_drift=1.0))
    steps = {id(learner): list[int]() for learner in (eager, calm)}
    for number, batch in enumerate(asked(5, 16 * 12), start=1):
        for learner in (eager, calm):
            if learner.learn(batch).actions:
                steps[id(learner)].append(number)
    assert steps[id(eager)] == [4, 8, 12]
    assert steps[id(calm)] == []


def test_drift_is_the_share_of_signatures_that_a_publication_would_change() -> None:
    learner = taught(count=16 * 10)
    assert learner.drift() == 0.0  # ten steps: just published
    for batch in list(asked(5, 16 * 14))[-4:]:
        learner.learn(batch)
    served, fresh = learner.published, learner.state()["table"]
    names = list(from_json_tensor(learner.state()["vocabulary"])["names"])
    would_be = replace(served, names=tuple(names), vectors=fresh[: len(names) + 1])
    new = set(names) - set(served.names)
    pairs = [
        would_be.signatures[would_be.rows[name]] != served.signatures[served.rows.get(name, UNKNOWN)] for name in names
    ]
    changed = [float(pair.double().mean()) if name not in new else 1.0 for name, pair in zip(names, pairs, strict=True)]
    assert new
    assert learner.drift() == pytest.approx(np.mean(changed))
    assert len(new) / len(names) < learner.drift() < 0.6


def test_without_a_publish_clock_what_answers_is_what_learns() -> None:
    learner = taught(unclocked_config(CONFIG))
    for batch in list(asked(6, 64)):
        losses = scored(learner, batch)
        torch.testing.assert_close(losses["rank"].value, losses["fresh_rank"].value, rtol=1e-6, atol=1e-6)
        assert learner.learn(batch).actions == ()


def test_an_item_deep_in_the_history_learns_through_its_bucket_alone() -> None:
    """Its value is the published one, and the gradient reaches the fresh row all the same."""
    learner, shop = taught(), Shop()
    served = learner.published
    events = [Purchase(10**15 + n * SECOND, n, "user", served.names[n % 40]) for n in range(50)]
    shop.step(events)
    batch = shop.step([Purchase(10**15 + 10**9, 99, "user", served.names[45])])
    one = Candidates(
        item=words([served.names[45], served.names[46]])[None, :], mask=np.ones((1, 2), bool), log_q=np.zeros((1, 2))
    )
    batch = replace(
        batch,
        query=replace(batch.query, candidates=one),
        target=replace(batch.target, wanted=np.asarray([True]), drawn=np.asarray([[0, 1]])),
    )
    before = learner.state()
    numbers = {name: n for n, name in enumerate(from_json_tensor(before["vocabulary"])["names"], start=1)}
    learner.learn(batch)
    moved = (learner.state()["table"] != before["table"]).any(dim=1)
    signature = served.signatures[served.numbers(list(served.names))]
    asked_for = served.signatures[served.numbers([served.names[45], served.names[46]])]  # [2, G]
    short = {event.item for event in events[-6:]}
    deep = [n for n in range(40) if served.names[n] not in short]
    collides = [bool((signature[n] == asked_for).any()) for n in deep]
    assert [bool(moved[numbers[served.names[n]]]) for n in deep] == collides
    assert True in collides
    assert served is learner.published


def test_an_item_is_unknown_until_the_next_publication() -> None:
    learner, batch = taught(), next(asked(9, 16))
    assert batch.query.candidates is not None
    newcomers = replace(batch.query.candidates, item=batch.query.candidates.item.copy())
    newcomers.item[:, 1], newcomers.item[:, 2] = "newcomer", "another"
    newcomers.mask[:, 1:3] = True
    query = replace(batch.query, candidates=newcomers)
    new = replace(
        batch, query=query, target=replace(batch.target, item=words(["newcomer"] * 16), wanted=np.ones(16, bool))
    )
    while True:
        found = learner.predict(new.context, query).logits
        assert found is not None
        if "newcomer" in learner.published.names:
            break
        assert torch.equal(found[:, 1], found[:, 2])
        learner.learn(new)
    assert not torch.equal(found[:, 1], found[:, 2])


def test_an_evicted_item_leaves_its_row_to_a_fresh_start_and_the_published_one_to_serving() -> None:
    learner = SDIM(replace(CONFIG, max_items=30, publish_every=1000))
    actions = [action for batch in asked(5, 320) for action in learner.learn(batch).actions]
    assert actions
    assert all(" gave its row to " in action for action in actions)
    state = learner.state()
    names = from_json_tensor(state["vocabulary"])["names"]
    order = from_json_tensor(state["vocabulary"])["order"]
    newest = names[order[-1] - 1]
    assert len(names) == 30
    # The newest was numbered after the last step, which therefore has not moved it.
    assert torch.equal(state["table"][order[-1]], item_row(learner.config, newest))
    assert float(state["moments.table.sum"][order[-1]]) == 0.0
    assert learner.published.number == 0


def test_an_items_first_row_is_a_function_of_seed_and_name() -> None:
    left, right = (SDIM(CONFIG), SDIM(CONFIG))
    batches = list(asked(5, 64))
    left.learn(batches[0])
    right.learn(batches[1])
    both = set(from_json_tensor(left.state()["vocabulary"])["names"]) & set(
        from_json_tensor(right.state()["vocabulary"])["names"]
    )
    assert both
    rows = [
        {
            name: learner.state()["table"][n]
            for n, name in enumerate(from_json_tensor(learner.state()["vocabulary"])["names"], 1)
        }
        for learner in (left, right)
    ]
    assert all(torch.equal(rows[0][name], rows[1][name]) for name in both)
    assert not torch.equal(item_row(CONFIG, "a"), item_row(replace(CONFIG, seed=3), "a"))


def test_the_unknown_row_is_trained_on_its_turn_alone() -> None:
    learner, rows = SDIM(replace(CONFIG, unknown_rate=0.1, unknown_every=4, publish_every=1000)), []
    batches = list(asked(5, 160))
    for batch in batches * 2:
        rows.append(learner.state()["table"][UNKNOWN])
        learner.learn(batch)
    rows.append(learner.state()["table"][UNKNOWN])
    late = range(12, 20)  # every item of the second round is known
    assert [not torch.equal(rows[step + 1], rows[step]) for step in late] == [step % 4 == 3 for step in late]
    assert not torch.equal(rows[0], rows[-1])
    assert torch.equal(rows[0], item_row(CONFIG, UNKNOWN_NAME))


def test_centring_keeps_items_in_a_cone_apart() -> None:
    """Health in training (2^-3 to .4 of a user's behaviours in a candidate's bucket): a cone alone would collide."""
    generator = torch.Generator().manual_seed(0)
    cone = 3.0 + 0.3 * torch.randn(400, CONFIG.width, generator=generator)
    served = replace(taught().published, names=tuple(map(str, range(399))), vectors=cone, popularity=torch.zeros(400))
    left, right = served.signatures[:200], served.signatures[200:]
    assert float((left == right).double().mean()) == pytest.approx(2.0**-3, abs=0.03)
    raw = replace(
        served, vectors=torch.cat([cone, -cone]), popularity=torch.zeros(800), names=tuple(map(str, range(799)))
    )
    assert float((raw.signatures[:200] == raw.signatures[200:400]).double().mean()) > 0.7


def test_a_learner_reports_how_much_collides() -> None:
    learner = SDIM(CONFIG)
    found = [learner.learn(batch).losses for batch in asked(5, 640)]
    health = [losses for losses in found if "collision" in losses][-1]
    assert 2.0**-3 * 0.9 < health["collision"] < 0.5
    assert 0.5 < health["occupancy"] <= 1.0


def test_the_clocks_answers_approach_the_fresh_ones_and_beat_no_training() -> None:
    learner, untaught = SDIM(replace(CONFIG, publish_every=16)), SDIM(CONFIG)
    sums = np.zeros(3)
    for number, batch in enumerate(asked(5, 3200, rows=32)):
        if number >= 60:
            losses, none = scored(learner, batch), scored(untaught, batch)
            sums += [float(losses[name].value.mean()) for name in ("rank", "fresh_rank")] + [
                float(none["rank"].value.mean())
            ]
        learner.learn(batch)
    published, fresh, none = sums / 40
    assert fresh < published + 0.02
    assert published < none - 0.1


@pytest.mark.parametrize(
    "broken",
    [{"bits": 10}, {"tau": 0}, {"short_n": 100, "last_n": 50}, {"last_n": 0, "short_n": 0}, {"check_every": 0}],
)
def test_a_configuration_that_cannot_be_is_refused(broken: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        replace(CONFIG, **broken)


def test_a_first_version_knows_no_item_and_still_answers() -> None:
    learner, batch = SDIM(CONFIG), next(asked(5, 16))
    assert isinstance(learner.published, EmbeddingVersion)
    assert learner.published.names == ()
    assert bool(torch.isfinite(logits(learner, batch)).all())
