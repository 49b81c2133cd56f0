"""Writes records that no ordinary producer writes: header names of any bytes, any timestamp, any codec.

confluent-kafka takes names as text only (a name with a lone surrogate ends the process), so batches are made here with
aiokafka's own builder and sent as they are.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

Header = tuple[bytes, bytes | None]
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
_MAGIC, _NO_PRODUCER, _BATCH_BYTES = 2, -1, 900_000


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A record, byte for byte."""

    topic: str
    """Physical name."""
    partition: int
    key: bytes | None
    value: bytes | None
    at_ms: int
    """Its CreateTime, any signed 64-bit integer."""
    headers: Sequence[Header] = ()


def write_raw(bootstrap: str, records: Iterable[Raw], *, codec: str = "none") -> list[int]:
    """Sends them in order, and waits until the broker has them; their offsets, in the order given.

    :raises aiokafka.errors.KafkaError: the broker refuses a batch.
    """
    return asyncio.run(_write(bootstrap, list(records), CODECS[codec]))


async def _write(bootstrap: str, records: Sequence[Raw], codec: int) -> list[int]:
    places: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        places[record.topic, record.partition].append(index)
    offsets = [-1] * len(records)
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_batch_size=_BATCH_BYTES, max_request_size=_BATCH_BYTES)
    await producer.start()
    try:
        for (topic, partition), indices in places.items():
            while indices:
                taken, batch = _batch(producer, [records[i] for i in indices], codec)
                base = (await (await producer.send_batch(batch, topic, partition=partition))).offset
                for n, index in enumerate(indices[:taken]):
                    offsets[index] = base + n
                indices = indices[taken:]
    finally:
        await producer.stop()
    return offsets


def _batch(producer: Any, records: Sequence[Raw], codec: int) -> tuple[int, Any]:
    """(How many fit, a closed batch of them)."""
    none = _NO_PRODUCER
    builder = _DefaultRecordBatchBuilderPy(_MAGIC, codec, 0, none, none, none, _BATCH_BYTES)
    taken = 0
    for record in records:
        names: Any = [(_Name(name), content) for name, content in record.headers]
        if builder.append(taken, record.at_ms, record.key, record.value, names) is None:
            break
        taken += 1
    batch = producer.create_batch()
    batch._builder, batch._relative_offset = builder, taken
    batch.close()
    return taken, batch


class _Name:
    """Bytes where the builder expects text to encode."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def encode(self, *_: str) -> bytes:
        return self._content
