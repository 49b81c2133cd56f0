"""What producers write into headers costs no record and stops nobody: real bytes over real brokers."""

from __future__ import annotations

import pytest

from contracts import topics
from contracts.codec import encode
from driftline.audit.auditor import audit
from driftline.audit.findings import Finding
from runtime.kafka import KafkaConfig
from storage.log.event_log import decode_rows
from tests.integration.feeding import START_MS, event, identity, ingest_once, item, label, letters, query, taken
from tests.raw_records import Header, Raw, write_raw

NOT_UTF8: list[Header] = [(b"\xff\xfe", b"1"), (b"driftline-origin", b"1:1"), (b"%\xed\xfc", None), (b"a\xc3", b"")]
"""Several in one record: the client's errors then wrap each other."""


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


def test_verify_sees_what_was_dropped_for_a_header_that_proves_nothing(database: str, topics_: KafkaConfig) -> None:
    """As `ingest` once did: the record is a letter's replay by its own word alone, and the log does not hold it."""
    write_raw(topics_.bootstrap, [of_user(topics_, 0, key=b"bob"), of_user(topics_, 1)])
    ingest_once(database, topics_)
    [(letter,)] = query(database, "SELECT stream_id || ':' || position FROM dead_letter")
    forged = (b"driftline-origin", f"{letter}:{'0' * 64}".encode())
    write_raw(topics_.bootstrap, [of_user(topics_, 2, forged)])
    ingest_once(database, topics_)
    assert audit(database, topics_, duplicate_window=1_000_000).ok
    drop(database, 2)
    query(database, "INSERT INTO replayed_letter SELECT stream_id, position, stream_id, 1 FROM dead_letter")
    report = audit(database, topics_, duplicate_window=1_000_000)
    assert report.topics[topics.USER].findings[Finding.LOST] == 1


def test_verify_sees_a_letter_that_is_noted_as_come_in_by_a_record_that_does_not_count(
    database: str, topics_: KafkaConfig
) -> None:
    write_raw(topics_.bootstrap, [of_user(topics_, 0, key=b"bob"), of_user(topics_, 1), of_user(topics_, 1)])
    ingest_once(database, topics_)
    assert audit(database, topics_, duplicate_window=1_000_000).ok
    query(database, "INSERT INTO replayed_letter SELECT stream_id, position, stream_id, 2 FROM dead_letter")
    report = audit(database, topics_, duplicate_window=1_000_000)
    assert report.topics[topics.USER].findings[Finding.EXTRA] == 1


def drop(database: str, offset: int) -> None:
    """Takes an event out of log and sequences, as if it had been counted a duplicate."""
    [(rows, stream_id)] = query(database, "SELECT rows, stream_id FROM log_segment WHERE first_offset = %s", offset)
    assert decode_rows(rows).num_rows == 1
    query(
        database,
        "UPDATE log_segment SET rows = NULL, accepted = 0, duplicates = 1 WHERE stream_id = %s AND first_offset = %s",
        stream_id,
        offset,
    )
    query(database, "DELETE FROM user_segment WHERE stream_id = %s AND first_offset = %s", stream_id, offset)
