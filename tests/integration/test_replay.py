"""Recordings and simulations sent to a broker, and read back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import TopicPartition

from contracts import topics as topic_list
from driftline.recorded import Columns, LateLabel, Recording, Source
from driftline.recorded.publisher import replay
from driftline.simulate import Scenario, Simulation
from runtime import kafka
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Stop
from runtime.produce import Outgoing, produce

ROWS = 3_000


@pytest.fixture
def made_up(tmp_path: Path) -> Source:
    """Shuffled times, all different; every hundredth row names no user."""
    times = [1_300_000_000 + (n * 7_919) % ROWS for n in range(ROWS)]
    users = [None if n % 100 == 7 else n % 50 for n in range(ROWS)]
    pq.write_table(pa.table({"user": users, "ts": times}), tmp_path / "made-up.parquet")
    return Source(name="m", file=tmp_path / "made-up.parquet", columns=Columns(user="user", time="ts"))


def test_every_row_is_in_the_topic_and_each_user_in_one_partition(made_up: Source, topics: KafkaConfig) -> None:
    report = replay(made_up, topics)
    assert (report.rows, report.malformed, report.labels) == (ROWS, ROWS // 100, 0)
    assert report.sent == {topic_list.USER: ROWS}
    assert (report.first_at, report.last_at) == (_at(0), _at(ROWS - 1))
    partitions = _read(topics, topic_list.USER, ROWS)
    found = [record for records in partitions.values() for record in records]
    assert sorted(found, key=lambda record: record.at_ms) == list(Recording(made_up).records())
    for records in partitions.values():
        named = [record for record in records if record.key is not None]
        assert named == sorted(named, key=lambda record: record.at_ms)
    users = [{record.key for record in records if record.key} for records in partitions.values()]
    assert sum(map(len, users)) == len(set().union(*users)) == 50


def test_a_replay_that_is_stopped_says_how_far_it_came(made_up: Source, tansu_topics: KafkaConfig) -> None:
    stop = Stop()
    stop.set()
    report = replay(made_up, tansu_topics, stop=stop)
    assert sum(report.sent.values()) == 0
    assert (report.first_at, report.last_at) == (None, None)


def test_a_limit_takes_the_first_rows_in_time(made_up: Source, tansu_topics: KafkaConfig) -> None:
    report = replay(made_up, tansu_topics, limit=10)
    assert report.sent == {topic_list.USER: 10}
    assert (report.first_at, report.last_at) == (_at(0), _at(9))
    found = [record for records in _read(tansu_topics, topic_list.USER, 10).values() for record in records]
    assert {record.at_ms for record in found} == {(1_300_000_000 + n) * 1_000 for n in range(10)}


def test_a_simulation_arrives_whole(topics: KafkaConfig) -> None:
    simulation = Simulation(Scenario(users=20, malformed_rate=0.1, duplicate_rate=0.1))
    sent = produce(simulation.records(), topics)
    truth = simulation.truth
    expected = sum(truth.valid.values()) + sum(truth.duplicates.values()) + sum(truth.malformed.values())
    assert sum(sent.values()) == expected
    for topic, count in sent.items():
        assert sum(map(len, _read(topics, topic, count).values())) == count


def test_the_times_of_a_replay_are_those_of_its_events_and_not_of_its_later_labels(
    made_up: Source, tansu_topics: KafkaConfig
) -> None:
    labelled = replace(made_up, label=LateLabel(column="user", task="owner", delay=timedelta(days=7)))
    report = replay(labelled, tansu_topics, limit=10)
    assert report.labels > 0
    assert (report.first_at, report.last_at) == (_at(0), _at(9))


def _at(second: int) -> datetime:
    """Of the made-up file."""
    return datetime.fromtimestamp(1_300_000_000 + second, UTC)


def _read(config: KafkaConfig, topic: str, count: int) -> dict[int, list[Outgoing]]:
    """Partition -> its records, until there are `count` in all."""
    partitions = kafka.describe(config, [topic])[topic].partitions
    consumer = kafka.consumer(config, group="reader")
    consumer.assign([TopicPartition(config.physical(topic), n, 0) for n in range(partitions)])
    found: dict[int, list[Outgoing]] = {n: [] for n in range(partitions)}
    while sum(map(len, found.values())) < count:
        batch = consumer.consume(count, timeout=1)
        assert all(message.error() is None for message in batch)
        for message in batch:
            partition = message.partition()
            assert partition is not None
            found[partition].append(Outgoing(topic, message.key(), message.value(), message.timestamp()[1]))
    consumer.close()
    return found
