"""`offsets rebind` on a real Kafka: what `ingest` refuses, a person can decide; and it leaves its trace."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewPartitions  # type: ignore[attr-defined]

from contracts import topics
from contracts.topics import ALL
from driftline.audit.auditor import audit
from driftline.cli import run
from runtime import kafka as clients
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit, OperatorActionRequired
from tests.integration.feeding import Sender, event, ingest_once, query

pytestmark = pytest.mark.kafka

Verb = Callable[..., int]


@pytest.fixture
def verb(database: str, kafka_topics: KafkaConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Verb:
    """Runs a verb on this test's database and topics."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", database)
    monkeypatch.setenv("DRIFTLINE_KAFKA_BOOTSTRAP", kafka_topics.bootstrap)
    monkeypatch.setenv("DRIFTLINE_TOPIC_PREFIX", kafka_topics.prefix)
    return lambda *words: run(words)


def users(database: str) -> set[str]:
    return {row[0] for row in query(database, "SELECT event_id FROM user_event")}


def delete_below(config: KafkaConfig, topic: str, partition: int, offset: int) -> None:
    """What retention does."""
    place = TopicPartition(config.physical(topic), partition, offset)
    admin = clients.admin(config)  # kept: its answers die with it
    for answer in admin.delete_records([place]).values():
        answer.result(timeout=30)


def recreate(config: KafkaConfig, topic: str) -> None:
    admin = clients.admin(config)
    admin.delete_topics([config.physical(topic)])[config.physical(topic)].result(timeout=30)
    deadline = time.monotonic() + 30
    while config.physical(topic) in admin.list_topics(timeout=10).topics and time.monotonic() < deadline:
        time.sleep(0.1)
    clients.create_topics(config, [spec for spec in ALL if spec.name == topic], client=admin)


def partition_of(database: str, event_id: str) -> tuple[int, int]:
    """(partition, offset) at which an event was read."""
    (place,) = query(
        database,
        "SELECT f.partition, e.position FROM user_segment s, unnest(s.event_id, s.stream, s.position)"
        " AS e(event_id, stream, position) JOIN stream_offset f ON f.stream_id = e.stream WHERE e.event_id = %s",
        event_id,
    )
    return int(place[0]), int(place[1])


def test_a_recreated_topic_is_refused_then_adopted_and_read_from_its_start(
    verb: Verb, database: str, kafka_topics: KafkaConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    Sender(kafka_topics).send(*(event(f"old-{n}", f"user-{n}") for n in range(8)))
    ingest_once(database, kafka_topics)
    recreate(kafka_topics, topics.USER)
    Sender(kafka_topics).send(*(event(f"new-{n}", f"user-{n}") for n in range(8)))
    with pytest.raises(OperatorActionRequired, match="created again"):
        ingest_once(database, kafka_topics)
    capsys.readouterr()
    assert verb("offsets", "rebind", "--yes", "--json") == Exit.DONE
    done = json.loads(capsys.readouterr().out)
    assert [change["act"] for change in done] == ["retire"] * 4 + ["start"] * 4
    ingest_once(database, kafka_topics)
    assert users(database) == {f"{age}-{n}" for age in ("old", "new") for n in range(8)}
    report = audit(database, kafka_topics, duplicate_window=1_000_000)
    assert report.ok
    assert (report.topics[topics.USER].accepted, report.topics[topics.USER].not_retained) == (8, 8)
    assert verb("offsets", "rebind", "--yes") == Exit.DONE
    assert "nothing to rebind" in capsys.readouterr().out


def test_records_deleted_before_they_were_read_leave_a_lost_segment(
    verb: Verb, database: str, kafka_topics: KafkaConfig
) -> None:
    sender = Sender(kafka_topics)
    sender.send(event("first", "ann"))
    ingest_once(database, kafka_topics)
    partition, offset = partition_of(database, "first")
    sender.send(*(event(f"gone-{n}", "ann") for n in range(5)), event("kept", "ann"))
    delete_below(kafka_topics, topics.USER, partition, offset + 6)
    with pytest.raises(OperatorActionRequired, match="are gone from the topic"):
        ingest_once(database, kafka_topics)
    assert verb("offsets", "rebind", "--yes") == Exit.DONE
    ingest_once(database, kafka_topics)
    assert users(database) == {"first", "kept"}
    lost = query(database, "SELECT first_offset, next_offset FROM log_segment WHERE status = 'lost'")
    assert lost == [(offset + 1, offset + 6)]
    report = audit(database, kafka_topics, duplicate_window=1_000_000)
    assert report.ok
    assert report.topics[topics.USER].given_up == 5
    assert report.topics[topics.USER].not_retained == 1


def test_a_topic_that_lost_its_end_is_read_again_from_its_first_new_record(
    verb: Verb, database: str, kafka_topics: KafkaConfig
) -> None:
    sender = Sender(kafka_topics)
    sender.send(*(event(f"kept-{n}", "ann") for n in range(3)))
    ingest_once(database, kafka_topics)
    partition, _ = partition_of(database, "kept-0")
    # As if the broker had held two more records, which were read and then lost with its disk; since then one
    # other was written in their place.
    query(
        database,
        "INSERT INTO log_segment (stream_id, first_offset, epoch, next_offset, read, accepted, duplicates, dead,"
        " suppressed, unknown_fields) SELECT stream_id, next_offset, epoch, next_offset + 2, 0, 0, 0, 0, 0, 0"
        " FROM stream_offset WHERE topic = 'events.user' AND partition = %s",
        partition,
    )
    query(
        database,
        "UPDATE stream_offset SET next_offset = next_offset + 2 WHERE topic = 'events.user' AND partition = %s",
        partition,
    )
    sender.send(event("new", "ann"))
    with pytest.raises(OperatorActionRequired, match="lost its end"):
        ingest_once(database, kafka_topics)
    assert verb("offsets", "rebind", "--yes") == Exit.DONE
    ingest_once(database, kafka_topics)
    assert users(database) == {"kept-0", "kept-1", "kept-2", "new"}
    assert audit(database, kafka_topics, duplicate_window=1_000_000).ok


def test_without_a_yes_nothing_is_done(
    verb: Verb, database: str, kafka_topics: KafkaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    Sender(kafka_topics).send(event("old", "ann"))
    ingest_once(database, kafka_topics)
    recreate(kafka_topics, topics.USER)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert verb("offsets", "rebind") == Exit.FAILED
    assert query(database, "SELECT count(*) FROM stream_offset WHERE retired") == [(0,)]


def test_a_grown_topic_is_adopted_once_its_old_partitions_are_drained(
    verb: Verb, database: str, kafka_topics: KafkaConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    sender = Sender(kafka_topics)
    sender.send(event("read", "ann"))
    ingest_once(database, kafka_topics)
    sender.send(event("unread", "ann"))
    admin = clients.admin(kafka_topics)
    for answer in admin.create_partitions([NewPartitions(kafka_topics.physical(topics.USER), 6)]).values():
        answer.result(timeout=30)
    with pytest.raises(OperatorActionRequired, match="6 partitions"):
        ingest_once(database, kafka_topics)
    assert verb("offsets", "rebind", "--yes") == Exit.REFUSED
    assert "1 offsets of the old ones are unread" in capsys.readouterr().err
    assert verb("offsets", "rebind", "--yes", "--undrained") == Exit.DONE
    Sender(kafka_topics).send(*(event(f"after-{n}", f"user-{n}") for n in range(12)))
    ingest_once(database, kafka_topics)
    assert users(database) == {"read", "unread", *(f"after-{n}" for n in range(12))}
    assert audit(database, kafka_topics, duplicate_window=1_000_000).ok
