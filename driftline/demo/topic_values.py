"""Reads topics from their beginning until nothing more comes."""

from __future__ import annotations

import time
from collections.abc import Iterator

from confluent_kafka import TopicPartition

from runtime import kafka
from runtime.kafka import KafkaConfig

_SILENCE_S = 1.5


def values(config: KafkaConfig, topic: str) -> Iterator[bytes]:
    """Values of a topic of one partition, in order. The end is where nothing comes for a while: Tansu may report
    ends that are too low.
    """
    client = kafka.consumer(config, group="driftline-demo")
    try:
        client.assign([TopicPartition(config.physical(topic), 0, 0)])
        heard = time.monotonic()
        while time.monotonic() - heard < _SILENCE_S:
            for message in client.consume(500, timeout=0.2):
                if message.error() is None and (value := message.value()) is not None:
                    heard = time.monotonic()
                    yield value if isinstance(value, bytes) else value.encode()
    finally:
        client.close()
