"""An exchange over Kafka while others of its group come and go."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from contracts import topics
from runtime import kafka
from runtime.kafka import KafkaConfig
from runtime.request_reply import Exchange
from tests.integration.feeding import eventually

PARTITIONS = 4


@contextmanager
def member(config: KafkaConfig) -> Iterator[Exchange]:
    """One stay in the group."""
    made = Exchange(
        config,
        requests=topics.REQUESTS,
        answers=topics.RESULTS,
        group=f"{config.prefix}exchange",
        session_timeout_s=6.0,
        passage="score.after_answers",
    )
    try:
        yield made
    finally:
        made.close()


def ask(config: KafkaConfig) -> None:
    """A request in each partition."""
    producer = kafka.producer(config)
    for partition in range(PARTITIONS):
        producer.produce(config.physical(topics.REQUESTS), b"?", partition=partition)
    assert producer.flush(30) == 0


class Reader:
    """Takes from an exchange until partitions enough have spoken."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.partitions = set[int]()

    def has_read(self, partitions: int) -> bool:
        self.partitions |= {request.partition for request in self._exchange.take(10, 0.1)}
        return len(self.partitions) >= partitions


@pytest.mark.kafka
def test_who_stays_with_a_batch_in_hand_while_another_comes_and_goes_reads_all_partitions_again(
    kafka_topics: KafkaConfig,
) -> None:
    ask(kafka_topics)
    with member(kafka_topics) as first:
        batch = Reader(first)
        eventually(lambda: batch.has_read(PARTITIONS))
        with member(kafka_topics) as second:
            other, over = Reader(second), threading.Event()
            reading = threading.Thread(target=lambda: eventually(lambda: other.has_read(1) or over.is_set()))
            reading.start()
            try:
                # What the first has in hand is read by the other too, as far as it is given away.
                while not other.partitions and reading.is_alive():
                    first.stay()
                    time.sleep(0.05)
            finally:
                over.set()
                reading.join()
            assert other.partitions
        ask(kafka_topics)
        again = Reader(first)
        eventually(lambda: again.has_read(PARTITIONS))
