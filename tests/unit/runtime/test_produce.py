"""Sending records."""

from __future__ import annotations

import pytest
from confluent_kafka import TopicPartition

from contracts import topics as topic_list
from runtime import kafka
from runtime.kafka import KafkaConfig, TopicMissing
from runtime.lifecycle import Stop
from runtime.produce import NotDelivered, Outgoing, paced, produce

RECORDS = [Outgoing(topic_list.ITEMS, b"k%d" % n, b"v%d" % n if n != 3 else None, 1_000 * n + 1) for n in range(5)]


def test_records_arrive_with_key_value_and_time(topics: KafkaConfig) -> None:
    assert produce(RECORDS, topics) == {topic_list.ITEMS: 5}
    consumer = kafka.consumer(topics, group="reader")
    consumer.assign([TopicPartition(topics.physical(topic_list.ITEMS), 0, 0)])
    found: list[Outgoing] = []
    while len(found) < 5:
        for message in consumer.consume(5, timeout=10):
            assert message.error() is None
            found.append(Outgoing(topic_list.ITEMS, message.key(), message.value(), message.timestamp()[1]))
    consumer.close()
    assert found == RECORDS


@pytest.mark.kafka
def test_records_the_broker_refuses_are_an_error(kafka_topics: KafkaConfig) -> None:
    year_3000 = RECORDS[0]._replace(at_ms=32_503_680_000_000)
    with pytest.raises(NotDelivered, match=r"of 3 records not delivered; the first: .*items"):
        produce([RECORDS[0], year_3000, year_3000], kafka_topics)


def test_a_record_larger_than_kafka_takes_is_an_error(tansu_topics: KafkaConfig) -> None:
    with pytest.raises(NotDelivered, match="too large"):
        produce([RECORDS[0]._replace(value=bytes(2_000_000))], tansu_topics)


def test_a_topic_is_never_created_by_sending_to_it(topics: KafkaConfig) -> None:
    with pytest.raises(TopicMissing, match="nowhere"):
        produce([RECORDS[0]._replace(topic="nowhere")], topics)


def test_pace_follows_the_records_times() -> None:
    now = [100.0]

    class Sleeper(Stop):
        def wait(self, seconds: float) -> bool:
            now[0] += seconds
            return False

    sent_at = [now[0] for _ in paced(RECORDS, speed=2.0, stop=Sleeper(), clock=lambda: now[0])]
    assert sent_at == pytest.approx([100.0, 100.5, 101.0, 101.5, 102.0])


def test_a_stop_ends_the_stream_between_two_records() -> None:
    stop = Stop()
    seen = []
    for record in paced(RECORDS, speed=0, stop=stop):
        seen.append(record)
        if len(seen) == 2:
            stop.set()
    assert seen == RECORDS[:2]
