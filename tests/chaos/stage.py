"""What all runs share: the servers, and the stream, the same records each time."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from heapq import merge
from pathlib import Path

import psycopg
from confluent_kafka import KafkaError, Message
from sqlalchemy import make_url

from contracts import topics
from contracts.codec import encode
from contracts.records import Label
from driftline.simulate import Scenario, Simulation
from runtime import kafka
from runtime.kafka import BrokerAway, KafkaConfig
from runtime.produce import Outgoing
from storage import migrate
from tests.chaos.servers import Broker

SESSION_S = 1.5
PRODUCE_S = 8.0
"""Seconds over which the stream is sent, so that the disturbances meet records on their way."""
LABELS, CHANGE_AT = 6_000, 4_500
"""Labels of one task, and the one from which on three times as many are true: `drift` must tell."""


class Stage:
    """Postgres, Kafka, a folder, a stream."""

    def __init__(self, broker: Broker, postgres: str, folder: Path, *, users: int, days: float) -> None:
        self.broker = broker
        self.postgres = postgres
        self.folder = folder
        scenario = Scenario(
            seed=7, users=users, duration_s=days * 86_400.0, change_after_s=days * 43_200.0,
            malformed_rate=0.02, duplicate_rate=0.03,
        )  # fmt: skip
        events = list(Simulation(scenario).records())
        self.records = list(merge(events, labels(scenario), key=lambda record: record.at_ms))
        self.users = [f"sim:user-{number}" for number in range(users)]

    @contextmanager
    def database(self) -> Iterator[str]:
        """A fresh, migrated database."""
        name = f"chaos_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.postgres, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        url = make_url(self.postgres).set(database=name).render_as_string(hide_password=False)
        migrate.upgrade(url)
        yield url
        with psycopg.connect(self.postgres, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def topics(self) -> KafkaConfig:
        """Fresh topics, under a prefix of their own.

        :raises AssertionError: the broker does not make them, for minutes.
        """
        config = KafkaConfig(self.broker.bootstrap, prefix=f"chaos-{uuid.uuid4().hex[:8]}.")
        for _ in range(10):  # one that was killed in the run before may still be gathering itself
            try:
                kafka.create_topics(config, topics.ALL)
                return config
            except BrokerAway:
                time.sleep(1.0)
        raise AssertionError(f"Kafka at {config.bootstrap} makes no topics")

    def send(self, config: KafkaConfig) -> None:
        """Sends the stream evenly over `PRODUCE_S` seconds.

        :raises AssertionError: not all of it reached Kafka: what follows has another stream than the quiet run had.
        """
        refused = list[str]()

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                refused.append(f"{message.topic()}/{message.partition()}: {error.str()}")

        producer = kafka.producer(config)
        began = time.monotonic()
        for number, record in enumerate(self.records):
            due = began + PRODUCE_S * number / len(self.records)
            while (early := due - time.monotonic()) > 0:
                producer.poll(min(early, 0.05))
            topic = config.physical(record.topic)
            producer.produce(topic, record.value, record.key, on_delivery=delivered, timestamp=record.at_ms)
        left = producer.flush(100)
        if left or refused:
            raise AssertionError(f"{left} records did not reach Kafka, {len(refused)} were refused: {refused[:3]}")


def labels(scenario: Scenario) -> Iterator[Outgoing]:
    """Of one user, so that one partition holds them in this order."""
    rng = random.Random(scenario.seed)
    for number in range(LABELS):
        at = scenario.start + timedelta(seconds=scenario.duration_s * number / LABELS)
        label = Label(
            event_id=f"chaos-{number}",
            user_id="chaos:labelled",
            task="chargeback",
            ref_time=at,
            known_at=at,
            value=float(rng.random() < (0.2 if number < CHANGE_AT else 0.7)),
            source="chaos",
        )
        yield Outgoing(topics.LABELS, label.user_id.encode(), encode(label), round(at.timestamp() * 1000))


def environment(config: KafkaConfig, database: str, folder: Path) -> dict[str, str]:
    """Settings of every process of a run: small batches, short waits."""
    return {
        "DRIFTLINE_POSTGRES_URL": database,
        "DRIFTLINE_KAFKA_BOOTSTRAP": config.bootstrap,
        "DRIFTLINE_TOPIC_PREFIX": config.prefix,
        "DRIFTLINE_DATA_DIR": str(folder),
        "DRIFTLINE_INGEST__GROUP": config.prefix,
        "DRIFTLINE_INGEST__SESSION_TIMEOUT_S": str(SESSION_S),
        "DRIFTLINE_INGEST__BATCH_RECORDS": "100",
        "DRIFTLINE_INGEST__LINGER_S": "0.02",
        "DRIFTLINE_INGEST__PORT": "none",
        "DRIFTLINE_TRAIN__PORT": "none",
        "DRIFTLINE_TRAIN__SNAPSHOT_EVERY_S": "2",
        "DRIFTLINE_TRAIN__OPTIONS": json.dumps({name: {"warmup_events": 1000} for name in ("prompttpp", "sdim")}),
        "DRIFTLINE_DRIFT__PORT": "none",
        "DRIFTLINE_DRIFT__SESSION_TIMEOUT_S": "6",
        "DRIFTLINE_SCORE__PORT": "0",
        "DRIFTLINE_SCORE__GROUP": f"{config.prefix}score",
        "DRIFTLINE_SCORE__SESSION_TIMEOUT_S": "3",
        "DRIFTLINE_EXPORT__PORT": "none",
        "DRIFTLINE_EXPORT__EVERY_S": "2",
        "DRIFTLINE_MAINTAIN__PORT": "none",
        "DRIFTLINE_MAINTAIN__EVERY_S": "0.5",
        "DRIFTLINE_MAINTAIN__COMPACT_ROWS": "3",
        "DRIFTLINE_MAINTAIN__KEEP_SNAPSHOTS": "2",
    }
