"""What producers write into headers costs no record and stops nobody: real bytes over real brokers."""

from __future__ import annotations

import pytest

from contracts import topics
from contracts.codec import encode
from driftline.audit import audit
from runtime.kafka import KafkaConfig
from tests.integration.feeding import START_MS, event, identity, ingest_once, item, label, letters, taken
from tests.raw_records import Header, Raw, write_raw

NOT_UTF8: list[Header] = [(b"\xff\xfe", b"1"), (b"driftline-origin", b"1:1")]


@pytest.fixture
def topics_(topics: KafkaConfig) -> KafkaConfig:
    """All topics; the module of their names has the better claim to the name."""
    return topics


def of_user(config: KafkaConfig, number: int, *headers: Header, key: bytes = b"ann") -> Raw:
    """A user event."""
    value = encode(event(f"e{number}"))
    return Raw(topic=config.physical(topics.USER), partition=0, key=key, value=value, at_ms=START_MS, headers=headers)


def test_three_events_of_three_users_with_one_origin_header_are_three(database: str, topics_: KafkaConfig) -> None:
    records = [
        Raw(
            topic=topics_.physical(topics.USER),
            partition=0,
            key=user.encode(),
            value=encode(event("e1", user)),
            at_ms=START_MS,
            headers=[(b"driftline-origin", spelling)],
        )
        for user in ("ann", "bob", "eve")
        for spelling in (b"077:777", b"77:777", b"77:777:" + b"0" * 64)
    ]
    write_raw(topics_.bootstrap, records)
    totals = ingest_once(database, topics_)
    assert (totals.accepted, totals.duplicates, totals.ignored_origins) == (3, 6, 9)
    report = audit(database, topics_, duplicate_window=1_000_000)
    assert report.ok
    assert report.topics[topics.USER].ignored_origins == 9


def test_a_record_whose_header_name_is_not_utf_8_counts_and_is_noted(database: str, topics_: KafkaConfig) -> None:
    bad = of_user(topics_, 1, *NOT_UTF8)
    other_topics = [
        Raw(
            topic=topics_.physical(topic),
            partition=0,
            key=key,
            value=encode(record),
            at_ms=START_MS,
            headers=NOT_UTF8,
        )
        for topic, key, record in ((topics.LABELS, b"ann", label("l1")), (topics.ITEMS, b"i1", item("i1")))
    ]
    refused = of_user(topics_, 3, *NOT_UTF8, key=b"bob")
    write_raw(topics_.bootstrap, [of_user(topics_, 0), bad, of_user(topics_, 2), refused, *other_topics], codec="lz4")
    totals = ingest_once(database, topics_)
    assert (totals.read, totals.accepted, totals.unreadable_headers) == (6, 5, 3)
    assert {identity(event(f"e{n}")) for n in range(3)} <= taken(database).identities
    assert letters(database) == [("key_mismatch", topics.USER)]
    report = audit(database, topics_, duplicate_window=1_000_000)
    assert report.ok
    assert [report.topics[topic].unreadable_headers for topic in (topics.USER, topics.LABELS, topics.ITEMS)] == [
        1,
        1,
        1,
    ]


def test_a_thousand_records_whose_header_names_are_not_utf_8_end_no_process(
    database: str, topics_: KafkaConfig
) -> None:
    """`message.headers()`, once CPython has specialised the call, does not raise any more: it crashes."""
    write_raw(topics_.bootstrap, [of_user(topics_, n, *NOT_UTF8) for n in range(1000)])
    totals = ingest_once(database, topics_)
    assert (totals.accepted, totals.unreadable_headers) == (1000, 1000)
    assert audit(database, topics_, duplicate_window=1_000_000).ok
