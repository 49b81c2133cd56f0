"""Replays dead letters: the same record again, mended or not, to the topic it came from.

Each carries the id of the letter it repeats, with a proof that only this installation can write
(`contracts/origins.py`), so that `ingest` counts it once however often it is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import msgspec
from confluent_kafka import KafkaError, Message

from contracts import topics
from contracts.codec import Decoder, Malformed, check_stated_time, key_field
from contracts.origins import origin_header, record_digest
from runtime import kafka
from runtime.kafka import KafkaConfig
from runtime.lifecycle import DriftlineError, OperatorActionRequired
from storage.log.dead_letters import MAX_KEY_BYTES, Letter

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_FLUSH_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A record to send."""

    id: str
    """The letter it repeats."""
    topic: str
    """Logical name."""
    key: bytes | None
    value: bytes | None
    at_ms: int
    """Its record time, milliseconds since 1970: as it was."""


def repeat(letter: Letter, *, value: bytes | None = None, fix_key: bool = False, anyway: bool = False) -> Repeat:
    """What to send for a letter.

    :param value: the body instead of the kept one.
    :param fix_key: set the key to what the body says it must be.
    :param anyway: also if it would be refused again.
    :raises Refused: it is not kept whole, or would be refused again.
    """
    where = f"dead letter {letter.id}"
    whole_key = fix_key or len(letter.key or b"") < MAX_KEY_BYTES or not letter.cut
    if letter.cut and not (value is not None and whole_key):
        raise OperatorActionRequired(
            f"only the beginning of the record is kept ({letter.size:,} bytes were sent)",
            where=where,
            hint="send it again from its source, or give its whole body with --value FILE",
        )
    sent = Repeat(
        id=letter.id,
        topic=letter.topic,
        key=letter.key,
        value=letter.value if value is None else value,
        at_ms=max((letter.record_at - _EPOCH) // timedelta(milliseconds=1), 1),
    )
    if fix_key:
        sent = replace(sent, key=_key_of(sent, where))
    if not anyway:
        try:
            check(sent)
        except Malformed as malformed:
            raise OperatorActionRequired(
                f"it would be refused again: {malformed}",
                where=where,
                hint="mend it with --value FILE or --fix-key; or send it as it is with --anyway",
            ) from None
    return sent


def check(record: Repeat) -> None:
    """:raises Malformed: `ingest` would refuse it."""
    decoded = Decoder(topics.INPUTS[record.topic]).decode(record.value, record.key)
    for name in ("occurred_at", "known_at", "ref_time"):
        if (at := getattr(decoded, name, None)) is not None:
            check_stated_time(name, (at - _EPOCH) // _US, record.at_ms)


def send(records: Sequence[Repeat], config: KafkaConfig, *, secret: bytes) -> None:
    """Sends all, and waits until the brokers have them.

    :param secret: the installation's key, which the origin headers are proven with.
    :raises Trouble: some were not delivered; sending all again is safe.
    """
    failed: list[str] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failed.append(f"{message.topic()}: {error.str()}")

    producer = kafka.producer(config)
    for record in records:
        digest = record_digest(record.topic, record.key, record.value)
        producer.produce(
            config.physical(record.topic),
            key=record.key,
            value=record.value,
            timestamp=record.at_ms,
            headers={topics.ORIGIN_HEADER: origin_header(secret, record.id, digest)},
            on_delivery=delivered,
        )
        producer.poll(0)
    left = producer.flush(_FLUSH_S)
    if failed or left:
        raise DriftlineError(
            f"{len(failed) + left:,} of {len(records):,} records not delivered"
            + (f"; the first: {failed[0]}" if failed else ""),
            where=f"Kafka at {config.bootstrap}",
            hint="run it again: a letter counts once, however often it is sent",
        )


def _key_of(record: Repeat, where: str) -> bytes:
    name = key_field(topics.INPUTS[record.topic])
    try:
        fields = msgspec.json.decode(record.value or b"")
        found = fields.get(name) if isinstance(fields, dict) else None
    except msgspec.DecodeError:
        found = None
    if not isinstance(found, str):
        raise OperatorActionRequired(
            f"its body has no field {name} to make the key of", where=where, hint="give --value FILE"
        )
    return found.encode()
