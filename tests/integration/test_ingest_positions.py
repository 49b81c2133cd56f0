"""Rules 2 and 3: positions come from Postgres, and only for the topic they were made of."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from confluent_kafka import TopicPartition

from contracts import topics
from contracts.topics import Topic
from runtime import kafka
from runtime.kafka import KafkaConfig
from runtime.lifecycle import OperatorActionRequired, Stop
from streams.ingest.counters import IngestTotals
from streams.ingest.process import Ingest
from tests.integration.feeding import (
    Sender,
    event,
    eventually,
    identity,
    ingest,
    ingest_once,
    query,
    settings,
    taken,
)


@contextmanager
def running(process: Ingest) -> Iterator[Future[IngestTotals]]:
    """An ingest in a thread; stopped at the end."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(process.run)
        try:
            yield future
        finally:
            process._stop.set()


def recreate(config: KafkaConfig, topic: str, partitions: int) -> None:
    admin = kafka.admin(config)
    admin.delete_topics([config.physical(topic)])[config.physical(topic)].result()

    def created() -> bool:
        answer = kafka.create_topics(config, [Topic(name=topic, partitions=partitions, config={})], client=admin)
        return bool(answer.created)

    eventually(created, within_s=10)


def test_what_the_group_committed_in_kafka_does_not_matter(database: str, tansu_topics: KafkaConfig) -> None:
    sender = Sender(tansu_topics)
    for n in range(6):
        sender.put(topics.USER, b"ann", b"{", partition=0)
        sender.send(event(f"e{n}"))
    group = settings(tansu_topics).group
    elsewhere = kafka.consumer(tansu_topics, group=group)
    name = tansu_topics.physical(topics.USER)
    places = [TopicPartition(name, partition, 3) for partition in range(4)]
    elsewhere.commit(offsets=places, asynchronous=False)
    elsewhere.close()
    timer = threading.Timer(12, (stop := Stop()).set)
    timer.start()
    totals = ingest(database, tansu_topics, stop=stop).run(once=True)
    timer.cancel()
    assert (totals.accepted, totals.dead) == (6, 6)
    assert taken(database).identities == {identity(event(f"e{n}")) for n in range(6)}


def test_a_topic_never_seen_starts_at_its_beginning_and_goes_on_where_it_was(
    database: str, tansu_topics: KafkaConfig
) -> None:
    sender = Sender(tansu_topics)
    sender.send(event("e1"))
    assert ingest_once(database, tansu_topics).read == 1
    sender.send(event("e2"))
    assert ingest_once(database, tansu_topics, group="quite another").read == 1
    assert len(taken(database).identities) == 2


def test_without_postgres_nothing_is_assigned_and_it_comes_back_by_itself(
    database: str, tansu_topics: KafkaConfig
) -> None:
    sender = Sender(tansu_topics)
    sender.send(event("e1"))
    ingest_once(database, tansu_topics)
    query(database, "CREATE TABLE outage (since timestamptz)")
    query(database, "INSERT INTO outage VALUES (now())")
    query(
        database,
        """
        CREATE FUNCTION away() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF EXISTS (SELECT FROM outage) THEN RAISE 'the server is away' USING ERRCODE = '57P03'; END IF;
            RETURN NEW;
        END $$""",
    )
    query(database, "CREATE TRIGGER away BEFORE UPDATE ON stream_offset FOR EACH ROW EXECUTE FUNCTION away()")
    sender.send(event("e2"))
    process = ingest(database, tansu_topics)
    with running(process) as future:
        report = process._health.report
        eventually(lambda: "waiting to try again" in str(report()["ingest"]["why"]) or future.done())
        assert "the server is away" in str(report()["ingest"]["why"])
        assert not process._health.is_ready()
        query(database, "DELETE FROM outage")
        eventually(lambda: len(taken(database).identities) == 2)
        eventually(process._health.is_ready)
    assert future.result().accepted == 1


def test_a_recreated_topic_is_refused_at_the_start(database: str, tansu_topics: KafkaConfig) -> None:
    sender = Sender(tansu_topics)
    sender.send(event("e1"))
    ingest_once(database, tansu_topics)
    recreate(tansu_topics, topics.USER, 4)
    with pytest.raises(OperatorActionRequired, match=r"deleted and created again.*topic events\.user") as refused:
        ingest_once(database, tansu_topics)
    assert "offsets rebind" in refused.value.hint


@pytest.mark.kafka  # on Tansu librdkafka 2.16 itself crashes in rd_kafka_metadata_update_op, seen each time
def test_a_recreated_topic_is_refused_under_way(database: str, kafka_topics: KafkaConfig) -> None:
    process = ingest(database, kafka_topics)
    with running(process) as future:
        eventually(process._health.is_ready)
        Sender(kafka_topics).send(event("e1"))
        eventually(lambda: len(taken(database).identities) == 1)
        recreate(kafka_topics, topics.USER, 4)
        Sender(kafka_topics).send(*(event(f"new {n}") for n in range(200)))
        with pytest.raises(OperatorActionRequired, match=r"created again|no topic"):
            future.result(15)
    assert len(taken(database).identities) == 1


def test_another_partition_count_is_refused(database: str, tansu_topics: KafkaConfig) -> None:
    ingest_once(database, tansu_topics)
    query(database, "DELETE FROM stream_offset WHERE topic = 'labels' AND partition = 3")
    with pytest.raises(OperatorActionRequired, match="topic has 4 partitions; it had 3"):
        ingest_once(database, tansu_topics)


def test_another_cluster_is_refused(database: str, tansu_topics: KafkaConfig) -> None:
    ingest_once(database, tansu_topics)
    query(database, "UPDATE stream_offset SET cluster_id = 'the one before'")
    with pytest.raises(OperatorActionRequired, match=r"another Kafka cluster answers.*are of the one before"):
        ingest_once(database, tansu_topics)


def test_offsets_before_the_low_watermark_are_refused(database: str, tansu_topics: KafkaConfig) -> None:
    ingest_once(database, tansu_topics)
    query(database, "UPDATE stream_offset SET next_offset = -5 WHERE topic = 'items'")
    with pytest.raises(OperatorActionRequired, match=r"offsets -5 to 0 are gone.*items\[0\]"):
        ingest_once(database, tansu_topics)
