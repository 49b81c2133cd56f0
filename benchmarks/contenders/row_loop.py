"""The reference: one plain Python loop, one row an event.

Consume a batch, validate it as Driftline does (`contracts.codec`), binary COPY into a staging table, insert
what is new, dead letters and next offsets in the same transaction. No threads of its own. This is what a
good engineer writes in an afternoon; Driftline has to earn its complexity against it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import cast

import psycopg
import pyarrow as pa
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from pgpq import ArrowToPostgresBinaryEncoder

from benchmarks.contenders.task import Answer, Task
from contracts.codec import Decoder, Malformed, check_record_time, check_stated_time
from contracts.records import UserEvent

BATCH = 50_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
TABLES = """
CREATE TABLE event (
    user_id text COLLATE "C" NOT NULL, occurred_at timestamptz NOT NULL, event_id text COLLATE "C" NOT NULL,
    source text NOT NULL, type text NOT NULL, item_id text, partition int NOT NULL, position bigint NOT NULL,
    PRIMARY KEY (user_id, occurred_at, event_id)
);
CREATE TABLE dead_letter (
    partition int, position bigint, reason text NOT NULL, detail text NOT NULL, key bytea, value bytea,
    PRIMARY KEY (partition, position)
);
CREATE TABLE next_offset (partition int PRIMARY KEY, next_offset bigint NOT NULL);
CREATE TEMP TABLE staging (LIKE event) ON COMMIT DELETE ROWS;
"""
COPY = "COPY staging FROM STDIN (FORMAT binary)"
# Sorted rows touch each page of the index once a batch.
INSERT = "INSERT INTO event SELECT * FROM staging ORDER BY user_id, occurred_at ON CONFLICT DO NOTHING"
DEAD = "INSERT INTO dead_letter VALUES (%s, %s, %s, %s, %s, %s)"
ADVANCE = """
INSERT INTO next_offset VALUES (%s, %s)
ON CONFLICT (partition) DO UPDATE SET next_offset = excluded.next_offset
"""
COLUMNS = pa.schema(
    [
        ("user_id", pa.string()),
        ("occurred_at", pa.timestamp("us", "UTC")),
        ("event_id", pa.string()),
        ("source", pa.string()),
        ("type", pa.string()),
        ("item_id", pa.string()),
        ("partition", pa.int32()),
        ("position", pa.int64()),
    ]
)

Dead = tuple[int, int, str, str, bytes | None, bytes | None]


@dataclass(kw_only=True)
class Batch:
    """What one batch of messages amounts to."""

    events: list[UserEvent] = field(default_factory=list)
    partitions: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    dead: list[Dead] = field(default_factory=list)
    following: dict[int, int] = field(default_factory=dict)
    """The next offset of each partition."""


def main() -> None:
    task = Task.from_environment()
    gc.disable()  # nothing here makes cycles, and walking 50,000 live records again and again costs a tenth
    with psycopg.connect(task.postgres_url) as database:
        database.execute(TABLES)
        database.commit()
        consumer = Consumer(
            {
                "bootstrap.servers": task.bootstrap,
                "group.id": task.group,
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "queued.min.messages": 200_000,
                "fetch.message.max.bytes": 4_194_304,
            }
        )
        consumer.subscribe([task.topic], on_assign=lambda c, parts: c.assign(_positions(database, parts)))
        try:
            answer = _run(consumer, database, _end_offsets(consumer, task.topic))
        finally:
            consumer.close()
    answer.print()


def _run(consumer: Consumer, database: psycopg.Connection, ends: dict[int, int]) -> Answer:
    """Reads up to `ends`."""
    decoder = Decoder(UserEvent)
    reached = dict.fromkeys(ends, 0)
    records, started_at = 0, 0.0
    while any(reached[partition] < end for partition, end in ends.items()):
        # One record first: a whole first batch would be fetched before the clock starts.
        messages = consumer.consume(BATCH if started_at else 1, 0.2)
        if not messages:
            continue
        started_at = started_at or time.time()
        records += len(messages)
        batch = _decode(decoder, messages)
        _store(database, batch)
        reached |= batch.following
    return Answer(records=records, started_at=started_at, finished_at=time.time())


def _decode(decoder: Decoder, messages: list[Message]) -> Batch:
    batch = Batch()
    decode = decoder.decode
    for message in messages:
        if error := message.error():
            raise KafkaException(error)
        partition, position = cast(int, message.partition()), cast(int, message.offset())
        batch.following[partition] = position + 1
        record_ms = message.timestamp()[1]
        try:
            check_record_time(record_ms)
            event = cast(UserEvent, decode(message.value(), message.key()))
            check_stated_time("occurred_at", (event.occurred_at - EPOCH) // MICROSECOND, record_ms)
        except Malformed as wrong:
            batch.dead.append((partition, position, wrong.reason, wrong.detail, message.key(), message.value()))
            continue
        batch.events.append(event)
        batch.partitions.append(partition)
        batch.positions.append(position)
    return batch


def _store(database: psycopg.Connection, batch: Batch) -> None:
    """One batch, one transaction."""
    encoder = ArrowToPostgresBinaryEncoder(COLUMNS)
    with database.cursor() as cursor:
        with cursor.copy(COPY) as copy:
            copy.write(encoder.write_header())
            copy.write(encoder.write_batch(_columns(batch)))
            copy.write(encoder.finish())
        cursor.execute(INSERT)
        if batch.dead:
            cursor.executemany(DEAD, batch.dead)
        cursor.executemany(ADVANCE, list(batch.following.items()))
    database.commit()


def _columns(batch: Batch) -> pa.RecordBatch:
    columns: list[Sequence[object]] = [
        [event.user_id for event in batch.events],
        [event.occurred_at for event in batch.events],
        [event.event_id for event in batch.events],
        [event.source for event in batch.events],
        [event.type for event in batch.events],
        [event.item_id for event in batch.events],
        batch.partitions,
        batch.positions,
    ]
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, COLUMNS, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=COLUMNS)


def _positions(database: psycopg.Connection, assigned: list[TopicPartition]) -> list[TopicPartition]:
    """Where Postgres says to go on; its word counts, not Kafka's."""
    rows = database.execute("SELECT partition, next_offset FROM next_offset")
    stored: dict[int, int] = dict(rows.fetchall())
    database.commit()
    for at in assigned:
        at.offset = stored.get(at.partition, 0)
    return assigned


def _end_offsets(consumer: Consumer, topic: str) -> dict[int, int]:
    partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
    return {
        number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=30)[1] for number in partitions
    }


if __name__ == "__main__":
    main()
