"""What stands on `drift.alarms`."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
from confluent_kafka import Consumer, Message, TopicPartition

from contracts import topics
from contracts.records import DriftAlarm
from runtime import kafka
from runtime.kafka import BrokerAway, KafkaConfig
from runtime.lifecycle import DriftlineError, Transient

SETTLED_S = 0.5
"""Seconds without a message after which a broker that tells its ends too low is taken to have no more."""
LEADERLESS_S = 5.0
"""Seconds in which a topic just made must find its leaders."""
SILENCE_S = 30.0
"""Seconds without a message in which the ends must be reached."""


def raised(config: KafkaConfig) -> list[DriftAlarm]:
    """The alarms in the order written, of each id the first: they are delivered at least once.

    :raises TopicMissing, BrokerAway, BrokerRefused: as `kafka.describe`. :raises Trouble: a record is no alarm.
    """
    found: dict[str, DriftAlarm] = {}
    for message in _messages(config):
        alarm = _decoded(message)
        found.setdefault(alarm.id, alarm)
    return list(found.values())


def _messages(config: KafkaConfig) -> Iterator[Message]:
    """All that the topic holds now."""
    described = kafka.describe(config, [topics.ALARMS])[topics.ALARMS]
    name = config.physical(topics.ALARMS)
    client = kafka.consumer(config, group="driftline-alarms")
    try:
        ranges = {n: _range(client, name, n) for n in range(described.partitions)}
        client.assign([TopicPartition(name, n, low) for n, (low, _) in ranges.items()])
        heard_at = time.monotonic()
        while True:
            for message in client.consume(500, 0.1):
                heard_at = time.monotonic()
                yield message
            silent_s = time.monotonic() - heard_at
            if _behind(client, name, ranges):
                if silent_s > SILENCE_S:
                    raise Transient(f"nothing came for {SILENCE_S:.0f} s", where=f"Kafka, topic {name}")
            elif described.trusts_high_watermark or silent_s > SETTLED_S:
                return
    finally:
        client.close()


def _range(client: Consumer, name: str, partition: int) -> tuple[int, int]:
    """First offset and end. Asked again for a while: a topic just made has no leader yet."""
    until = time.monotonic() + LEADERLESS_S
    while True:
        try:
            return kafka.low_high(client, name, partition)
        except BrokerAway:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _behind(client: Consumer, name: str, ranges: dict[int, tuple[int, int]]) -> bool:
    """Whether an end is not reached."""
    places = client.position([TopicPartition(name, n) for n in ranges])
    return any(max(place.offset, ranges[place.partition][0]) < ranges[place.partition][1] for place in places)


def _decoded(message: Message) -> DriftAlarm:
    where = f"{message.topic()}/{message.partition()}, offset {message.offset()}"
    if (error := message.error()) is not None:
        raise DriftlineError(error.str(), where=where)
    try:
        return msgspec.json.decode(message.value() or b"", type=DriftAlarm)
    except msgspec.MsgspecError as error:
        raise DriftlineError(
            f"not an alarm: {error}", where=where, hint="is it another version's, or another topic?"
        ) from None
