"""Notices of dead letters on `events.dlq`: pointers without content, sent at least once (protocol, rule 8)."""

from __future__ import annotations

from functools import partial

from confluent_kafka import KafkaError, Message, Producer
from sqlalchemy import Engine

from contracts import topics
from contracts.codec import encode
from contracts.records import DeadLetterNotice
from runtime import kafka
from runtime.kafka import KafkaConfig
from storage import dead_letters
from storage.dead_letters import Letter

_AT_ONCE = 10_000
_FLUSH_S = 5.0


class Notices:
    """Sends what is due. A letter's row remembers whether its notice arrived, so a crash only repeats one."""

    def __init__(self, config: KafkaConfig, engine: Engine) -> None:
        self._config = config
        self._engine = engine
        self._producer: Producer | None = None
        self.due = True
        """There may be letters to tell of: after a claim, and after each batch that wrote some."""

    def send(self, stream_ids: list[int]) -> None:
        """Sends the notices of these streams' letters that are not known to have arrived."""
        if not self.due or not stream_ids:
            return
        with self._engine.begin() as connection:
            letters = dead_letters.unnoticed(connection, stream_ids, limit=_AT_ONCE)
        arrived = self._produce(letters) if letters else []
        if arrived:
            with self._engine.begin() as connection:
                dead_letters.mark_noticed(connection, arrived)
        self.due = len(arrived) < len(letters) or len(letters) == _AT_ONCE

    def _produce(self, letters: list[Letter]) -> list[Letter]:
        if self._producer is None:
            self._producer = kafka.producer(self._config)
        arrived: list[Letter] = []

        def delivered(letter: Letter, error: KafkaError | None, _: Message) -> None:
            if error is None:
                arrived.append(letter)

        topic = self._config.physical(topics.DEAD_LETTERS)
        for letter in letters:
            report = partial(delivered, letter)
            self._producer.produce(topic, key=letter.id, value=encode(_notice(letter)), on_delivery=report)
        self._producer.flush(_FLUSH_S)
        return arrived


def _notice(letter: Letter) -> DeadLetterNotice:
    return DeadLetterNotice(
        id=letter.id,
        reason=letter.reason,
        topic=letter.topic,
        partition=letter.partition,
        offset=letter.offset,
        size=letter.size,
        sha256=letter.sha256,
    )
