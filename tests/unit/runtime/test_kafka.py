"""Kafka clients against both kinds of broker."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Message, TopicPartition

from contracts import topics as topic_list
from contracts.topics import Topic
from runtime import kafka
from runtime.kafka import BrokerAway, KafkaConfig, PartitionOfTopic, TopicMissing

REPOSITORY = Path(__file__).parents[3]


def test_topics_that_exist_are_left_alone_and_compared(topics: KafkaConfig) -> None:
    specs = [topic_list.ALL[0], Topic(name="items", partitions=3, config={"retention.ms": "7"}), _topic("new")]
    found = kafka.create_topics(topics, specs)
    assert found.created == ("new",)
    assert found.existing == ("events.user", "items")
    assert found.different["items"]["partitions"] == ("3", "1")
    assert "events.user" not in found.different
    if found.configs_effective:
        assert found.different["items"]["retention.ms"] == ("7", "-1")


def test_a_description_names_cluster_topic_and_partitions(topics: KafkaConfig) -> None:
    described = kafka.describe(topics, ["items", "events.user"])
    assert list(described) == ["items", "events.user"]
    user = described["events.user"]
    assert user.partitions == 4
    assert user.topic_id != described["items"].topic_id
    assert user.cluster_id == kafka.cluster_id(topics)
    assert user.streams[3] == PartitionOfTopic(user.cluster_id, user.topic_id, "events.user", 3)


def test_a_recreated_topic_has_another_id(topics: KafkaConfig) -> None:
    before = kafka.describe(topics, ["labels"])["labels"]
    admin = kafka.admin(topics)
    admin.delete_topics([topics.physical("labels")])[topics.physical("labels")].result()
    with pytest.raises(TopicMissing):
        _describe_for_ever(topics, "labels")  # until the brokers have heard of it
    kafka.create_topics(topics, [_topic("labels")])
    assert kafka.describe(topics, ["labels"])["labels"].topic_id != before.topic_id


def test_only_a_real_kafka_is_trusted_with_its_end_offset(tansu_topics: KafkaConfig) -> None:
    assert not kafka.describe(tansu_topics, ["items"])["items"].trusts_high_watermark


@pytest.mark.parametrize("good", [2, 3])
def test_a_broker_that_knows_of_nobody_after_its_restart_is_away_and_ends_no_process(good: int) -> None:
    command = [sys.executable, "-m", "tests.unit.runtime.fenced_broker", str(good)]
    asked = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert asked.returncode == 0, asked.stderr  # librdkafka would end it with SIGABRT
    assert asked.stdout.split()[-1] == "BrokerAway"


@pytest.mark.kafka
def test_a_real_kafka_is_trusted_with_its_end_offset(kafka_topics: KafkaConfig) -> None:
    assert kafka.describe(kafka_topics, ["items"])["items"].trusts_high_watermark


def test_a_missing_topic_is_named(topics: KafkaConfig) -> None:
    with pytest.raises(TopicMissing, match=r"no topic test-.*\.nowhere"):
        kafka.describe(topics, ["items", "nowhere"])


def test_a_missing_partition_is_no_empty_one(topics: KafkaConfig) -> None:
    consumer = kafka.consumer(topics, group="reader")
    with pytest.raises(TopicMissing, match="no such partition"):
        kafka.low_high(consumer, topics.physical("items"), 7)
    consumer.close()


def test_a_broker_out_of_reach_is_said_to_be_away() -> None:
    with pytest.raises(BrokerAway, match=r"no answer.*127\.0\.0\.1:1"):
        kafka.describe(KafkaConfig("127.0.0.1:1"), ["items"], timeout_s=0.5)


def test_what_is_produced_is_consumed_with_its_times_and_offsets(topics: KafkaConfig) -> None:
    producer = kafka.producer(topics)
    for n in range(10):
        producer.produce(topics.physical("items"), key=b"k%d" % n, value=b"v%d" % n, timestamp=1_400_000_000_000 + n)
    assert producer.flush(10) == 0
    consumer = kafka.consumer(topics, group="reader")
    consumer.assign([TopicPartition(topics.physical("items"), 0, 0)])
    messages: list[Message] = []
    while len(messages) < 10:
        batch = consumer.consume(10, timeout=10)
        assert batch
        messages += batch
    assert [message.error() for message in messages] == [None] * 10
    assert [message.offset() for message in messages] == list(range(10))
    assert [message.timestamp()[1] for message in messages] == [1_400_000_000_000 + n for n in range(10)]
    assert kafka.low_high(consumer, topics.physical("items"), 0)[0] == 0
    consumer.close()


def test_the_offsets_after_the_last_records_are_told_by_topic_id(topics: KafkaConfig) -> None:
    producer = kafka.producer(topics)
    for _ in range(3):
        producer.produce(topics.physical("labels"), key=b"k", value=b"v", partition=0)
        assert producer.flush(10) == 0
    described = kafka.describe(topics, ["labels", "items"])
    found = kafka.latest_offsets(topics, ["labels", "items"], client=kafka.admin(topics), timeout_s=10.0)
    assert found[described["labels"].topic_id, "labels", 0] == 3
    assert sum(found.values()) == 3
    assert len(found) == described["labels"].partitions + described["items"].partitions


def test_a_group_member_gets_physical_names_in_on_assign(topics: KafkaConfig) -> None:
    assigned: list[TopicPartition] = []
    consumer = kafka.consumer(
        topics,
        group=topics.physical("group"),
        topics=["items"],
        on_assign=lambda consumer, partitions: assigned.extend(partitions),
    )
    for _ in range(100):
        consumer.poll(0.1)
        if assigned:
            break
    consumer.close()
    assert [(partition.topic, partition.partition) for partition in assigned] == [(topics.physical("items"), 0)]


def test_names_carry_the_prefix_outside_only() -> None:
    config = KafkaConfig("nowhere:1", prefix="team-a.")
    assert config.physical("items") == "team-a.items"
    assert config.logical("team-a.items") == "items"
    assert replace(config, prefix="").physical("items") == "items"


def test_secrets_among_the_options_are_not_shown() -> None:
    assert "hunter2" not in repr(KafkaConfig("nowhere:1", options={"sasl.password": "hunter2"}))


def _topic(name: str) -> Topic:
    return Topic(name=name, partitions=1, config=topic_list.ALL[0].config)


def _describe_for_ever(config: KafkaConfig, topic: str) -> None:
    while True:
        kafka.describe(config, [topic])
