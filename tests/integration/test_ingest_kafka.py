"""What only a real Kafka does: transactions, compaction, deleted and truncated records, growing topics."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import NewPartitions  # type: ignore[attr-defined]

from contracts import topics
from contracts.codec import encode
from contracts.topics import Topic
from runtime import kafka as clients
from runtime.kafka import KafkaConfig
from runtime.lifecycle import OperatorActionRequired
from tests.conftest import SHARED, MakeTopics
from tests.integration.feeding import (
    START_MS,
    Sender,
    event,
    eventually,
    identity,
    ingest,
    ingest_once,
    item,
    query,
    taken,
)
from tests.integration.test_ingest_positions import running

pytestmark = pytest.mark.kafka


def transactional(config: KafkaConfig, name: str) -> Producer:
    made = clients.producer(config, extra={"transactional.id": f"{config.prefix}{name}", "message.timeout.ms": 30_000})
    made.init_transactions(20)
    return made


def put(producer: Producer, config: KafkaConfig, *names: str) -> None:
    for name in names:
        value = encode(event(name))
        producer.produce(config.physical(topics.USER), value, b"ann", partition=1, timestamp=START_MS)


def delete_before(config: KafkaConfig, place: TopicPartition) -> None:
    admin = clients.admin(config)
    for answer in admin.delete_records([place]).values():
        answer.result(10)


def test_aborted_records_are_never_read_and_their_offsets_are_covered(database: str, kafka_topics: KafkaConfig) -> None:
    producer = transactional(kafka_topics, "t")
    for n, commit in enumerate([False, True, False]):
        producer.begin_transaction()
        put(producer, kafka_topics, f"e{n}a", f"e{n}b")
        if commit:
            producer.commit_transaction(20)
        else:
            producer.flush(10)
            producer.abort_transaction(20)
        ingest_once(database, kafka_topics)
    found = taken(database)
    assert found.identities == {identity(event("e1a")), identity(event("e1b"))}
    assert found.next_offsets[topics.USER, 1] == 9  # six records, three markers
    assert query(database, "SELECT count(*) FROM log_segment WHERE accepted = 0")[0][0] >= 2


def test_an_open_transaction_is_waited_for(database: str, kafka_topics: KafkaConfig) -> None:
    sender, producer = Sender(kafka_topics), transactional(kafka_topics, "open")
    sender.put(topics.USER, b"ann", encode(event("before")), partition=1)
    producer.begin_transaction()
    put(producer, kafka_topics, "inside")
    producer.flush(10)
    sender.put(topics.USER, b"ann", encode(event("after")), partition=1)
    ingest_once(database, kafka_topics)
    assert taken(database).identities == {identity(event("before"))}
    producer.commit_transaction(20)
    ingest_once(database, kafka_topics)
    assert len(taken(database).identities) == 3


def compact_at_once(config: KafkaConfig) -> None:
    """Makes `items` anew, so that it forgets what was replaced or deleted as soon as the broker's cleaner comes by."""
    name = config.physical(topics.ITEMS)
    admin = clients.admin(config)
    admin.delete_topics([name])[name].result()
    values = {
        "cleanup.policy": "compact",
        "min.cleanable.dirty.ratio": "0.001",
        "segment.ms": "100",
        "max.compaction.lag.ms": "100",
        "delete.retention.ms": "0",
    }
    compacted = [Topic(name=topics.ITEMS, partitions=1, config=values)]
    eventually(lambda: clients.create_topics(config, compacted, client=admin).created)


def left_on_items(config: KafkaConfig) -> list[tuple[bytes | None, int]]:
    """Key and offset of every record that `items` still holds."""
    reader = clients.consumer(config, group="look")
    reader.assign([TopicPartition(config.physical(topics.ITEMS), 0, 0)])
    read = [(m.key(), m.offset() or 0) for m in reader.consume(100, 1.0)]
    reader.close()
    return read


def test_compacted_records_leave_gaps_that_are_covered(database: str, kafka_topics: KafkaConfig) -> None:
    compact_at_once(kafka_topics)
    sender = Sender(kafka_topics)
    now = int(time.time() * 1000)
    for n in range(30):
        sender.put(topics.ITEMS, b"i1", encode(item("i1", f"title {n}")), at_ms=now + n)
        time.sleep(0.01)
    time.sleep(0.2)
    sender.put(topics.ITEMS, b"i2", encode(item("i2", "last")), at_ms=now + 60_000)
    eventually(lambda: 0 < len(left_on_items(kafka_topics)) < 25, within_s=40)
    assert ingest_once(database, kafka_topics).read < 31
    assert taken(database).next_offsets[topics.ITEMS, 0] == 31
    assert query(database, "SELECT payload ->> 'title' FROM item_version ORDER BY position DESC LIMIT 2")[0] == (
        "last",
    )


def test_records_deleted_before_they_were_read_are_refused(database: str, kafka_topics: KafkaConfig) -> None:
    sender = Sender(kafka_topics)
    sender.put(topics.USER, b"ann", encode(event("e0")), partition=1)
    ingest_once(database, kafka_topics)
    for n in range(5):
        sender.put(topics.USER, b"ann", encode(event(f"lost {n}")), partition=1)
    place = TopicPartition(kafka_topics.physical(topics.USER), 1, 4)
    delete_before(kafka_topics, place)
    with pytest.raises(OperatorActionRequired, match=r"offsets 1 to 4 are gone.*events\.user\[1\]"):
        ingest_once(database, kafka_topics)
    assert taken(database).next_offsets[topics.USER, 1] == 1


def test_a_topic_that_begins_late_begins_at_its_low_watermark(database: str, kafka_topics: KafkaConfig) -> None:
    sender = Sender(kafka_topics)
    for n in range(4):
        sender.put(topics.USER, b"ann", encode(event(f"e{n}")), partition=1)
    place = TopicPartition(kafka_topics.physical(topics.USER), 1, 3)
    delete_before(kafka_topics, place)
    assert ingest_once(database, kafka_topics).accepted == 1
    assert taken(database).identities == {identity(event("e3"))}


def test_a_growing_topic_is_refused_under_way(database: str, kafka_topics: KafkaConfig) -> None:
    process = ingest(database, kafka_topics)
    with running(process) as future:
        eventually(process._health.is_ready)
        name = kafka_topics.physical(topics.USER)
        admin = clients.admin(kafka_topics)  # its answers die with it
        admin.create_partitions([NewPartitions(name, 6)])[name].result()
        with pytest.raises(OperatorActionRequired, match="has 6 partitions; it had 4") as refused:
            future.result(20)
    assert "stop the producers" in refused.value.hint


def test_a_topic_that_lost_its_end_is_refused(database: str, kafka_topics: KafkaConfig) -> None:
    Sender(kafka_topics).send(event("e1"))
    ingest_once(database, kafka_topics)
    query(database, "UPDATE stream_offset SET next_offset = 77 WHERE topic = 'labels' AND partition = 2")
    with pytest.raises(OperatorActionRequired, match=r"ends at 0, before the stored offset 77.*labels\[2\]"):
        ingest_once(database, kafka_topics)


def broker(action: str, folder: Path) -> str:
    done = subprocess.run([SHARED / "kafka" / "kafka", action, folder], check=True, capture_output=True, timeout=90)
    return done.stdout.decode().strip()


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[Path]:
    """The folder of a broker that a test may stop."""
    if not (SHARED / "kafka" / "kafka").exists() or shutil.which("java") is None:
        pytest.skip("needs the Apache Kafka of ../shared/kafka")
    yield tmp_path
    broker("kill", tmp_path)


@pytest.mark.slow
def test_a_broker_that_goes_and_comes_back_is_waited_for_and_nothing_is_lost(
    database: str, own_kafka: Path, make_topics: MakeTopics
) -> None:
    address = broker("start", own_kafka)
    config = make_topics(address)
    Sender(config).send(event("e1"))
    process = ingest(database, config)
    with running(process) as future:
        eventually(lambda: len(taken(database).identities) == 1, within_s=60)
        broker("kill", own_kafka)
        eventually(lambda: not process._health.is_ready(), within_s=30)
        assert "waiting to try again" in str(process._health.report()["ingest"]["why"])
        assert broker("start", own_kafka) == address
        Sender(config).send(event("e2"))
        eventually(lambda: len(taken(database).identities) == 2, within_s=40)
        eventually(process._health.is_ready)
        broker("kill", own_kafka)
        stopped = time.monotonic()
        process._stop.set()
        future.result(15)
        assert time.monotonic() - stopped < 10, "it must drain in time without a broker too"
    broker("start", own_kafka)


def test_owners_that_come_and_go_at_random_double_and_lose_nothing(database: str, kafka_topics: KafkaConfig) -> None:
    """Three ingests, restarted one after the other while a producer repeats itself; exact sets at the end."""
    sender = Sender(kafka_topics)
    sent = [event(f"e{n % 700}", f"user {n % 23}", n) for n in range(1600)]
    fed = threading.Event()

    def feed() -> None:
        for n in range(0, len(sent), 40):
            sender.send(*sent[n : n + 40])
            time.sleep(0.15)
        fed.set()

    feeder = threading.Thread(target=feed)
    feeder.start()
    members = []
    for n in range(3):
        member = ingest(database, kafka_topics, session_timeout_s=1, batch_records=[7, 60, 1000][n])
        members.append((member, threading.Thread(target=member.run)))
        members[-1][1].start()
        time.sleep(0.5)
    turn = 0
    while not fed.is_set():
        member, thread = members[turn % 3]
        member._stop.set()
        thread.join(20)
        member = ingest(database, kafka_topics, session_timeout_s=1, batch_records=30)
        members[turn % 3] = (member, threading.Thread(target=member.run))
        members[turn % 3][1].start()
        turn += 1
        fed.wait(1.0)
    feeder.join()
    wanted = {identity(each) for each in sent}
    eventually(lambda: taken(database).totals["read"] == len(sent), within_s=30)
    for member, thread in members:
        member._stop.set()
        thread.join(20)
    assert turn >= 3
    assert taken(database).identities == wanted
