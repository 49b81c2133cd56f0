"""The audit's own reading of a partition: what each record is, by the contract and nothing else.

Of Driftline it uses `contracts` alone, as that defines what valid means; consumer and columns are its own.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition
from numpy.typing import NDArray

from contracts import topics
from contracts.codec import MAX_AHEAD, MAX_BEHIND, MAX_RECORD_MS, Decoder, Malformed
from contracts.identity import event_key
from contracts.records import MAX_ID_CHARS, Record
from driftline.audit.origin_proof import Headers
from runtime.kafka import KafkaConfig
from runtime.kafka_options import for_client
from runtime.lifecycle import DriftlineError

Ints = NDArray[np.int64]

_TIME = pa.timestamp("us", tz="UTC")
_TEXT, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()
_US = timedelta(microseconds=1)
_CHUNK = 10_000
_SILENCE_S = 30.0

# Column of the log -> (attribute of the record, type).
_FIELDS: dict[str, dict[str, tuple[str, pa.DataType]]] = {
    topics.USER: {
        "at": ("occurred_at", _TIME),
        "event_id": ("event_id", _TEXT),
        "user": ("user_id", _TEXT),
        "type": ("type", _TEXT),
        "item": ("item_id", _TEXT),
        "source": ("source", _TEXT),
    },
    topics.PAYMENT: {
        "at": ("occurred_at", _TIME),
        "event_id": ("event_id", _TEXT),
        "user": ("user_id", _TEXT),
        "type": ("type", _TEXT),
        "item": ("item_id", _TEXT),
        "amount": ("amount", _INT),
        "currency": ("currency", _TEXT),
        "other": ("payee_id", _TEXT),
        "source": ("source", _TEXT),
    },
    topics.RELATIONAL: {
        "at": ("occurred_at", _TIME),
        "event_id": ("event_id", _TEXT),
        "user": ("actor_id", _TEXT),
        "type": ("relation", _TEXT),
        "other": ("counterpart_id", _TEXT),
        "source": ("source", _TEXT),
    },
    topics.LABELS: {
        "at": ("known_at", _TIME),
        "event_id": ("event_id", _TEXT),
        "user": ("user_id", _TEXT),
        "task": ("task", _TEXT),
        "subject": ("subject_event_id", _TEXT),
        "ref_time": ("ref_time", _TIME),
        "value": ("value", _FLOAT),
        "source": ("source", _TEXT),
    },
}


@dataclass(frozen=True, kw_only=True)
class Records:
    """Consecutive records of one partition."""

    offsets: Ints
    """Of all of them."""
    valid: pa.Table
    """`offset`, `record_at` and the columns that the log has of this topic, for the valid ones."""
    digests: Ints
    """Identity of each valid one; of an item, what the version says."""
    headers: Headers = field(default_factory=Headers)
    """What the valid ones say in theirs."""

    def between(self, first: int, end: int) -> Records:
        """Those at offsets [first, end)."""
        low, high = np.searchsorted(self.offsets, [first, end])
        at = self.valid_offsets
        valid_low, valid_high = np.searchsorted(at, [first, end])
        return Records(
            offsets=self.offsets[low:high],
            valid=self.valid.slice(valid_low, valid_high - valid_low),
            digests=self.digests[valid_low:valid_high],
            headers=self.headers.between(first, end),
        )

    @property
    def valid_offsets(self) -> Ints:
        """Offsets of the valid ones."""
        offsets: Ints = self.valid["offset"].to_numpy()
        return offsets

    @property
    def invalid_offsets(self) -> Ints:
        """Offsets of the others."""
        return np.setdiff1d(self.offsets, self.valid_offsets, assume_unique=True)


def concat(parts: list[Records], topic: str) -> Records:
    """One after the other."""
    if not parts:
        return _records(topic, [], [], [], b"")
    headers = Headers()
    for part in parts:
        headers.add(part.headers)
    return Records(
        offsets=np.concatenate([part.offsets for part in parts]),
        valid=pa.concat_tables([part.valid for part in parts]),
        digests=np.concatenate([part.digests for part in parts]),
        headers=headers,
    )


class TopicReader:
    """A consumer without a group's assignment: it reads the range it is told, and commits nothing."""

    def __init__(self, config: KafkaConfig, secret: bytes) -> None:
        """:param secret: the installation's key, with which replays of dead letters prove themselves."""
        self._config = config
        self._secret = secret
        self._decoders = {topic: Decoder(record) for topic, record in topics.INPUTS.items()}
        self._consumer = Consumer(
            {
                **for_client(config.options, "consumer"),  # none of them wins over what an audit stands on
                "bootstrap.servers": config.bootstrap,
                "group.id": "driftline-audit",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "queued.max.messages.kbytes": 64 * 1024,  # KiB
                "fetch.queue.backoff.ms": 10,
                "fetch.wait.max.ms": 50,
            },
            logger=logging.getLogger("librdkafka"),
        )

    def close(self) -> None:
        """Ends the consumer."""
        self._consumer.close()

    def low_high(self, topic: str, partition: int) -> tuple[int, int]:
        """First offset still there, and the one after the last."""
        place = TopicPartition(self._config.physical(topic), partition)
        try:
            low, high = self._consumer.get_watermark_offsets(place, timeout=30.0, cached=False)
        except KafkaException as error:
            where = f"{place.topic}[{partition}]"
            raise DriftlineError(f"Kafka: {error.args[0].str()}", where=where, hint="run it again") from error
        return low, high

    def read(self, topic: str, partition: int, first: int, end: int) -> Iterator[Records]:
        """The records at offsets [first, end), piece by piece.

        :raises Trouble: Kafka reports an error, or stays silent before `end` is reached.
        """
        place = TopicPartition(self._config.physical(topic), partition, first)
        where = f"{place.topic}[{partition}]"
        self._consumer.assign([place])
        heard_at = time.monotonic()
        try:
            while (at := self._position(place)) < end:
                # Never wait for more than there can be: the call returns early only when it has them all.
                messages, ended = _sorted_out(self._consumer.consume(min(_CHUNK, end - at), 0.1), where)
                if messages:
                    heard_at = time.monotonic()
                    yield self._understood(topic, messages, end)
                if ended is not None and ended >= end:
                    return
                if time.monotonic() - heard_at > _SILENCE_S:
                    raise DriftlineError(
                        f"offsets {max(self._position(place), first)} to {end} are not delivered",
                        where=where,
                        hint="is the broker well? Then run it again",
                    )
        finally:
            self._consumer.unassign()

    def _position(self, place: TopicPartition) -> int:
        at = self._consumer.position([TopicPartition(place.topic, place.partition)])[0].offset
        return place.offset if at == OFFSET_INVALID else int(at)

    def _understood(self, topic: str, messages: list[Message], end: int) -> Records:
        """Decodes. Offsets from `end` on are the next audit's."""
        decoder = self._decoders[topic]
        offsets: list[int] = []
        kept: list[Message] = []
        records: list[Record | None] = []
        decode = decoder.decode
        for message in messages:
            offset = message.offset() or 0
            if offset >= end:
                break
            offsets.append(offset)
            try:
                value, key = message.value(), message.key()
                if not 0 <= message.timestamp()[1] <= MAX_RECORD_MS:
                    continue
                if value is None and topic == topics.ITEMS:
                    if not _names_item(key):
                        continue
                    record = None
                else:
                    record = decode(value, key)
            except Malformed:
                continue
            kept.append(message)
            records.append(record)
        return _records(topic, offsets, kept, records, self._secret)


def _sorted_out(received: list[Message], where: str) -> tuple[list[Message], int | None]:
    """The messages, and the offset at which the partition is said to end."""
    messages, ended = [], None
    for message in received:
        error = message.error()
        if error is None:
            messages.append(message)
        elif error.code() == KafkaError._PARTITION_EOF:
            ended = message.offset()
        else:
            raise DriftlineError(f"Kafka: {error.str()}", where=where, hint="run it again")
    return messages, ended


def _records(topic: str, offsets: list[int], messages: list[Message], records: list[Any], secret: bytes) -> Records:
    at = np.array([message.offset() for message in messages], np.int64)
    record_us = np.array([message.timestamp()[1] for message in messages], np.int64) * 1000
    columns: dict[str, Any] = {"offset": pa.array(at), "record_at": pa.array(record_us).cast(_TIME)}
    timely = np.ones(len(records), bool)
    if topic == topics.ITEMS:
        columns["item"] = pa.array([(message.key() or b"").decode() for message in messages], _TEXT)
        digests = np.array([version_digest(record and _payload(record)) for record in records], np.int64)
    else:
        for name, (attribute, kind) in _FIELDS[topic].items():
            columns[name] = pa.array([getattr(record, attribute) for record in records], kind)
        for stated in ("at", *(("ref_time",) if topic == topics.LABELS else ())):
            ahead = np.asarray(columns[stated].cast(_INT)) - record_us
            timely &= (ahead <= MAX_AHEAD // _US) & (ahead >= -(MAX_BEHIND // _US))
        keys = [(message.key() or b"").decode() for message in messages]
        pairs = zip(keys, [record.event_id for record in records], strict=True)
        digests = np.fromiter((event_key(topic, key, event_id) for key, event_id in pairs), np.int64, len(records))
    valid, headers = pa.table(columns), Headers()
    headers.take([messages[index] for index in np.flatnonzero(timely)], topic, secret)
    if not timely.all():
        valid, digests = valid.filter(pa.array(timely)), digests[timely]
    return Records(offsets=np.array(offsets, np.int64), valid=valid, digests=digests, headers=headers)


def _names_item(key: bytes | None) -> bool:
    try:
        name = (key or b"").decode()
    except UnicodeDecodeError:
        return False
    return 0 < len(name) <= MAX_ID_CHARS and "\0" not in name


def _payload(record: Any) -> dict[str, Any]:
    return {"title": record.title, "text": record.text, "attributes": record.attributes, "source": record.source}


def version_digest(payload: dict[str, Any] | None) -> int:
    """What a version of an item says, as a signed 64-bit integer."""
    content = msgspec.json.encode(payload, order="sorted")
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big", signed=True)
