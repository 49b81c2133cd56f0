"""The records that every contender reads: seeded, with duplicates and malformed ones among them."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
from confluent_kafka import Producer

from contracts import topics
from contracts.codec import encode
from contracts.records import UserEvent
from runtime.kafka import KafkaConfig, create_topics

TOPIC = topics.USER
PARTITIONS = next(topic.partitions for topic in topics.ALL if topic.name == TOPIC)
SEED = 20_230_517
DUPLICATES = 0.005
MALFORMED = 0.001
REPEATS_WITHIN = 10_000
"""A duplicate repeats one of so many records before it."""
ITEMS = 5_000
TYPES = ("view", "click", "search", "cart", "purchase", "review")
FIRST = datetime(2025, 1, 1, tzinfo=UTC)
STEP = timedelta(milliseconds=20)
"""Event time between two records."""
JITTER_S = 5.0
"""Events reach the topic up to so long after they happened, so they arrive out of order."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One record to produce."""

    key: bytes
    value: bytes
    record_ms: int
    """Kafka timestamp."""


@dataclass(kw_only=True)
class Workload:
    """The shape of a workload, and after `messages()` has run out what a right answer must count."""

    events: int
    users: int
    seed: int = SEED
    accepted: int = 0
    duplicates: int = 0
    malformed: int = 0
    unparseable: int = 0
    """Those of `malformed` that are not JSON at all."""
    size: int = 0
    """Bytes of all keys and values."""
    parseable_by_key: Counter[bytes] = field(default_factory=Counter)

    @property
    def parseable(self) -> int:
        return self.events - self.unparseable

    def messages(self) -> Iterator[Message]:
        """The records in producing order; the same for the same (events, users, seed)."""
        rng = random.Random(self.seed)
        recent: deque[Message] = deque(maxlen=REPEATS_WITHIN)
        for number in range(self.events):
            draw = rng.random()
            if draw < MALFORMED:
                message, parseable = _malformed(rng, _event(rng, number, self.users), number)
                self.malformed += 1
                self.unparseable += not parseable
            elif draw < MALFORMED + DUPLICATES and recent:
                message, parseable = rng.choice(recent), True
                self.duplicates += 1
            else:
                event = _event(rng, number, self.users)
                message, parseable = _message(event.user_id, encode(event), number), True
                recent.append(message)
                self.accepted += 1
            if parseable:
                self.parseable_by_key[message.key] += 1
            self.size += len(message.key) + len(message.value)
            yield message


def _event(rng: random.Random, number: int, users: int) -> UserEvent:
    late = timedelta(seconds=rng.random() * JITTER_S)
    return UserEvent(
        event_id=str(UUID(int=rng.getrandbits(128), version=4)),
        user_id=f"user-{rng.randrange(users):06d}",
        occurred_at=FIRST + number * STEP - late,
        source="bench",
        type=rng.choice(TYPES),
        item_id=f"item-{rng.randrange(ITEMS):05d}",
    )


def _message(user_id: str, value: bytes, number: int) -> Message:
    record_at = FIRST + number * STEP
    return Message(key=user_id.encode(), value=value, record_ms=int(record_at.timestamp() * 1000))


def _malformed(rng: random.Random, event: UserEvent, number: int) -> tuple[Message, bool]:
    """A record that must be refused, and whether it is JSON all the same.

    All carry every field, so that a reader that validates nothing can store those that are JSON.
    """
    value = encode(event)
    match rng.randrange(5):
        case 0:
            return _message(event.user_id, value[: len(value) // 2], number), False
        case 1:
            return _message("someone-else", value, number), True
        case 2:
            wrong = {"schema": "9.0"}
        case 3:
            wrong = {"event_id": ""}
        case _:
            wrong = {"occurred_at": "yesterday"}
    return _message(event.user_id, encode(msgspec.to_builtins(event) | wrong), number), True


def fill(bootstrap: str, workload: Workload) -> None:
    """Creates all topics and fills the one measured; returns when the broker has acknowledged every record."""
    create_topics(KafkaConfig(bootstrap=bootstrap), topics.ALL)
    send(bootstrap, workload.messages())


def send(bootstrap: str, messages: Iterable[Message]) -> None:
    """Puts messages on the topic; returns when the broker has acknowledged all."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": 50,
            "batch.size": 262_144,
            "partitioner": "murmur2_random",
        }
    )
    for message in messages:
        _produce(producer, message)
    left = producer.flush(120)
    if left:
        raise TimeoutError(f"{left:,} records were not acknowledged within 120 s")


def _produce(producer: Producer, message: Message) -> None:
    while True:
        try:
            producer.produce(TOPIC, message.value, message.key, timestamp=message.record_ms)
            producer.poll(0)
            return
        except BufferError:
            producer.poll(0.1)
