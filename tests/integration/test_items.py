"""Rule 9: versions of items as of a cursor, deletions, and deletions that nobody could read any more."""

from __future__ import annotations

import time
from typing import Any

import pytest
from confluent_kafka import Message

from contracts import topics
from contracts.codec import encode
from contracts.records import Item
from driftline.audit.auditor import audit
from runtime.kafka import KafkaConfig
from storage import items
from storage.log import event_log
from tests.integration.feeding import Sender, engine_of, eventually, ingest_once, item, query
from tests.integration.owning import MakeOwner, Owner, message
from tests.integration.test_ingest_kafka import compact_at_once, left_on_items

PLACE = (topics.ITEMS, 0)


def said(offset: int, item_id: str, title: str | None = "here") -> Message:
    """A record of `items`; without a title, a tombstone."""
    if title is None:
        return message(topics.ITEMS, offset, key=item_id.encode())
    return message(topics.ITEMS, offset, item(item_id, title))


def rows(database: str) -> list[tuple[Any, ...]]:
    """(offset, item, title or None) as stored; the log must hold the same offsets and items."""
    stored = query(database, "SELECT position, item_id, payload ->> 'title' FROM item_version ORDER BY position")
    [(stream_id,)] = query(database, "SELECT DISTINCT stream_id FROM item_version")
    with engine_of(database).connect() as connection:
        segments = [segment.rows for segment in event_log.read(connection, stream_id, 0) if segment.rows is not None]
    logged = [(row["offset"], row["item"]) for table in segments for row in table.to_pylist()]
    assert logged == [(offset, item_id) for offset, item_id, _ in stored]
    return stored


def known(owner: Owner, *item_ids: str, below: int = 10**9) -> dict[str, str]:
    """Titles as of an offset."""
    with owner.connection.begin():
        found = items.as_of(owner.connection, item_ids, {owner.claims[PLACE].stream_id: below})
    return {item_id: payload["title"] for item_id, payload in found.items()}


def test_as_of_a_cursor_an_item_is_what_was_said_last_below_it_and_gone_behind_a_tombstone(owner: MakeOwner) -> None:
    one = owner(PLACE)
    story = ["first", "second", None, None, "again"]
    one.write({PLACE: [said(n, "i1", title) for n, title in enumerate(story)]})
    assert [known(one, "i1", "i2", below=n).get("i1") for n in range(6)] == [None, *story]
    with one.connection.begin():
        found = items.versions(one.connection, "i1", {one.claims[PLACE].stream_id: 4}, limit=3)
    assert [(v.offset, v.payload and v.payload["title"]) for v in found] == [(3, None), (2, None), (1, "second")]


def test_texts_of_all_sizes_and_alphabets_come_back_as_they_were_sent(owner: MakeOwner) -> None:
    one = owner(PLACE)
    long, strange = "x" * 20_000, 'été \U0001f600 "quoted" \\ \u2028 <b>\n\t'
    record = Item(item_id="i1", source="test", title=strange, text=long, attributes={strange[:9]: long, "empty": ""})
    one.write({PLACE: [message(topics.ITEMS, 0, record)]})
    with one.connection.begin():
        found = items.as_of(one.connection, ["i1"], {one.claims[PLACE].stream_id: 1})
    assert found == {
        "i1": {"title": strange, "text": long, "attributes": {strange[:9]: long, "empty": ""}, "source": "test"}
    }


def test_an_item_without_a_record_on_the_topic_is_ended_where_an_offset_is_missing(
    database: str, owner: MakeOwner
) -> None:
    one = owner(PLACE)
    one.write({PLACE: [said(0, "gone"), said(1, "stays"), said(2, "gone too")]})
    one = owner(PLACE)
    one.newest_records = {"stays": None, "new": None}
    one.write({PLACE: [said(3, "new"), said(5, "new"), said(8, "new")]})
    assert rows(database)[4:-1] == [(4, "gone", None), (5, "new", "here"), (6, "gone too", None)]
    assert [sorted(known(one, "gone", "gone too", "stays", below=n)) for n in (4, 5, 7)] == [
        ["gone", "gone too", "stays"],
        ["gone too", "stays"],
        ["stays"],
    ]


def test_without_a_gap_the_topic_is_not_looked_at(database: str, owner: MakeOwner) -> None:
    one = owner(PLACE)
    one.write({PLACE: [said(0, "i1")]})
    one = owner(PLACE)  # its topic seems to hold nothing: a look would end the item
    one.write({PLACE: [said(1, "i2")]})
    assert known(one, "i1") == {"i1": "here"}


def test_items_are_ended_batch_by_batch_and_by_the_next_owner_if_the_first_dies(
    database: str, owner: MakeOwner
) -> None:
    one = owner(PLACE)
    one.write({PLACE: [said(n, f"i{n}") for n in range(4)]})
    for offset in (5, 7):  # one offset is missing before each
        one = owner(PLACE)
        one.newest_records = {"i0": None, "new": None}
        one.write({PLACE: [said(offset, "new")]})
    one.write({PLACE: [said(9, "new")]})
    assert sorted(known(one, "i0", "i1", "i2", "i3")) == ["i0"]
    assert [row[1:] for row in rows(database) if row[2] is None] == [("i1", None), ("i2", None), ("i3", None)]


def test_a_tombstone_that_was_there_and_goes_before_it_is_read_counts_where_it_stood(
    database: str, owner: MakeOwner
) -> None:
    one = owner(PLACE)
    one.write({PLACE: [said(0, "read"), said(1, "lost"), said(2, "i")]})
    one = owner(PLACE)
    one.newest_records = {"read": 5, "lost": 6, "i": None}
    one.write({PLACE: [said(4, "i")]})
    assert sorted(known(one, "read", "lost")) == ["lost", "read"]
    one.write({PLACE: [said(5, "read", None), said(8, "i")]})
    assert [row for row in rows(database) if row[2] is None] == [(5, "read", None), (6, "lost", None)]


def test_an_item_that_lives_again_is_not_ended(database: str, owner: MakeOwner) -> None:
    one = owner(PLACE)
    one.write({PLACE: [said(0, "i1"), said(1, "i2")]})
    one = owner(PLACE)
    one.newest_records = {}
    one.write({PLACE: [said(3, "i1", "again")]})
    assert known(one, "i1", "i2") == {"i1": "again"}


@pytest.mark.kafka
@pytest.mark.timeout(300)
def test_after_a_downtime_longer_than_tombstones_are_kept_deleted_items_are_deleted(
    database: str, kafka_topics: KafkaConfig
) -> None:
    compact_at_once(kafka_topics)
    sender, start = Sender(kafka_topics), int(time.time() * 1000)
    for n, item_id in enumerate(["gone", "stays", "gone too"]):
        sender.put(topics.ITEMS, item_id.encode(), encode(item(item_id, "here")), at_ms=start + n)
    assert ingest_once(database, kafka_topics).read == 3
    for n, key in enumerate([b"gone", b"gone too"]):
        sender.put(topics.ITEMS, key, None, at_ms=start + 1000 + n)

    def forgotten() -> bool:
        at_ms = int(time.time() * 1000)  # the cleaner passes over what has not grown, and twice before it forgets
        sender.put(topics.ITEMS, b"filler", encode(item("filler", str(at_ms))), at_ms=at_ms)
        return {key for key, _ in left_on_items(kafka_topics)} == {b"stays", b"filler"}

    eventually(forgotten, within_s=120, every_s=0.3)
    ingest_once(database, kafka_topics)
    alive = query(
        database,
        "SELECT item_id FROM (SELECT DISTINCT ON (item_id) item_id, payload FROM item_version"
        " ORDER BY item_id, position DESC) v WHERE payload IS NOT NULL ORDER BY 1",
    )
    assert alive == [("filler",), ("stays",)]
    before = query(database, "SELECT count(*) FROM item_version")
    sender.put(topics.ITEMS, b"gone", encode(item("gone", "again")), at_ms=int(time.time() * 1000))
    ingest_once(database, kafka_topics)
    assert query(database, "SELECT count(*) - %s FROM item_version", *before[0]) == [(1,)]
    report = audit(database, kafka_topics, duplicate_window=1000)
    assert report.ok, report
