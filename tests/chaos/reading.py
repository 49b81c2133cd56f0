"""Reads topics of a run from their beginning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from confluent_kafka import KafkaException, TopicPartition

from runtime import kafka
from runtime.kafka import BrokerAway, KafkaConfig


class Taken(NamedTuple):
    """A record."""

    partition: int
    offset: int
    value: bytes


class Tail:
    """All values of a topic, as they come. What breaks the reading of a partition is taken up where it broke."""

    def __init__(self, config: KafkaConfig, topic: str) -> None:
        self._name = config.physical(topic)
        self._next = dict.fromkeys(range(kafka.describe(config, [topic])[topic].partitions), 0)
        self._client = kafka.consumer(config, group=f"{config.prefix}reading")
        self._assign()

    def take(self) -> Iterator[Taken]:
        """What has come since."""
        while messages := self._client.consume(500, timeout=0.05):
            if any(message.error() is not None for message in messages):
                self._assign()  # a topic may be so new, or a broker so freshly back, that it knows no offsets yet
                return
            for message in messages:
                partition, offset, value = message.partition(), message.offset(), message.value()
                if partition is None or offset is None or offset < self._next[partition]:
                    continue
                self._next[partition] = offset + 1
                if value is not None:
                    yield Taken(partition, offset, value if isinstance(value, bytes) else value.encode())

    @property
    def passed(self) -> int:
        """Offsets that lie behind it, over all partitions."""
        return sum(self._next.values())

    def _assign(self) -> None:
        self._client.assign([TopicPartition(self._name, n, offset) for n, offset in self._next.items()])

    def ends(self) -> list[int]:
        """The offset behind the last record of each partition.

        :raises BrokerAway: nobody answers.
        """
        return [kafka.low_high(self._client, self._name, n)[1] for n in self._next]

    def close(self) -> None:
        self._client.close()


def whole(config: KafkaConfig, topic: str) -> list[Taken]:
    """All values of a topic that nobody writes to any more.

    :raises BrokerAway: nobody answers.
    """
    tail, taken = Tail(config, topic), list[Taken]()
    try:
        while tail.passed < sum(tail.ends()):
            taken.extend(tail.take())
    finally:
        tail.close()
    return taken


class Group:
    """Where a consumer group of somebody else's says it stands."""

    def __init__(self, config: KafkaConfig, group: str, topics: Sequence[str]) -> None:
        self._client = kafka.consumer(config, group=config.physical(group))
        self._places = [
            TopicPartition(config.physical(topic), n)
            for topic, found in kafka.describe(config, topics).items()
            for n in range(found.partitions)
        ]

    def position(self, *, timeout_s: float = 2.0) -> int:
        """Records below what it has told the broker, over all partitions.

        :raises BrokerAway: nobody answers.
        """
        try:
            found = self._client.committed(self._places, timeout=timeout_s)
        except KafkaException as error:
            raise BrokerAway(error.args[0].str(), where="Kafka") from error
        return sum(max(place.offset, 0) for place in found)

    def close(self) -> None:
        self._client.close()
