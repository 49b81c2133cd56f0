"""Sends finished records to Kafka: the simulator's, a replay's, replayed dead letters."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from runtime import kafka
from runtime.kafka import KafkaConfig
from runtime.lifecycle import DriftlineError, Stop


class Outgoing(NamedTuple):
    """A record on its way out."""

    topic: str
    """Logical name."""
    key: bytes | None
    value: bytes | None
    at_ms: int
    """Record time: milliseconds since 1970, at least 1 (to Kafka clients 0 means now)."""


class NotDelivered(DriftlineError):
    """Some records did not reach Kafka. Sending all again is safe where event ids repeat: they are duplicates."""


_QUEUE = {
    "delivery.report.only.error": True,  # calling back for each of millions of records costs a third of the time
    "queue.buffering.max.messages": 500_000,
    "linger.ms": 20,
}


def produce(records: Iterable[Outgoing], config: KafkaConfig, *, extra: dict[str, Any] | None = None) -> Counter[str]:
    """Sends all, in order within a partition, and waits until the brokers have them.

    The partition follows from the key (librdkafka's default partitioner).

    :returns: records per logical topic.
    :raises TopicMissing: a topic does not exist. :raises NotDelivered: records were refused.
    """
    refused: list[str] = []

    def on_delivery(error: KafkaError | None, message: Message | None) -> None:
        if error is not None:
            refused.append(error.str() if message is None else f"{message.topic()}: {error.str()}")

    producer = kafka.producer(config, extra={**_QUEUE, **(extra or {})})
    sent: Counter[str] = Counter()
    names: dict[str, str] = {}
    for topic, key, value, at_ms in records:
        name = names.get(topic)
        if name is None:
            kafka.describe(config, [topic])  # Tansu would create it, with whatever partitions
            name = names[topic] = config.physical(topic)
        while True:
            try:
                # As `callback`: a None there would hide the `on_delivery` that follows it.
                producer.produce(name, value, key, -1, on_delivery, None, at_ms)
                break
            except BufferError:  # its queue is full: the brokers are slower than we
                producer.poll(0.05)
            except KafkaException as error:  # too large
                on_delivery(error.args[0], None)
                break
        sent[topic] += 1
        if refused:
            break
    _flush(producer, refused)
    if refused:
        raise NotDelivered(
            f"{len(refused):,} of {sum(sent.values()):,} records not delivered; the first: {refused[0]}",
            where=f"Kafka at {config.bootstrap}",
            hint="mend the cause and send all of it again",
        )
    return sent


def paced(
    records: Iterable[Outgoing],
    *,
    speed: float,
    stop: Stop | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Outgoing]:
    """The records at `speed` seconds of record time per second of the clock; 0 = without waiting.

    Ends early, between two records, when `stop` is set.
    """
    stop = stop or Stop()
    start: tuple[float, int] | None = None
    for record in records:
        if stop.is_set():
            return
        if speed > 0:
            start = start or (clock(), record.at_ms)
            wait_s = start[0] + (record.at_ms - start[1]) / 1000 / speed - clock()
            if wait_s > 0 and stop.wait(wait_s):
                return
        yield record


def _flush(producer: Producer, refused: list[str]) -> None:
    """Waits for all acknowledgements; each record has `message.timeout.ms` to get its own."""
    while producer.flush(10.0) and not refused:
        pass
    if refused:
        producer.purge()
        producer.flush(10.0)
