"""Named data sets: the rows of the files become the events that their modules say.

Small files of the same shape are made here; what only the real files can show is in tests/integration.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts import topics
from contracts.codec import Decoder, Malformed, Reason
from contracts.records import Item, Label, Payment, Relation, UserEvent
from driftline.datasets import amazon_titles, berka, foursquare, online_retail
from driftline.datasets.dataset_names import NAMES
from driftline.datasets.known import known_source
from driftline.recorded import Recording, Source
from runtime.lifecycle import ConfigurationError
from runtime.produce import Outgoing


def test_an_unknown_data_set_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="known: stackoverflow"):
        known_source("netflix", tmp_path)
    for name in NAMES:
        with pytest.raises(ConfigurationError, match=f"no file of {name}"):
            known_source(name, tmp_path)


# -- online_retail --


def test_retail_lines_are_purchases_cancellations_and_corrections_of_namespaced_items(tmp_path: Path) -> None:
    found = [_decoded(record) for record in _records(_retail(tmp_path)) if record.topic == topics.USER and record.key]
    assert [(event.type, event.user_id, event.item_id) for event in found] == [
        ("purchase", "online_retail:1", "online_retail:A"),
        ("cancellation", "online_retail:1", "online_retail:A"),
        ("correction", "online_retail:2", "online_retail:D"),
    ]


def test_a_retail_line_without_a_customer_is_refused_and_the_reason_names_the_user(tmp_path: Path) -> None:
    (nobody,) = [record for record in _records(_retail(tmp_path)) if record.key is None]
    with pytest.raises(Malformed, match="user_id") as refused:
        _decoded(nobody)
    assert refused.value.reason is Reason.MISSING_FIELD


def test_retail_items_carry_their_description_and_come_first(tmp_path: Path) -> None:
    item = _decoded(_records(_retail(tmp_path))[0])
    assert (item.item_id, item.title) == ("online_retail:A", "TEA POT")
    assert item.attributes == {"median_unit_price": "2.5 GBP"}


def _retail(folder: Path) -> Source:
    home = folder / "online_retail"
    lines = {
        "user_id": pa.array([1, None, 1, 2], pa.int32()),
        "item_id": ["A", "B", "A", "D"],
        "qty": [3, 1, -3, -1],
        "is_cancel": [False, False, True, False],
        "ts": [10, 10, 20, 30],
    }
    _write(home / "events.parquet", lines)
    _write(home / "items.parquet", {"item_id": ["A"], "title": ["TEA POT"], "median_unit_price": [2.5]})
    return online_retail.source(folder)


# -- foursquare --


def test_ids_that_two_cities_share_are_two_users_and_two_venues(tmp_path: Path) -> None:
    found = [_decoded(record) for record in _records(_foursquare(tmp_path)) if record.topic == topics.USER]
    assert [(event.user_id, event.item_id, event.type) for event in found] == [
        ("foursquare:NYC:1", "foursquare:NYC:7", "category-70"),
        ("foursquare:Jakarta:1", "foursquare:Jakarta:7", "category-3"),
        ("foursquare:NYC:1", "foursquare:NYC:7", "category-71"),
    ]


def test_friends_before_stand_before_all_check_ins_and_friends_after_behind_them(tmp_path: Path) -> None:
    records = _records(_foursquare(tmp_path))
    events = [_decoded(record) for record in records if record.topic != topics.ITEMS]
    assert [getattr(event, "relation", "check-in") for event in events] == [
        "friend-before",
        *["check-in"] * 3,
        "friend-after",
        "friend-after",
    ]
    before, *_, after = (event for event in events if isinstance(event, Relation))
    assert (before.actor_id, before.counterpart_id) == ("foursquare:NYC:1", "foursquare:NYC:2")
    assert before.occurred_at == datetime(1970, 1, 1, 1, tzinfo=UTC)
    assert after.occurred_at == datetime(1970, 1, 1, 3, 0, 1, tzinfo=UTC)
    assert len({event.event_id for event in events}) == len(events)


def test_a_venue_is_known_from_its_first_check_in_as_it_was_then(tmp_path: Path) -> None:
    venues = [(record.at_ms, _decoded(record)) for record in _records(_foursquare(tmp_path)) if record.topic == "items"]
    assert [(at_ms, item.item_id, item.attributes) for at_ms, item in venues] == [
        (3_600_000, "foursquare:NYC:7", {"city": "NYC", "category": "70"}),
        (7_200_000, "foursquare:Jakarta:7", {"city": "Jakarta", "category": "3"}),
    ]


def _foursquare(folder: Path) -> Source:
    home = folder / "lbsn_foursquare"
    check_ins = {
        "city": ["NYC", "NYC", "Jakarta"],
        "user_id": [1, 1, 1],
        "item_id": [7, 7, 7],
        "category": [71, 70, 3],
        "ts_local": [10_800, 3_600, 7_200],
    }
    friends = {"city": ["NYC"] * 3, "u": [1, 1, 1], "v": [2, 2, 3], "snapshot": ["old", "new", "new"]}
    _write(home / "events.parquet", check_ins)
    _write(home / "friends.parquet", friends)
    return foursquare.source(folder)


# -- berka --


def test_a_bank_payment_is_in_millionths_of_a_crown_and_says_what_it_was(tmp_path: Path) -> None:
    first, second = (_decoded(r) for r in _records(_berka(tmp_path)) if r.topic == topics.PAYMENT)
    assert isinstance(first, Payment)
    assert (first.amount, first.currency, first.payee_id) == (900_100_000, "CZK", None)
    assert first.type == "credit / credit in cash"
    assert (second.type, second.payee_id) == ("withdrawal / household", "berka:AB:5")


def test_a_loan_is_judged_at_its_end_or_at_the_end_of_the_records(tmp_path: Path) -> None:
    labels = [_decoded(record) for record in _records(_berka(tmp_path)) if record.topic == topics.LABELS]
    assert [(label.event_id, label.known_at, label.value) for label in labels] == [
        ("berka:loan-1", datetime(1995, 1, 28, tzinfo=UTC), 1.0),
        ("berka:loan-2", berka.RECORDS_END, 0.0),
    ]
    assert all(isinstance(label, Label) and label.subject_event_id is None for label in labels)
    assert labels[0].ref_time == datetime(1994, 1, 31, tzinfo=UTC)


def _berka(folder: Path) -> Source:
    home = folder / "berka_payments"
    payments = {
        "user_id": [1, 2],
        "ts": [_seconds(1993, 1, 1), _seconds(1993, 1, 2)],
        "amount": [900.1, 5.0],
        "counterparty": [None, "AB:5"],
        "type": ["credit", "withdrawal"],
        "operation": ["credit in cash", None],
        "k_symbol": [None, "household"],
    }
    loans = {
        "loan_id": [2, 1],
        "user_id": [1, 9],
        "duration": [60, 12],
        "ts": [_seconds(1998, 5, 1), _seconds(1994, 1, 31)],
        "risk": [0, 1],
    }
    _write(home / "events.parquet", payments)
    _write(home / "loans.parquet", loans)
    return berka.source(folder)


# -- amazon_titles --


def test_histories_and_targets_are_laid_out_once_in_their_order(tmp_path: Path) -> None:
    found = [_decoded(record) for record in _records(_amazon(tmp_path)) if record.topic == topics.USER]
    bought: dict[str, list[str]] = {}
    for event in found:
        bought.setdefault(event.user_id, []).append(event.item_id.rpartition(":")[2])
    assert bought == {
        "amazon_titles:Office:A1": ["10", "11", "12", "13"],
        "amazon_titles:Tools:A1": ["50", "51"],
        "amazon_titles:Office:A2": ["12", "10"],
    }
    assert len({event.event_id for event in found}) == len(found) == 8


def test_a_history_lies_before_every_target_and_targets_keep_the_order_of_the_rows(tmp_path: Path) -> None:
    minute = timedelta(minutes=1)
    found = [_decoded(record) for record in _records(_amazon(tmp_path)) if record.topic == topics.USER]
    times = {event.event_id.removeprefix("amazon_titles:"): event.occurred_at for event in found}
    first = amazon_titles.FIRST_TARGET_AT
    assert times["1:history-0"] == first - 2 * minute
    assert times["1:history-1"] == times["3:history-0"] == first - minute
    assert times["1"] == times["2"] == first
    assert times["3"] == first + minute
    assert times["0"] == first + 2 * minute  # of the test split, which follows the valid one


def test_made_up_times_are_marked_in_every_record(tmp_path: Path) -> None:
    records = _records(_amazon(tmp_path))
    assert {_decoded(record).source for record in records} == {"amazon_titles/synthetic-time"}
    item = _decoded(records[0])
    assert (item.item_id, item.title, item.text) == ("amazon_titles:Office:10", "Stapler", "Staples paper")
    assert item.attributes == {"category": "Office", "semantic_id": "<a_1>"}


def _amazon(folder: Path) -> Source:
    home = folder / "amazon_titles_sequences"
    rows = {
        "category": ["Office", "Office", "Tools", "Office"],
        "split": ["test", "valid", "valid", "valid"],
        "row": [0, 0, 0, 1],
        "user_id": ["A1", "A1", "A1", "A2"],
        "history": [[10, 11, 12], [10, 11], [50], [12]],
        "item_id": [13, 12, 51, 10],
    }
    items = {
        "category": ["Office"],
        "item_id": [10],
        "title": ["Stapler"],
        "description": ["Staples paper"],
        "brand": [""],
        "categories": [""],
        "semantic_id": ["<a_1>"],
    }
    _write(home / "sequences.parquet", rows)
    _write(home / "items.parquet", items)
    return amazon_titles.source(folder)


def _write(file: Path, columns: dict[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), file)


def _records(source: Source) -> list[Outgoing]:
    records = list(Recording(source).records())
    assert [record.at_ms for record in records] == sorted(record.at_ms for record in records)
    return records


def _decoded(record: Outgoing) -> Any:
    found = Decoder(topics.INPUTS[record.topic]).decode(record.value, record.key)
    assert isinstance(found, UserEvent | Payment | Relation | Item | Label)
    return found


def _seconds(*day: int) -> int:
    year, month, day_of_month = day
    return int(datetime(year, month, day_of_month, tzinfo=UTC).timestamp())
