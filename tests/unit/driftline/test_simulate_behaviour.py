"""What simulated users do: the planted habits, their changes, baskets, items and frauds can be found again."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from numpy.typing import NDArray

from contracts import topics
from contracts.codec import Decoder
from contracts.records import Item, Label, Payment, Relation
from driftline.simulate import DAY_S, MESSAGE, TYPES, Drift, Scenario, Simulation, arrivals
from driftline.simulate.world import FRAUD
from tests.simulated import decoded, events, occasions, seconds

CLEAN = Scenario(seed=5, users=300)


@pytest.fixture(scope="module")
def clean() -> Simulation:
    return Simulation(CLEAN)


def test_types_follow_the_transitions_of_the_truth_before_and_after(clean: Simulation) -> None:
    truth = clean.truth
    before, after = _transitions(clean, [0.0, 7 * DAY_S, 14 * DAY_S])
    np.testing.assert_allclose(before, truth.before.transitions, atol=0.05)
    np.testing.assert_allclose(after, truth.after.transitions, atol=0.05)
    assert np.abs(truth.before.transitions - truth.after.transitions).max() > 0.2


def test_habits_go_on_from_one_block_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than one event of a user in a block."""
    monkeypatch.setattr(arrivals, "_BLOCK", 200)
    simulation = Simulation(replace(CLEAN, change_after_s=None))
    (found,) = _transitions(simulation, [0.0, 14 * DAY_S])
    np.testing.assert_allclose(found, simulation.truth.before.transitions, atol=0.05)


def test_without_a_change_nothing_changes() -> None:
    simulation = Simulation(replace(CLEAN, change_after_s=None))
    assert simulation.truth.change_at is None
    assert simulation.truth.before is simulation.truth.after
    merchants = simulation.truth.dangerous_merchants
    assert merchants["before"] == merchants["after"]
    first, second = _transitions(simulation, [0.0, 7 * DAY_S, 14 * DAY_S])
    np.testing.assert_allclose(first, second, atol=0.06)


def test_a_recurring_change_brings_the_old_behaviour_back_at_the_stated_times() -> None:
    scenario = replace(CLEAN, drift=Drift.RECURRING, change_after_s=4 * DAY_S, change_lasts_s=4 * DAY_S)
    simulation = Simulation(scenario)
    assert [((change.starts_at - scenario.start).days, change.to) for change in simulation.truth.changes] == [
        (4, "after"),
        (8, "before"),
        (12, "after"),
    ]
    old, new, old_again, new_again = _transitions(simulation, [0.0, 4 * DAY_S, 8 * DAY_S, 12 * DAY_S, 14 * DAY_S])
    for found in (old, old_again):
        np.testing.assert_allclose(found, simulation.truth.before.transitions, atol=0.07)
    for found in (new, new_again):
        np.testing.assert_allclose(found, simulation.truth.after.transitions, atol=0.07)


def test_a_gradual_change_mixes_old_and_new_between_its_two_times() -> None:
    scenario = replace(
        CLEAN, users=1_000, drift=Drift.GRADUAL, change_after_s=2 * DAY_S, change_lasts_s=10 * DAY_S, speed_after=1.0
    )
    simulation = Simulation(scenario)
    (change,) = simulation.truth.changes
    assert (change.starts_at - scenario.start, change.ends_at - scenario.start) == (
        timedelta(days=2),
        timedelta(days=12),
    )
    before, after = simulation.truth.before.transitions, simulation.truth.after.transitions
    cuts = [0.0, 2 * DAY_S, 4 * DAY_S, 6 * DAY_S, 8 * DAY_S, 10 * DAY_S, 12 * DAY_S, 14 * DAY_S]
    shares = [_share_of(found, before, after) for found in _transitions(simulation, cuts)]
    np.testing.assert_allclose(shares, [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0], atol=0.05)


def test_users_turn_to_the_shelves_they_like_and_to_others_after_the_change(clean: Simulation) -> None:
    items = {
        item.item_id: item for item in decoded(clean, topics.ITEMS, skip_tombstones=True) if isinstance(item, Item)
    }
    counts, truth = np.zeros((2, CLEAN.users, 8)), clean.truth
    assert truth.change_at is not None
    for event in events(clean):
        if not isinstance(event, Relation):
            assert event.item_id is not None
            shelf = int(items[event.item_id].attributes["shelf"])
            counts[int(event.occurred_at >= truth.change_at), int(event.user_id[9:]), shelf] += 1
    for found, regime in zip(counts, (truth.before, truth.after), strict=True):
        distance = np.abs(found / found.sum(axis=1, keepdims=True) - regime.interests).sum(axis=1) / 2
        assert distance.mean() < 0.12
    assert np.abs(truth.before.interests - truth.after.interests).sum(axis=1).mean() / 2 > 0.4


def test_a_basket_is_bought_at_one_instant_at_one_merchant_under_ids_of_its_own(clean: Simulation) -> None:
    baskets: dict[tuple[str, object], list[Payment]] = defaultdict(list)
    for event in events(clean):
        if isinstance(event, Payment):
            baskets[event.user_id, event.occurred_at].append(event)
    sizes = np.array([len(basket) for basket in baskets.values()])
    assert sizes.mean() == pytest.approx(CLEAN.basket_items, abs=0.03)
    assert (sizes == 1).mean() == pytest.approx(np.exp(1 - CLEAN.basket_items), abs=0.02)  # 1 + Poisson
    assert all(len({payment.payee_id for payment in basket}) == 1 for basket in baskets.values())
    assert all(len({payment.event_id for payment in basket}) == len(basket) for basket in baskets.values())


def test_frauds_are_as_frequent_as_user_and_merchant_make_them(clean: Simulation) -> None:
    truth = clean.truth
    vulnerable = set(truth.vulnerable_users)
    labels = {one.subject_event_id: one.value for one in decoded(clean, topics.LABELS) if isinstance(one, Label)}
    counts = np.zeros((2, 2, 2))
    for payment in events(clean):
        if isinstance(payment, Payment) and payment.event_id in labels:
            assert truth.change_at is not None
            merchants = truth.dangerous_merchants["before" if payment.occurred_at < truth.change_at else "after"]
            cell = counts[int(payment.payee_id in merchants), int(payment.user_id in vulnerable)]
            cell[int(labels[payment.event_id])] += 1
    expected, seen = np.array(FRAUD), counts.sum(axis=2)
    spread = np.sqrt(expected * (1 - expected) / seen)
    assert (np.abs(counts[:, :, 1] / seen - expected) < 4 * spread).all()
    assert seen.min() > 100


def test_a_payment_is_labelled_after_the_stated_delay_and_risky_ones_are_told(clean: Simulation) -> None:
    risky = {payment.event_id: payment for payment in clean.truth.risky_payments}
    labelled = set()
    for label in decoded(clean, topics.LABELS):
        assert isinstance(label, Label)
        assert label.known_at - label.ref_time == timedelta(seconds=CLEAN.label_delay_s)
        labelled.add(label.subject_event_id)
        if label.subject_event_id in risky:
            told = risky[label.subject_event_id]
            assert (told.label_at, told.fraud) == (label.known_at, bool(label.value))
    open_still = {event_id for event_id, payment in risky.items() if payment.label_at is None}
    assert set(risky) - labelled == open_still
    end = CLEAN.start + timedelta(seconds=CLEAN.duration_s)
    paid = {event.event_id: event.occurred_at for event in events(clean) if isinstance(event, Payment)}
    assert {one for one, at in paid.items() if at + timedelta(days=1) < end} == labelled


def test_an_item_is_bought_only_between_its_publication_and_its_tombstone() -> None:
    scenario = replace(CLEAN, users=50, items=12, retire_every_s=0.5 * DAY_S)
    simulation = Simulation(scenario)
    on_sale, retired = set[str](), []
    decoders = {topic: Decoder(topics.INPUTS[topic]) for topic in (topics.USER, topics.PAYMENT)}
    for topic, key, value, _ in simulation.records():
        if topic == topics.ITEMS:
            assert key is not None
            (on_sale.discard if value is None else on_sale.add)(key.decode())
            retired += [key.decode()] if value is None else []
        elif topic in decoders:
            record = decoders[topic].decode(value, key)
            assert not isinstance(record, Label | Relation)
            assert record.item_id in on_sale
    assert len(on_sale) == 12
    assert retired == [item.item_id for item in simulation.truth.retired_items]
    assert len(retired) == 27  # every half day, and not at the end itself


def test_items_have_titles_of_their_own(clean: Simulation) -> None:
    titles = [item.title for item in _items(clean)]
    assert len(set(titles)) == len(titles) == CLEAN.items + 13
    assert all(titles)


def test_all_types_occur(clean: Simulation) -> None:
    found = Counter(one.type for one in occasions(clean))
    assert set(found) == {*TYPES, MESSAGE}
    assert min(found.values()) > 0.03 * sum(found.values())


def _items(simulation: Simulation) -> list[Item]:
    return [item for item in decoded(simulation, topics.ITEMS, skip_tombstones=True) if isinstance(item, Item)]


def _transitions(simulation: Simulation, cuts: list[float]) -> list[NDArray[np.float64]]:
    """Between each two of these times (in seconds), the frequencies of what follows what, messages left out."""
    own = [one for one in occasions(simulation) if one.type != MESSAGE]
    stretch = np.searchsorted(cuts, seconds(own, simulation.scenario.start), side="right") - 1
    counts, last = np.zeros((len(cuts) - 1, len(TYPES), len(TYPES))), dict[str, int]()
    for one, place in zip(own, stretch.tolist(), strict=True):
        kind = TYPES.index(one.type)
        if one.user in last:
            counts[place, last[one.user], kind] += 1
        last[one.user] = kind
    return list(counts / counts.sum(axis=2, keepdims=True))


def _share_of(found: NDArray[np.float64], old: NDArray[np.float64], new: NDArray[np.float64]) -> float:
    """How far `found` lies on the way from old to new."""
    way = new - old
    return float(((found - old) * way).sum() / (way**2).sum())
