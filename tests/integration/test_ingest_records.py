"""What becomes of records on their way from Kafka to Postgres: good, bad, huge, late."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from contracts import topics
from contracts.codec import encode
from contracts.records import Label, Payment, Relation, UserEvent
from runtime import metrics
from runtime.kafka import KafkaConfig
from storage.engine import open_engine
from storage.log import dead_letters
from streams.ingest.dead_letter_notices import Notices
from tests.integration.feeding import (
    START_MS,
    Sender,
    event,
    eventually,
    identity,
    ingest_once,
    item,
    label,
    letters,
    payment,
    query,
    read_topic,
    relation,
    taken,
)
from tests.integration.owning import MakeOwner, message


def test_each_kind_of_record_stands_where_it_belongs(database: str, tansu_topics: KafkaConfig) -> None:
    sender = Sender(tansu_topics)
    records: list[UserEvent | Payment | Relation | Label] = [event("e1"), payment("p1"), label("l1")]
    records.append(relation("r1", "ann", "bob"))
    sender.send(*records, item("i1", "a title"))
    totals = ingest_once(database, tansu_topics)
    assert (totals.read, totals.accepted) == (5, 5)
    assert taken(database).identities == {identity(record) for record in records}
    assert query(database, "SELECT item_id, payload ->> 'title' FROM item_version") == [("i1", "a title")]


def count(topic: str, reason: str) -> float:
    value = metrics.REGISTRY.get_sample_value("driftline_ingest_dead_letters_total", {"topic": topic, "reason": reason})
    return value or 0.0


def test_bad_records_become_dead_letters_with_reason_origin_and_notice(
    database: str, tansu_topics: KafkaConfig
) -> None:
    sender = Sender(tansu_topics)
    good = encode(event("e1"))
    bad = {
        "not_json": (b"ann", b"{"),
        "missing_field": (b"ann", good.replace(b"event_id", b"evnt_id")),
        "oversized_field": (b"ann", encode(event("x" * 257))),
        "invalid_field": (b"ann", good.replace(b'"click"', b"5")),
        "unknown_version": (b"ann", good.replace(b'"1.0"', b'"2.0"')),
        "key_mismatch": (b"bob", good),
        "unstorable_text": (b"ann", good.replace(b"click", b"\\u0000")),
        "too_deep": (b"ann", good.replace(b"{", b'{"x":' + b"[" * 5000 + b"]" * 5000 + b",", 1)),
        "empty": (b"ann", None),
        "too_large": (b"ann", b" " * 1_000_001),
    }
    before = {reason: count(topics.USER, reason) for reason in bad}
    for key, value in bad.values():
        sender.put(topics.USER, key, value, partition=2)
    sender.put(topics.USER, b"ann", good, partition=2, at_ms=START_MS - 3 * 86_400_000)
    nan = encode(label("l1")).replace(b"1.0,", b"NaN,").replace(b'"value":1.0', b'"value":NaN')
    sender.put(topics.LABELS, b"ann", nan)
    sender.put(topics.RELATIONAL, b"ann", encode(relation("r1", "ann", "ann")))
    sender.send(event("e1"), event("e2"))
    totals = ingest_once(database, tansu_topics)
    assert (totals.accepted, totals.dead) == (2, len(bad) + 3)
    reasons = [reason for reason, topic in letters(database) if topic == topics.USER]
    assert reasons == [*bad, "time_out_of_range"]
    assert ("not_json", topics.LABELS) in letters(database)
    assert ("self_relation", topics.RELATIONAL) in letters(database)
    assert {reason: count(topics.USER, reason) - before[reason] for reason in bad} == dict.fromkeys(bad, 1)

    rows = query(database, "SELECT stream_id || ':' || position, reason, size, sha256 FROM dead_letter")
    notices = [json.loads(m.value() or b"") for m in read_topic(tansu_topics, topics.DEAD_LETTERS, at_least=len(rows))]
    assert sorted((n["id"], n["reason"], n["size"], n["sha256"]) for n in notices) == sorted(rows)
    eventually(lambda: query(database, "SELECT count(*) FROM dead_letter WHERE noticed_at IS NULL") == [(0,)])


def test_a_letter_keeps_the_record_or_says_that_it_is_cut(database: str, owner: MakeOwner) -> None:
    one = owner()
    exact, long = b"x" * dead_letters.MAX_VALUE_BYTES, b"x" * (dead_letters.MAX_VALUE_BYTES + 1)
    batch = [message(topics.USER, n, key=b"k", value=value) for n, value in enumerate([b"{", exact, long, None])]
    one.write({(topics.USER, 0): [*batch, message(topics.USER, 4, key=b"k" * 1025, value=b"{")]})
    stream_id = one.claims[topics.USER, 0].stream_id
    with one.connection.begin():
        found = [dead_letters.find(one.connection, f"{stream_id}:{n}") for n in range(6)]
    kept = [letter for letter in found if letter]
    assert [(letter.cut, letter.size, len(letter.value or b"")) for letter in kept] == [
        (False, 1, 1),
        (False, len(exact), len(exact)),
        (True, len(long), len(exact)),
        (False, 0, 0),
        (True, 1, 1),
    ]
    assert len({letter.sha256 for letter in kept}) == 4
    assert found[5] is None
    with one.connection.begin():
        assert dead_letters.counts(one.connection) == {"not_json": 4, "empty": 1}


def test_a_notice_is_repeated_until_it_is_acknowledged(
    database: str, owner: MakeOwner, tansu_topics: KafkaConfig
) -> None:
    one = owner()
    one.write({(topics.USER, 0): [message(topics.USER, n, key=b"k", value=b"{") for n in range(3)]})
    streams = [one.claims[topics.USER, 0].stream_id]
    engine = open_engine(database, application_name="test")
    nobody = KafkaConfig("127.0.0.1:1", options={"message.timeout.ms": "200"}, prefix=tansu_topics.prefix)
    unheard = Notices(nobody, engine)
    unheard.finish(streams, within_s=3)
    assert unheard.due
    unnoticed = "SELECT count(*) FROM dead_letter WHERE noticed_at IS NULL"
    assert query(database, unnoticed) == [(3,)]
    heard = Notices(tansu_topics, engine)
    heard.finish(streams, within_s=5)
    assert not heard.due
    assert query(database, unnoticed) == [(0,)]
    assert len(read_topic(tansu_topics, topics.DEAD_LETTERS, at_least=3)) == 3


def test_events_stand_in_their_place_by_event_time_whenever_they_arrive(
    database: str, tansu_topics: KafkaConfig
) -> None:
    sender = Sender(tansu_topics)
    sender.send(event("c", at=30), event("a", at=10), payment("p", at=20))
    ingest_once(database, tansu_topics)
    sender.send(event("b", at=15), event("late", at=-86_400 * 30), event("b", at=15))
    totals = ingest_once(database, tansu_topics)
    assert (totals.accepted, totals.duplicates) == (2, 1)
    rows = query(database, 'SELECT event_id FROM user_event ORDER BY at, event_id COLLATE "C"')
    assert [event_id for (event_id,) in rows] == ["late", "a", "b", "p", "c"]


def test_unknown_fields_are_ignored_and_counted_and_later_minor_versions_are_read(
    database: str, tansu_topics: KafkaConfig
) -> None:
    sender = Sender(tansu_topics)
    later = encode(event("e1")).replace(b'"1.0"', b'"1.9"').replace(b"{", b'{"new": {"deep": [1]},', 1)
    sender.put(topics.USER, b"ann", later)
    totals = ingest_once(database, tansu_topics)
    assert (totals.accepted, totals.dead) == (1, 0)
    assert query(database, "SELECT sum(unknown_fields) FROM log_segment") == [(1,)]


@pytest.mark.slow
def test_a_hundred_thousand_events_of_one_user_are_taken_in_one_batch(database: str, tansu_topics: KafkaConfig) -> None:
    sender, n = Sender(tansu_topics), 100_000
    template = encode(event("EVENT", "ann"))
    for number in range(n):
        sender.put(topics.USER, b"ann", template.replace(b"EVENT", b"e%d" % number), flush=False)
    sender.flush()
    totals = ingest_once(database, tansu_topics, batch_records=n, linger_s=20)
    assert totals.accepted == n
    assert query(database, "SELECT max(cardinality(at)), count(*) FROM user_segment")[0][0] > n / 4
    assert query(database, "SELECT count(DISTINCT event_id) FROM user_event") == [(n,)]


def test_batches_never_change_what_is_accepted(database: str, tansu_topics: KafkaConfig) -> None:
    sender = Sender(tansu_topics)
    sender.send(*(event(f"e{n % 40}", f"user {n % 7}", n) for n in range(280)))
    ingest_once(database, tansu_topics, batch_records=13)
    found = taken(database)
    assert Counter(found.log) == Counter({identity(event(f"e{n % 40}", f"user {n % 7}")) for n in range(280)})
    assert replace(found).totals["read"] == 280
