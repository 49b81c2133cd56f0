"""What ranking arms are asked, how they are measured, and the floor they all have to beat."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from learners.baselines.own_count import OwnCount
from learners.blocks.popularity_counts import PopularityCounts
from learners.contract.batch import Batch, Candidates, Drawn, Floats, Ints, Target, TargetKind
from learners.contract.made_up.shop import Purchase, Shop, purchases, steps
from learners.contract.made_up.streams import SECOND, START, words
from learners.contract.protocol import ForeignState
from learners.tasks.ranking import Ranking, RankingConfig
from learners.tasks.ranking_measures import measures


def bought(*items: str, user: str = "user", at: int = 0, key: int = 0) -> list[Purchase]:
    """One basket."""
    return [Purchase(START + at * SECOND, key + n, user, item) for n, item in enumerate(items)]


def taught(counts: dict[str, int], **config: Any) -> Ranking:
    """A ranking that has seen each item so often."""
    ranking, events = Ranking(RankingConfig(**config)), list[Purchase]()
    for item, count in counts.items():
        for _ in range(count):
            events += bought(item, user=f"user {len(events)}", key=len(events))
    ranking.learn(Shop().step(events))
    return ranking


def shown(batch: Batch) -> Candidates:
    assert batch.query.candidates is not None
    return batch.query.candidates


def drawn(batch: Batch) -> Ints:
    assert batch.target.drawn is not None
    return batch.target.drawn


def test_negatives_are_as_frequent_as_log_q_says() -> None:
    ranking = taught({"a": 1, "b": 2, "c": 4, "d": 13, "chosen": 5}, negatives=10)
    batch = ranking.ask(Shop().step([Purchase(START, key, f"user {key}", "chosen") for key in range(3000)]))
    asked, kinds = shown(batch), drawn(batch)
    for name, count in (("a", 1), ("b", 2), ("c", 4), ("d", 13)):
        here = asked.item == name
        assert float(np.exp(asked.log_q[here][0])) == pytest.approx(0.5 / 5 + 0.5 * count / 25)
        uniform, popular = (here[:, kinds[0] == kind].mean() for kind in (Drawn.UNIFORM, Drawn.POPULAR))
        assert uniform == pytest.approx(1 / 4, abs=0.01)
        assert popular == pytest.approx(count / 20, abs=0.01)


def test_negatives_come_from_counts_before_the_step_and_never_from_the_basket() -> None:
    ranking, shop = taught({"a": 3, "b": 3, "c": 3}), Shop()
    batch = ranking.ask(shop.step(bought("a", "b")))
    negatives = set(shown(batch).item[:, 1:].ravel().tolist())
    assert negatives <= {"c", None}
    ranking.learn(batch)
    # The rest of the basket comes in the next step: it is still known.
    rest = ranking.ask(shop.step(bought("c", key=9)))
    assert set(shown(rest).item[:, 1:].ravel().tolist()) == {None}
    tomorrow = ranking.ask(shop.step(bought("c", at=86_400, key=11)))
    assert set(shown(tomorrow).item[:, 1:].ravel().tolist()) - {None} <= {"a", "b"}


def test_what_nobody_chose_before_is_not_ranked_but_counts_from_then_on() -> None:
    """It could not have been a negative: being new would give it away."""
    ranking, shop = taught({"a": 3, "b": 3}), Shop()
    batch = ranking.ask(shop.step(bought("new", "a")))
    assert shown(batch).mask.any(axis=1).tolist() == [False, True]
    assert batch.target.wanted is not None
    assert batch.target.wanted.tolist() == [True, True]
    ranking.learn(batch)
    again = ranking.ask(shop.step(bought("new", at=9, key=5)))
    assert shown(again).item[0, 0] == "new"


def test_a_rows_candidates_depend_on_its_event_and_the_counts_alone() -> None:
    ranking = taught({f"item {n}": 1 + n % 5 for n in range(30)})
    events = [Purchase(START, key, f"user {key}", "item 3") for key in range(6)]
    together = shown(ranking.ask(Shop().step(events)))
    for row, event in enumerate(events):
        alone = shown(ranking.ask(Shop().step([event])))
        assert alone.item[0].tolist() == together.item[row].tolist()
        assert alone.log_q[0].tolist() == together.log_q[row].tolist()
    assert together.item[0].tolist() != together.item[1].tolist()


def test_asking_changes_nothing_and_a_state_goes_on_as_it_was() -> None:
    ranking, heir, events = (
        Ranking(RankingConfig(census_rate=1.0)),
        Ranking(RankingConfig(census_rate=1.0)),
        purchases(3, 200),
    )
    shop = Shop()
    for start in range(0, 150, 30):
        batch = shop.step(events[start : start + 30])
        before = ranking.state()
        ranking.ask(batch), ranking.census(batch)
        assert all(torch.equal(tensor, before[name]) for name, tensor in ranking.state().items())
        ranking.learn(batch)
    heir.load(ranking.state())
    batch = shop.step(events[150:])
    left, right = ranking.ask(batch), heir.ask(batch)
    assert np.array_equal(shown(left).item, shown(right).item)
    assert np.array_equal(shown(left).log_q, shown(right).log_q)
    census, again = ranking.census(batch), heir.census(batch)
    assert census is not None
    assert again is not None
    assert np.array_equal(shown(census).item, shown(again).item)


def test_foreign_states_of_a_ranking_are_refused() -> None:
    ranking, state = taught({"a": 1}), taught({"b": 2, "c": 1}).state()
    before = ranking.state()
    for broken in (
        {},
        {**state, "counts": torch.zeros(3)},
        {**state, "baskets": state["config"]},
        {**state, "config": taught({"a": 1}, negatives=3).state()["config"]},
    ):
        with pytest.raises(ForeignState):
            ranking.load(broken)
        assert all(torch.equal(tensor, before[name]) for name, tensor in ranking.state().items())


def test_a_census_asks_about_the_whole_catalogue_but_the_rest_of_the_basket() -> None:
    ranking = taught({"a": 3, "b": 3, "c": 3, "d": 1}, census_rate=1)
    census = ranking.census(Shop().step(bought("a", "b", "new")))
    assert census is not None
    assert [set(row) - {None} for row in shown(census).item.tolist()] == [{"a", "c", "d"}, {"b", "c", "d"}]
    assert shown(census).item[:, 0].tolist() == ["a", "b"]
    assert (drawn(census)[:, 0] == Drawn.CHOSEN).all()
    assert (drawn(census)[:, 1:] == Drawn.CATALOGUE).all()


def test_a_tenth_of_all_rows_stands_in_the_census_whatever_the_steps() -> None:
    ranking, events = taught({f"item {n}": 1 for n in range(200)}), purchases(3, 2000)

    def counted(rows: int) -> list[int]:
        found = [ranking.census(batch) for batch in steps(events, rows=rows)]
        return [key for batch in found if batch is not None for key in batch.origin.key.tolist()]

    assert counted(32) == counted(100)
    assert len(counted(32)) / 2000 == pytest.approx(0.1, abs=0.02)


def test_a_tick_asks_for_nothing() -> None:
    ranking, batch = taught({"a": 3, "b": 3}, census_rate=1.0), Shop().step(bought("a"))
    tick = replace(batch, target=replace(batch.target, kind=TargetKind.TICK, item=None))
    before = ranking.state()
    asked = ranking.ask(tick)
    assert not shown(asked).mask.any()
    assert asked.target.drawn is None
    assert ranking.census(tick) is None
    assert ranking.learn(asked) == ()
    assert all(torch.equal(tensor, before[name]) for name, tensor in ranking.state().items())


def test_only_the_wanted_types_are_targets() -> None:
    ranking = taught({"a": 1, "b": 1}, target_types=("purchase",))
    batch = Shop().step(bought("a", "b"))
    batch = replace(batch, target=replace(batch.target, type=words(["purchase", "return"])))
    asked = ranking.ask(batch)
    assert shown(asked).mask.any(axis=1).tolist() == [True, False]
    assert asked.target.wanted is not None
    assert asked.target.wanted.tolist() == [True, False]
    census = Ranking(RankingConfig(census_rate=1.0, target_types=("return",)))
    census.load({**ranking.state(), "config": census.state()["config"]})
    counted = census.census(batch)
    assert counted is not None
    assert counted.target.item is not None
    assert counted.target.item.tolist() == ["b"]


def test_an_item_that_loses_its_row_is_told_to_the_journal() -> None:
    ranking = Ranking(RankingConfig(max_items=2))
    assert ranking.learn(Shop().step(bought("a", "b"))) == ()
    assert ranking.learn(Shop().step(bought("c"))) == ("item 'a' gave its row to 'c'",)
    asked = shown(ranking.ask(Shop().step(bought("b", "a", at=5))))
    assert asked.item[:, 0].tolist() == ["b", None]
    assert set(asked.item[:, 1:].ravel().tolist()) == {"c", None}


def asked_about(logits: list[float], kinds: list[Drawn], *, log_q: list[float] | None = None) -> dict[str, float]:
    """Measures of one row."""
    count = len(logits)
    candidates = Candidates(
        item=words([f"item {n}" for n in range(count)])[None, :],
        mask=np.ones((1, count), dtype=np.bool_),
        log_q=np.asarray([log_q or [0.0] * count]),
    )
    target = Target(
        kind=TargetKind.EVENT,
        at=np.asarray([START]),
        type=words(["purchase"]),
        resolution=np.asarray([1]),
        timed=np.asarray([True]),
        weight=np.ones(1),
        item=words(["item 0"]),
        drawn=np.asarray([[int(kind) for kind in kinds]]),
        repeat=np.asarray([True]),
    )
    losses = measures(torch.tensor([logits], dtype=torch.float64), candidates, target)
    return {name: float(loss.value[0]) for name, loss in losses.items() if bool(loss.mask[0])}


def test_measures_are_what_their_names_say() -> None:
    chosen, uniform, popular, all_items = Drawn.CHOSEN, Drawn.UNIFORM, Drawn.POPULAR, Drawn.CATALOGUE
    found = asked_about([1.0, 0.0, 1.0, 2.0], [chosen, uniform, uniform, popular], log_q=[-1.0, 0.0, 0.0, 0.0])
    shares: Floats = np.exp(np.asarray([2.0, 0.0, 1.0, 2.0]))
    assert found == pytest.approx(
        {
            "rank": -np.log(shares[0] / shares.sum()),
            "auc_uniform": 0.75,
            "auc_uniform_repeat": 0.75,
            "auc_popular": 0.0,
            "auc_popular_repeat": 0.0,
        }
    )
    found = asked_about([1.0, 3.0, 2.0, 0.0], [chosen, all_items, all_items, all_items])
    assert found == pytest.approx({"mrr": 1 / 3, "mrr_repeat": 1 / 3, "ndcg10": 0.5, "ndcg10_repeat": 0.5})
    # Who says nothing shares the mean of all ranks and never the first.
    assert asked_about([0.0] * 21, [chosen] + [all_items] * 20)["mrr"] == pytest.approx(1 / 11)


def floor_after(events: list[Purchase]) -> OwnCount:
    floor, ranking = OwnCount(), Ranking()
    for batch in steps(events):
        floor.learn(ranking.ask(batch))
        ranking.learn(batch)
    return floor


def test_the_floor_is_a_posterior_mean_over_the_catalogue() -> None:
    floor, shop, events = floor_after(purchases(3, 400)), Shop(), purchases(3, 400)
    shop.step(events)
    catalogue = sorted({event.item for event in events})
    batch = shop.step([events[-1]._replace(at=events[-1].at + SECOND, key=5)])
    everything = Candidates(
        item=words([*catalogue, "unknown"])[None, :],
        mask=np.ones((1, len(catalogue) + 1), dtype=np.bool_),
        log_q=np.zeros((1, len(catalogue) + 1)),
    )
    logits = floor.predict(batch.context, replace(batch.query, candidates=everything)).logits
    assert logits is not None
    assert float(logits.exp().sum()) == pytest.approx(1.0, abs=1e-9)


def test_the_floor_believes_in_own_counts_as_far_as_they_pay() -> None:
    """Users who buy the same for ever, and users who buy at random: the weight of what everybody does differs."""
    rng = np.random.default_rng(0)
    faithful = [Purchase(START + n * SECOND, n, f"user {n % 20}", f"item {n % 20}") for n in range(1500)]
    fickle = [event._replace(item=f"item {rng.integers(20)}") for event in faithful]
    shop = Shop()
    shop.step(faithful[:200])
    batch = Ranking().ask(shop.step([Purchase(START + 10**9, 10**6, "user 3", "item 3")]))
    two = Candidates(item=words(["item 3", "item 4"])[None, :], mask=np.ones((1, 2), bool), log_q=np.zeros((1, 2)))
    gaps = []
    for events in (faithful, fickle):
        logits = floor_after(events).predict(batch.context, replace(batch.query, candidates=two)).logits
        assert logits is not None
        gaps.append(float(logits[0, 0] - logits[0, 1]))
    assert gaps[0] > 2.5
    assert gaps[1] < 0.5


def test_popularity_forgets() -> None:
    counts = PopularityCounts(10)
    counts.learn(["old"] * 3000)
    for _ in range(30):
        counts.learn(["new"] * 1000)
    old, new = counts.log_share(words(["old", "new"]))
    assert new - old > np.log(10.0)
    assert counts.log_share(words(["never"]))[0] < old
