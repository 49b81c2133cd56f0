"""The real data sets: as many records as their files have rows, each what its module says.

The figures are those of the data's own README. Skipped where the data are absent.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from contracts import topics
from contracts.codec import Decoder, Malformed
from contracts.records import Item, Label, Payment, Relation
from driftline.datasets.amazon_titles import STATED
from driftline.datasets.dataset_names import NAMES
from driftline.datasets.known import known_source
from driftline.recorded import Recording

ROWS = {
    "stackoverflow": 327_487,
    "taobao": 115_397,
    "collegemsg": 59_835,
    "fdh": 1_754_155,
    "online_retail": 541_909,
    "foursquare": 1_260_764,
    "berka": 79_302,
    "amazon_titles": 18_797 + 26_393,  # targets, and the histories of users' first targets
}
NO_USER = "missing_field: Object missing required field `user_id`"


@dataclass
class Found:
    """What a reader makes of records."""

    read: Counter[str] = field(default_factory=Counter)
    """By topic."""
    refused: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    users: set[str] = field(default_factory=set)
    items: set[str] = field(default_factory=set)
    labels: Counter[float] = field(default_factory=Counter)
    sources: set[str] = field(default_factory=set)
    ids: set[tuple[str, str, str]] = field(default_factory=set)
    titled: int = 0


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_has_as_many_rows_as_its_file(name: str, shared_data: Path) -> None:
    assert Recording(known_source(name, shared_data)).total == ROWS[name]


def test_retail_rows_that_name_no_user_are_refused_for_that_and_all_others_are_accepted(shared_data: Path) -> None:
    found = _read("online_retail", shared_data)
    assert found.read == {topics.USER: 541_909, topics.ITEMS: 3_958}
    assert found.refused == {NO_USER: 135_080}
    assert found.types == {"purchase": 397_924, "cancellation": 8_905}  # all 1,336 corrections name no user
    assert len(found.users) == 4_372
    assert found.titled == 3_958


@pytest.mark.slow
def test_check_ins_and_friendships_of_four_cities_are_namespaced(shared_data: Path) -> None:
    found = _read("foursquare", shared_data)
    assert found.read == {topics.USER: 1_260_764, topics.RELATIONAL: 118_821, topics.ITEMS: 29_557}
    assert found.refused == {"self_relation: actor and counterpart are the same user": 1}
    assert len(found.users) == 20_211
    assert len(found.items) == 29_557
    friends = {name: found.types.pop(name) for name in ("friend-before", "friend-after")}
    assert friends == {"friend-before": 45_745, "friend-after": 73_075}  # one row of the 45,746 is oneself
    assert len(found.types) == 475


def test_bank_accounts_have_payments_and_loans_labels(shared_data: Path) -> None:
    found = _read("berka", shared_data)
    assert found.read == {topics.PAYMENT: 79_302, topics.LABELS: 682}
    assert not found.refused
    assert len(found.users) == 1_583
    assert found.labels == {0.0: 606, 1.0: 76}


def test_every_title_and_every_target_of_amazon_comes_and_says_that_its_time_is_made_up(shared_data: Path) -> None:
    found = _read("amazon_titles", shared_data)
    assert found.read == {topics.USER: ROWS["amazon_titles"], topics.ITEMS: 7_145}
    assert not found.refused
    assert found.titled == 7_145
    assert found.sources == {STATED}


def test_badges_carry_their_names(shared_data: Path) -> None:
    types = known_source("stackoverflow", shared_data).type_names
    assert len(types) == 22
    assert "Caucus" in types.values()


def test_an_amount_of_fdh_is_the_decimal_it_was_written_as(shared_data: Path) -> None:
    first = next(iter(Recording(known_source("fdh", shared_data), limit=1).records()))
    payment = Decoder(Payment).decode(first.value, first.key)
    assert isinstance(payment, Payment)
    assert (payment.amount, payment.event_id, payment.payee_id) == (57_160_000, "fdh:0", "fdh:3156")


@pytest.mark.parametrize("name", ["stackoverflow", "taobao", "collegemsg", "fdh"])
def test_the_first_rows_of_the_others_are_valid(name: str, shared_data: Path) -> None:
    found = _read(name, shared_data, limit=5_000)
    assert not found.refused
    assert sum(found.read[topic] for topic in topics.EVENTS) == 5_000
    assert sum(found.labels.values()) == (5_000 if name == "fdh" else 0)


def _read(name: str, folder: Path, limit: int | None = None) -> Found:
    """All records, in the order of their times, each with an id of its own."""
    decoders = {topic: Decoder(kind) for topic, kind in topics.INPUTS.items()}
    found, last_ms = Found(), 0
    for topic, key, value, at_ms in Recording(known_source(name, folder), limit=limit).records():
        assert at_ms >= last_ms
        last_ms = at_ms
        found.read[topic] += 1
        try:
            record = decoders[topic].decode(value, key)
        except Malformed as error:
            found.refused[str(error)] += 1
            continue
        found.sources.add(record.source)
        if isinstance(record, Item):
            found.items.add(record.item_id)
            found.titled += bool(record.title)
            continue
        identity = (topic, str(key), record.event_id)
        assert identity not in found.ids
        found.ids.add(identity)
        if isinstance(record, Label):
            found.labels[record.value] += 1
        elif isinstance(record, Relation):
            found.types[record.relation] += 1
        else:
            found.types[record.type] += 1
            found.users.add(record.user_id)
    return found
