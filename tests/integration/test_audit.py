"""`driftline verify` finds what is wrong, and nothing where nothing is."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta

import psycopg
import pytest
from confluent_kafka import TopicPartition
from psycopg import sql
from sqlalchemy import make_url

from contracts import topics
from contracts.codec import encode
from driftline.audit.auditor import audit
from driftline.audit.findings import AuditReport, Finding
from runtime import kafka
from runtime.kafka import KafkaConfig
from storage.log import log_retention
from storage.privacy import erasure
from storage.sequences import compaction
from tests.integration.feeding import (
    START_MS,
    Sender,
    engine_of,
    event,
    ingest_once,
    item,
    label,
    payment,
    query,
    relation,
)

WINDOW = 1_000_000


@pytest.fixture(scope="module")
def ingested(postgres_server: str, _template: str, tansu: str) -> Iterator[tuple[str, KafkaConfig]]:
    """A database with a bit of everything, and the topics it came from."""
    config = KafkaConfig(tansu, prefix=f"audit-{uuid.uuid4().hex[:12]}.")
    kafka.create_topics(config, topics.ALL)
    name = _create(postgres_server, str(make_url(_template).database))
    url = make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    sender = Sender(config)
    for n in range(30):
        user = f"user-{n % 5}"
        sender.send(event(f"e{n}", user, n, item=f"item-{n % 3}"), payment(f"p{n}", user, n, amount=-n))
        sender.send(relation(f"r{n}", user, f"user-{(n + 1) % 5}", n), label(f"l{n}", user, n))
    sender.send(event("e3", "user-3", 3), label("l4", "user-4", 4))  # repetitions
    sender.send(item("item-0", "first"), item("item-0", "second"))
    sender.put(topics.ITEMS, b"item-0", None)
    sender.put(topics.USER, b"user-1", b"{}")
    sender.put(topics.USER, b"user-1", b"not JSON")
    ingest_once(url, config)
    sender.send(event("e3", "user-3", 3), event("later", "user-3", 99))  # across a restart
    ingest_once(url, config)
    yield url, config
    _drop(postgres_server, name)


@pytest.fixture
def copied(postgres_server: str, ingested: tuple[str, KafkaConfig]) -> Iterator[Callable[[str], AuditReport]]:
    """Plants a fault in a copy of the database and audits it."""
    url, config = ingested
    name = _create(postgres_server, str(make_url(url).database))
    copy = make_url(url).set(database=name).render_as_string(hide_password=False)

    def audited(fault: str) -> AuditReport:
        query(copy, fault)
        return audit(copy, config, duplicate_window=WINDOW)

    yield audited
    _drop(postgres_server, name)


def test_a_clean_database_has_no_findings_and_every_record_is_accounted_for(
    ingested: tuple[str, KafkaConfig],
) -> None:
    url, config = ingested
    report = audit(url, config, duplicate_window=WINDOW)
    assert report.ok
    assert report.read == 4 * 30 + 2 + 3 + 2 + 2
    user = report.topics[topics.USER]
    assert (user.read, user.accepted, user.dead, user.duplicates) == (35, 31, 2, 2)
    assert report.topics[topics.LABELS].duplicates == 1
    assert report.topics[topics.RELATIONAL].in_sequences == 60
    assert report.topics[topics.ITEMS].in_sequences == 3


FAULTS = {
    "a log row is gone": (
        "DELETE FROM log_segment WHERE (stream_id, first_offset) IN (SELECT g.stream_id, g.first_offset FROM"
        " log_segment g JOIN stream_offset USING (stream_id) WHERE topic = 'events.payment' LIMIT 1)",
        {Finding.LOST, Finding.CHAIN, Finding.EXTRA_IN_SEQUENCE},
    ),
    "a user's segment is there twice": (
        "INSERT INTO user_segment SELECT user_id, stream_id, first_offset, epoch + 1000, at, kind, type, item, amount,"
        " currency, other, event_id, stream, position FROM user_segment LIMIT 1",
        {Finding.TWICE_IN_SEQUENCE},
    ),
    "one side of a relation is gone": (
        "DELETE FROM user_segment WHERE ctid = (SELECT ctid FROM user_segment WHERE 4 = ANY(kind) LIMIT 1)",
        {Finding.NOT_IN_SEQUENCE},
    ),
    "an event stands in another user's sequence": (
        "UPDATE user_segment SET user_id = user_id + 1000 WHERE ctid = (SELECT ctid FROM user_segment LIMIT 1)",
        {Finding.WRONG_IN_SEQUENCE},
    ),
    "an amount was changed": (
        "UPDATE user_segment SET amount[1] = 1 WHERE ctid = (SELECT ctid FROM user_segment WHERE 2 = kind[1] LIMIT 1)",
        {Finding.WRONG_IN_SEQUENCE},
    ),
    "an event id was changed": (
        "UPDATE user_segment SET event_id[1] = 'x' WHERE ctid = (SELECT ctid FROM user_segment LIMIT 1)",
        {Finding.WRONG_IN_SEQUENCE},
    ),
    "the chain is broken": (
        "UPDATE log_segment SET next_offset = next_offset + 1 WHERE ctid = (SELECT ctid FROM log_segment LIMIT 1)",
        {Finding.CHAIN},
    ),
    "the offset went on without its segment": (
        "UPDATE stream_offset SET next_offset = next_offset - 1 WHERE topic = 'labels' AND next_offset > 0",
        {Finding.CHAIN},
    ),
    "a dead letter is gone": (
        "DELETE FROM dead_letter WHERE ctid = (SELECT ctid FROM dead_letter LIMIT 1)",
        {Finding.LOST},
    ),
    "a dead letter is there twice": (
        "INSERT INTO dead_letter SELECT stream_id, position, epoch + 1000, reason, detail, record_at, received_at, key,"
        " value, size, sha256, cut, noticed_at FROM dead_letter LIMIT 1",
        {Finding.TWICE},
    ),
    "a dead letter speaks of a valid record": (
        "UPDATE dead_letter SET position = 0 WHERE ctid = (SELECT ctid FROM dead_letter LIMIT 1)",
        {Finding.LOST, Finding.EXTRA},
    ),
    "a version of an item is gone": (
        "DELETE FROM item_version WHERE ctid = (SELECT ctid FROM item_version LIMIT 1)",
        {Finding.NOT_IN_SEQUENCE},
    ),
    "a version of an item says something else": (
        "UPDATE item_version SET payload = '{}' WHERE ctid = (SELECT ctid FROM item_version WHERE payload IS NOT NULL"
        " LIMIT 1)",
        {Finding.WRONG_IN_SEQUENCE},
    ),
    "a segment's counts were changed": (
        "UPDATE log_segment SET duplicates = duplicates + 1, read = read + 1 WHERE ctid ="
        " (SELECT g.ctid FROM log_segment g JOIN stream_offset USING (stream_id)"
        " WHERE topic = 'events.payment' LIMIT 1)",
        {Finding.COUNTS},
    ),
    "a segment's rows are another's": (
        "UPDATE log_segment a SET rows = b.rows, accepted = b.accepted FROM log_segment b,"
        " stream_offset s, stream_offset t"
        " WHERE s.stream_id = a.stream_id AND t.stream_id = b.stream_id AND s.topic = 'events.payment'"
        " AND t.topic = 'events.payment' AND s.partition <> t.partition AND a.rows IS NOT NULL AND b.rows IS NOT NULL",
        {Finding.WRONG, Finding.WRONG_IN_SEQUENCE},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_named(fault: str, copied: Callable[[str], AuditReport]) -> None:
    statement, expected = FAULTS[fault]
    report = copied(statement)
    found = {f: topic.places[f] for topic in report.topics.values() for f, n in topic.findings.items() if n}
    assert not report.ok
    assert expected <= found.keys(), found
    assert all(place.offset >= 0 for places in found.values() for place in places)


def test_an_accepted_record_that_was_counted_again_is_found(ingested: tuple[str, KafkaConfig], database: str) -> None:
    _, config = ingested
    ingest_once(database, config, duplicate_window=1)  # too small a window for what follows
    report = audit(database, config, duplicate_window=WINDOW)
    twice = sum(topic.findings[Finding.TWICE] for topic in report.topics.values())
    within = audit(database, config, duplicate_window=1)
    beyond = sum(topic.beyond_window for topic in within.topics.values())
    assert twice == beyond == 3 - _within_batches(database)
    assert within.ok


def test_what_was_not_read_yet_is_counted_and_nothing_else(ingested: tuple[str, KafkaConfig], database: str) -> None:
    _, config = ingested
    report = audit(database, config, duplicate_window=WINDOW)
    assert report.ok
    assert report.read == 0
    assert sum(topic.not_yet_read for topic in report.topics.values()) > 0


def _within_batches(database: str) -> int:
    """Repetitions that fell into one batch with what they repeat: these are recognised by any window."""
    return int(query(database, "SELECT coalesce(sum(duplicates), 0) FROM log_segment")[0][0])


def _create(server: str, template: str) -> str:
    name = f"driftline_test_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (name, template))))
    return name


def _drop(server: str, name: str) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.mark.kafka
def test_aborted_records_and_markers_are_no_records(kafka_topics: KafkaConfig, database: str) -> None:
    extra = {"transactional.id": f"{kafka_topics.prefix}t", "message.timeout.ms": 10_000, "linger.ms": 0}
    producer = kafka.producer(kafka_topics, extra=extra)
    producer.init_transactions(30)
    for n, committed in enumerate((True, False, True, False)):
        producer.begin_transaction()
        for user in ("ann", "bob", "cyd", "dan"):
            record = event(f"e{n}", user, n)
            producer.produce(kafka_topics.physical(topics.USER), key=user, value=encode(record), timestamp=START_MS)
        if committed:
            producer.commit_transaction(30)
        else:
            producer.flush(30)
            producer.abort_transaction(30)
    ingest_once(database, kafka_topics)
    report = audit(database, kafka_topics, duplicate_window=WINDOW)
    assert report.ok
    assert report.read == report.topics[topics.USER].accepted == 8


@pytest.mark.kafka
def test_what_the_topic_no_longer_retains_is_counted_and_checked_against_the_sequences(
    kafka_topics: KafkaConfig, database: str
) -> None:
    sender = Sender(kafka_topics)
    sender.send(*(event(f"e{n}", "ann", n) for n in range(6)))
    sender.put(topics.USER, b"ann", b"not JSON")
    sender.send(event("last", "ann", 9))
    ingest_once(database, kafka_topics)
    ((partition,),) = query(database, "SELECT partition FROM stream_offset JOIN dead_letter USING (stream_id)")
    admin = kafka.admin(kafka_topics)  # kept: its answers die with it
    place = TopicPartition(kafka_topics.physical(topics.USER), partition, 7)
    for answer in admin.delete_records([place]).values():
        answer.result(timeout=30)
    report = audit(database, kafka_topics, duplicate_window=WINDOW)
    assert report.ok
    user = report.topics[topics.USER]
    assert (user.read, user.accepted, user.not_retained, user.in_sequences) == (1, 1, 7, 7)
    query(database, "UPDATE user_segment SET at[1] = 0")
    report = audit(database, kafka_topics, duplicate_window=WINDOW)
    assert report.topics[topics.USER].findings[Finding.WRONG_IN_SEQUENCE] == 1


def test_compaction_trimming_and_erasing_leave_nothing_to_find_and_are_told(
    ingested: tuple[str, KafkaConfig], postgres_server: str
) -> None:
    url, config = ingested
    name = _create(postgres_server, str(make_url(url).database))
    copy = make_url(url).set(database=name).render_as_string(hide_password=False)
    engine = engine_of(copy)
    try:
        with engine.begin() as connection:
            users = [due.user_id for due in compaction.due(connection, rows=2, limit=100)]
            assert compaction.compact(connection, users).rows_after == 5
        assert audit(copy, config, duplicate_window=WINDOW).ok
        query(copy, "UPDATE log_segment SET last_record_at = last_record_at - interval '1 day' WHERE first_offset = 0")
        with engine.begin() as connection:
            policy = log_retention.Policy(keep={topics.USER: timedelta(0)}, duplicate_window=0)
            removed = log_retention.trim(connection, policy)
        assert removed.events > 0
        trimmed = audit(copy, config, duplicate_window=WINDOW)
        assert trimmed.ok, trimmed
        user = trimmed.topics[topics.USER]
        assert (user.read, user.accepted, user.not_in_log) == (35, 31 - removed.events, removed.events)
        assert (user.trimmed >= removed.events, user.in_sequences) == (True, 31 - removed.events)
        erasure.erase(engine, ["user-3"])
        erased = audit(copy, config, duplicate_window=WINDOW)
        assert erased.ok, erased
        assert erased.topics[topics.RELATIONAL].suppressed == 12
        assert erased.topics[topics.PAYMENT].suppressed == 6
        query(copy, "DELETE FROM log_segment WHERE stream_id = (SELECT stream_id FROM stream_offset WHERE topic ="
              " 'events.payment' LIMIT 1)")  # fmt: skip
        assert not audit(copy, config, duplicate_window=WINDOW).ok, "what retention did not remove is still missed"
    finally:
        engine.dispose()
        _drop(postgres_server, name)


def test_a_record_that_is_no_utf8_is_a_dead_letter_for_ingest_and_for_verify(
    tansu_topics: KafkaConfig, database: str
) -> None:
    """An optional field whose name is damaged must not vanish without a word."""
    whole = encode(event("e1", item="item-1"))
    sender = Sender(tansu_topics)
    for damaged in (whole.replace(b"item_id", b"item\xffid"), whole[:-1] + b',"more":{"\xc3":1}}'):
        assert damaged != whole
        sender.put(topics.USER, b"ann", damaged)
    sender.put(topics.USER, b"ann", whole[:-1] + ',"gr\u00f6\u00dfe":1}'.encode())
    totals = ingest_once(database, tansu_topics)
    assert (totals.accepted, totals.dead) == (1, 2)
    assert query(database, "SELECT DISTINCT reason FROM dead_letter") == [("not_json",)]
    assert audit(database, tansu_topics, duplicate_window=WINDOW).ok
