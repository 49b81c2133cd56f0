"""Notices of dead letters on `events.dlq`: pointers without content, sent at least once (protocol, rule 8)."""

from __future__ import annotations

import time
from functools import partial

import structlog
from confluent_kafka import KafkaError, Message, Producer
from sqlalchemy import Engine

from contracts import topics
from contracts.codec import encode
from contracts.records import DeadLetterNotice
from runtime import kafka
from runtime.kafka import KafkaConfig
from storage.log import dead_letters
from storage.log.dead_letters import Pointer

_AT_ONCE = 10_000
_RETRY_S = 5.0

_log = structlog.get_logger(__name__)


class Notices:
    """Sends what is due, and never makes the caller wait for Kafka.

    A letter's row remembers whether its notice was acknowledged, so a crash only repeats one.
    """

    def __init__(self, config: KafkaConfig, engine: Engine) -> None:
        self._topic = config.physical(topics.DEAD_LETTERS)
        self._config = config
        self._engine = engine
        self._producer: Producer | None = None
        self._under_way = 0
        self._arrived: list[Pointer] = []
        self._failed: KafkaError | None = None
        self._not_before = 0.0
        """Monotonic seconds: after a failure the next try waits."""
        self.due = True
        """There may be letters to tell of: after a claim, and after each batch that wrote some."""

    def send(self, stream_ids: list[int]) -> None:
        """Starts what is due for these streams' letters and notes what arrived meanwhile."""
        self._settle()
        if not self.due or not stream_ids or self._under_way or time.monotonic() < self._not_before:
            return
        with self._engine.begin() as connection:
            letters = dead_letters.unnoticed(connection, stream_ids, limit=_AT_ONCE)
        self.due = len(letters) == _AT_ONCE
        if letters:
            self._produce(letters)
            self._settle()

    def finish(self, stream_ids: list[int], *, within_s: float) -> None:
        """Sends and waits for acknowledgements; what is not acknowledged in time is repeated by the next owner."""
        deadline = time.monotonic() + within_s
        self.send(stream_ids)
        while self._producer is not None and self._under_way and time.monotonic() < deadline:
            self._producer.poll(0.05)
            self.send(stream_ids)

    def _produce(self, letters: list[Pointer]) -> None:
        if self._producer is None:
            self._producer = kafka.producer(self._config)
        for letter in letters:
            report = partial(self._delivered, letter)
            self._producer.produce(self._topic, key=letter.id, value=encode(_notice(letter)), on_delivery=report)
            self._under_way += 1

    def _delivered(self, letter: Pointer, error: KafkaError | None, _: Message) -> None:
        self._under_way -= 1
        if error is None:
            self._arrived.append(letter)
        else:
            self._failed = error

    def _settle(self) -> None:
        if self._producer is None:
            return
        self._producer.poll(0)
        if self._failed is not None:
            _log.warning("ingest.notices_not_delivered", error=self._failed.str(), retry_in_s=_RETRY_S)
            self._failed, self.due = None, True
            self._not_before = time.monotonic() + _RETRY_S
        if self._arrived:
            arrived, self._arrived = self._arrived, []
            with self._engine.begin() as connection:
                dead_letters.mark_noticed(connection, arrived)


def _notice(letter: Pointer) -> DeadLetterNotice:
    return DeadLetterNotice(
        id=letter.id,
        reason=letter.reason,
        topic=letter.topic,
        partition=letter.partition,
        offset=letter.offset,
        size=letter.size,
        sha256=letter.sha256,
    )
