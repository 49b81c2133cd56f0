"""Tables kept beside the learner, and ranking from them without a long history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from learners.contract.batch import Candidates, Query
from learners.contract.made_up.shop import Purchase, Shop, context_of, purchases
from learners.contract.made_up.streams import SECOND, words
from learners.contract.protocol import ForeignState
from learners.models.sdim.embedding_version import EmbeddingVersion, StaleRow, serving
from learners.models.sdim.learner import SDIM
from learners.models.sdim.spec import SDIMConfig
from learners.tasks.ranking import Ranking, RankingConfig

CONFIG = SDIMConfig(seed=2, width=16, last_n=40, short_n=6, publish_every=8, publish_drift=1.0, reserve=8)
ITEMS = words([f"item {number}" for number in range(0, 200, 3)] + ["never seen"])
HOUR = 3600 * SECOND


def run(learner: SDIM, shop: Shop, ranking: Ranking, events: Sequence[Purchase], rows: int = 16) -> None:
    for start in range(0, len(events), rows):
        batch = ranking.ask(shop.step(events[start : start + rows]))
        learner.learn(batch)
        ranking.learn(batch)


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def ranking() -> Ranking:
    return Ranking(RankingConfig(negatives=4))


@pytest.fixture
def learner(shop: Shop, ranking: Ranking) -> SDIM:
    """Has seen 1,200 events of 12 users, so that windows of 40 are full, and published several times."""
    learner = SDIM(CONFIG)
    run(learner, shop, ranking, purchases(5, 1200, users=12))
    assert learner.published.number >= 5
    return learner


def from_the_sequence(learner: SDIM, events: Sequence[Purchase]) -> Tensor:
    """[C] as `predict` ranks with the whole history before it."""
    count = np.asarray([len(events)], dtype=np.int64)
    shown = Candidates(item=ITEMS[None, :], mask=np.ones((1, len(ITEMS)), bool), log_q=np.zeros((1, len(ITEMS))))
    query = Query(stack=count * 0, visible=count, now=count * 0, candidates=shown)
    logits = learner.predict(context_of([events]), query).logits
    assert logits is not None
    return logits[0]


def from_the_row(served: EmbeddingVersion, learner: SDIM, user: str, events: Sequence[Purchase], cursor: int) -> Tensor:
    """[C] from the row, what came behind the cursor, and the newest `short_n` behaviours."""
    (row,) = learner.signature_rows([user])
    now = max(event.at for event in events) + 1
    table = served.moved_on(row, [(event.at, event.item) for event in sorted(events[cursor:])], now=now)
    return served.rank_row(table, context_of([sorted(events)[-CONFIG.short_n :]]), ITEMS)


def later(events: Sequence[Purchase], count: int) -> list[Purchase]:
    """Further events of the same user."""
    last = events[-1]
    return [Purchase(last.at + n * HOUR, last.key + n, last.user, f"item {11 * n % 200}") for n in range(1, count + 1)]


@pytest.mark.parametrize("after", [0, 1, 5, 8])
def test_a_row_and_what_came_after_it_rank_as_the_whole_sequence_does(learner: SDIM, shop: Shop, after: int) -> None:
    served = serving(learner.serving_state(), CONFIG)
    for user, events in shop.sequences.items():
        assert len(events) > CONFIG.last_n
        longer = [*events, *later(events, after)]
        found = from_the_row(served, learner, user, longer, cursor=len(events))
        torch.testing.assert_close(found, from_the_sequence(learner, longer), rtol=0, atol=1e-5)


def test_users_asked_together_get_what_each_alone_gets(learner: SDIM, shop: Shop) -> None:
    """Also where they name other candidates, or fewer: the shorter lists are padded."""
    served, users = learner.published, list(shop.sequences)
    tables = [row.table for row in learner.signature_rows(users)]
    histories = [shop.sequences[user][-CONFIG.short_n :] for user in sorted(users)]
    histories[1], tables[1] = [], served.table([])
    names = [ITEMS[n : n + 1 + 3 * n] for n in range(len(users))]
    item = np.full((len(users), max(map(len, names))), None, dtype=np.object_)
    for row, wanted in zip(item, names, strict=True):
        row[: len(wanted)] = wanted
    mask = item != np.full_like(item, None)
    together = served.rank_rows(
        tables, context_of(histories), Candidates(item=item, mask=mask, log_q=np.zeros(mask.shape))
    )
    assert (together[torch.from_numpy(~mask)] == 0).all()
    for row, table, history, wanted in zip(together, tables, histories, names, strict=True):
        alone = served.rank_row(table, context_of([history]), wanted)
        torch.testing.assert_close(row[: len(wanted)], alone, rtol=0, atol=1e-6)


def test_a_table_made_at_once_is_the_one_made_behaviour_by_behaviour(learner: SDIM) -> None:
    items = [f"item {n * n % 200}" for n in range(3000)]
    at_once, one_by_one = learner.published.table(items), learner.published.table([])
    for item in items:
        one_by_one.add(*learner.published.parts([item]))
    assert at_once.counts.tolist() == one_by_one.counts.tolist()
    np.testing.assert_allclose(at_once.sums, one_by_one.sums, rtol=1e-4, atol=1e-4)


def test_a_history_shorter_than_the_window_is_moved_on_by_any_number(ranking: Ranking, shop: Shop) -> None:
    learner = SDIM(replace(CONFIG, last_n=400, publish_every=2))
    run(learner, shop, ranking, purchases(5, 200, users=12))
    served = serving(learner.serving_state(), learner.config)
    for user, events in shop.sequences.items():
        longer = [*events, *later(events, 100)]
        found = from_the_row(served, learner, user, longer, cursor=len(events))
        torch.testing.assert_close(found, from_the_sequence(learner, longer), rtol=0, atol=1e-5)


def test_a_late_behaviour_takes_its_place_in_the_window(learner: SDIM, shop: Shop, ranking: Ranking) -> None:
    served = learner.published
    user, events = next(iter(shop.sequences.items()))
    for back in (1, 20, 38, 44, 60):
        late = Purchase(events[-back].at + 1, 10**12 + back, user, "item 21")
        found = from_the_row(served, learner, user, [*events, late], cursor=len(events))
        torch.testing.assert_close(found, from_the_sequence(learner, sorted([*events, late])), rtol=0, atol=1e-5)
    late = Purchase(events[-20].at + 1, 10**12, user, "item 21")
    run(learner, shop, ranking, [late])
    found = from_the_row(learner.published, learner, user, events, cursor=len(events))
    torch.testing.assert_close(found, from_the_sequence(learner, events), rtol=0, atol=1e-5)


def test_a_row_that_does_not_stand_for_the_question_is_refused(learner: SDIM, shop: Shop, ranking: Ranking) -> None:
    served = learner.published
    user, events = next(iter(shop.sequences.items()))
    (row,) = learner.signature_rows([user])
    with pytest.raises(StaleRow, match="9 behaviours leave the window, the row names 8"):
        served.moved_on(row, [(event.at, event.item) for event in later(events, 9)], now=2**62)
    with pytest.raises(StaleRow, match="asked as of"):
        served.moved_on(row, [], now=events[-1].at)
    with pytest.raises(StaleRow, match="asked of"):
        served.moved_on(replace(row, hash_id="another"), [], now=2**62)
    while learner.published is served:
        run(learner, shop, ranking, later(shop.sequences[user], 16))
    with pytest.raises(StaleRow, match="asked of"):
        learner.published.moved_on(row, [], now=2**62)


def test_what_happens_at_the_time_asked_or_later_is_not_seen(learner: SDIM, shop: Shop) -> None:
    user, events = next(iter(shop.sequences.items()))
    (row,) = learner.signature_rows([user])
    more = later(events, 3)
    table = learner.published.moved_on(row, [(event.at, event.item) for event in more], now=more[1].at)
    found = learner.published.rank_row(table, context_of([[*events, more[0]][-6:]]), ITEMS)
    torch.testing.assert_close(found, from_the_sequence(learner, [*events, more[0]]), rtol=0, atol=1e-5)


def test_a_publication_makes_every_table_anew_from_its_window(learner: SDIM, shop: Shop, ranking: Ranking) -> None:
    user, events = next(iter(shop.sequences.items()))
    before, versions = learner.signature_rows([user])[0], learner.published.number
    others = [event for event in purchases(9, 400, users=12) if event.user != user]
    run(learner, shop, ranking, [event._replace(at=event.at + 10**12) for event in others])
    assert learner.published.number > versions
    (after,) = learner.signature_rows([user])
    assert after.embedding != before.embedding
    assert (after.events, after.last_at, after.oldest) == (before.events, before.last_at, before.oldest)
    found = from_the_row(learner.published, learner, user, events, cursor=len(events))
    torch.testing.assert_close(found, from_the_sequence(learner, events), rtol=0, atol=1e-5)


def test_the_newest_step_says_whose_rows_are_out_of_date(learner: SDIM, shop: Shop, ranking: Ranking) -> None:
    users = list(shop.sequences)[:2]
    run(learner, shop, ranking, [later(shop.sequences[user], 1)[0] for user in users])
    assert learner.touched == set(users)
    rows = learner.signature_rows(learner.touched)
    assert [row.user for row in rows] == sorted(users)
    for row in rows:
        assert row.last_at == shop.sequences[row.user][-1].at
        assert row.events == CONFIG.last_n
        assert set(row.table.counts.sum(axis=1).tolist()) == {CONFIG.last_n}
        assert len(row.oldest) == CONFIG.reserve


def test_a_user_known_from_a_late_row_alone_has_no_row_until_the_sequence_is_given(learner: SDIM, shop: Shop) -> None:
    """After a restart nothing is held, and a late row does not show what came behind it."""
    heir = SDIM(CONFIG)
    heir.load(learner.state())
    user, events = next(iter(shop.sequences.items()))
    late = Purchase(events[-10].at + 1, 10**12, user, "item 21")
    run(heir, shop, Ranking(), [late])
    assert heir.touched == {user}
    assert heir.signature_rows([user]) == []
    assert heir.without_window(heir.touched) == [user]
    heir.take_sequences([user], context_of([events]))
    found = from_the_row(heir.published, heir, user, events, cursor=len(events))
    torch.testing.assert_close(found, from_the_sequence(heir, events), rtol=0, atol=1e-5)


def test_after_a_restart_tables_grow_back_from_the_histories(learner: SDIM, shop: Shop, ranking: Ranking) -> None:
    heir = SDIM(CONFIG)
    heir.load(learner.state())
    user = next(iter(shop.sequences))
    run(heir, shop, ranking, later(shop.sequences[user], 3))
    events = shop.sequences[user]
    found = from_the_row(heir.published, heir, user, events, cursor=len(events))
    torch.testing.assert_close(found, from_the_sequence(heir, events), rtol=0, atol=1e-5)


def test_only_so_many_users_are_held_and_no_weight_depends_on_it(ranking: Ranking) -> None:
    few, none, events = SDIM(replace(CONFIG, table_users=3)), SDIM(replace(CONFIG, table_users=0)), purchases(5, 300)
    for learner in (few, none):
        run(learner, Shop(), Ranking(), events)
    users = {event.user for event in events}
    assert len(few.signature_rows(users)) == 3
    assert none.signature_rows(users) == []
    left, right = few.state(), none.state()
    assert all(torch.equal(left[name], right[name]) for name in left if name != "meta")


def test_a_broken_serving_state_is_refused(learner: SDIM) -> None:
    state = learner.serving_state()
    with pytest.raises(ForeignState, match="vectors"):
        serving({**state, "published.vectors": torch.zeros(3, 16)}, CONFIG)
    with pytest.raises(ForeignState, match="published version differ"):
        serving({}, CONFIG)


def test_one_version_has_one_name_and_another_branch_of_the_same_number_has_another(learner: SDIM) -> None:
    served = learner.published
    again = serving(learner.serving_state(), CONFIG)
    assert (again.embedding, again.hash_id) == (served.embedding, served.hash_id)
    assert torch.equal(again.signatures, served.signatures)
    assert replace(served, vectors=served.vectors + 1e-3).embedding != served.embedding
    assert replace(served, matrix=served.matrix + 1e-3).hash_id != served.hash_id
