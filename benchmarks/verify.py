"""Counts what a contender left behind, with the harness' own eyes: nobody wins by losing records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import cast

import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from benchmarks.contenders.task import Task
from benchmarks.workload import Workload


class Wrong(AssertionError):
    """A contender's result is not the right one."""


def driftline(task: Task, workload: Workload) -> None:
    """Accepted events, each once, in the log and in the users' sequences; the refused ones counted."""
    _expect(
        task,
        {
            "SELECT sum(accepted) FROM log_segment": workload.accepted,
            "SELECT sum(duplicates) FROM log_segment": workload.duplicates,
            "SELECT sum(dead) FROM log_segment": workload.malformed,
            "SELECT sum(next_offset - first_offset) FROM log_segment": workload.events,
            "SELECT sum(cardinality(event_id)) FROM user_segment": workload.accepted,
            "SELECT count(DISTINCT e) FROM user_segment, unnest(event_id) AS e": workload.accepted,
            "SELECT count(*) FROM dead_letter": workload.malformed,
            "SELECT sum(next_offset) FROM stream_offset WHERE topic = 'events.user'": workload.events,
        },
    )


def row_loop(task: Task, workload: Workload) -> None:
    """One row an accepted event; every malformed record in the dead letters."""
    _expect(
        task,
        {
            "SELECT count(*) FROM event": workload.accepted,
            "SELECT count(DISTINCT event_id) FROM event": workload.accepted,
            "SELECT count(*) FROM dead_letter": workload.malformed,
            "SELECT sum(next_offset) FROM next_offset": workload.events,
        },
    )


def quix_postgres(task: Task, workload: Workload) -> None:
    """One row a record that is JSON: the sink keeps duplicates and malformed records."""
    _expect(task, {"SELECT count(*) FROM event": workload.parseable})


def changelog_counts(task: Task, workload: Workload) -> None:
    """The newest count of every key in the changelog topic (Quix, Faust) is the true one."""
    admin = AdminClient({"bootstrap.servers": task.bootstrap})
    names = [name for name in admin.list_topics(timeout=30).topics if task.group in name]
    if len(names) != 1:
        raise Wrong(f"expected one changelog topic of {task.group}, found {names}")
    found = _latest(task.bootstrap, names[0])
    if found != workload.parseable_by_key:
        raise Wrong(
            f"{task.group}: counts sum to {sum(found.values()):,} over {len(found):,} keys; "
            f"right: {workload.parseable:,} over {len(workload.parseable_by_key):,}"
        )
    admin.delete_topics(names)[names[0]].result(30)


def _expect(task: Task, expected: Mapping[str, int]) -> None:
    with psycopg.connect(task.postgres_url) as database:
        for query, right in expected.items():
            row = database.execute(query.encode()).fetchone()
            found = row[0] if row else None
            if found != right:
                raise Wrong(f"{task.group}: {query} gives {found}; right: {right}")


def _latest(bootstrap: str, topic: str) -> Counter[bytes]:
    """Committed values of a changelog, the last one of each key."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "bench-verify",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
    )
    partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    latest: Counter[bytes] = Counter()
    ended: set[int] = set()
    while len(ended) < len(partitions):
        for message in consumer.consume(10_000, 1.0):
            error = message.error()
            if error is None:
                latest[_user(message.key() or b"")] = int(json.loads(message.value() or b"0"))
            elif error.code() == KafkaError._PARTITION_EOF:
                ended.add(cast(int, message.partition()))
            else:
                raise KafkaException(error)
    consumer.close()
    return latest


def _user(key: bytes) -> bytes:
    """The record key inside a changelog key: Faust's is JSON, Quix's is 'record key|state key'."""
    return key.partition(b"|")[0].strip(b'"')
