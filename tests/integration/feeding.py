"""What tests of `ingest` share: records to send, a way to run it, and a look at all that Postgres then holds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import Message, Producer, TopicPartition

from contracts import topics
from contracts.codec import encode, key_field, topic_of
from contracts.records import Item, Label, Payment, Record, Relation, UserEvent
from runtime import kafka
from runtime.admin_app import Health
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Stop
from runtime.settings import IngestSettings
from storage.engine import open_engine
from storage.log.event_log import decode_rows
from streams.ingest.counters import IngestTotals
from streams.ingest.process import Ingest

REPOSITORY = Path(__file__).parents[2]
START = datetime(2026, 1, 1, tzinfo=UTC)
START_MS = int(START.timestamp() * 1000)
SESSION_S = 1.5

Identity = tuple[str, str, str]
"""(topic, record key, event id)."""


def when(n: float) -> datetime:
    """n seconds after the start."""
    return START + timedelta(seconds=n)


def event(
    event_id: str, user: str = "ann", at: float = 0, *, type: str = "click", item: str | None = None
) -> UserEvent:
    """A user event."""
    return UserEvent(event_id=event_id, user_id=user, occurred_at=when(at), source="test", type=type, item_id=item)


def payment(event_id: str, user: str = "ann", at: float = 0, *, amount: int = 5_000_000) -> Payment:
    """A payment to a shop."""
    return Payment(
        event_id=event_id,
        user_id=user,
        occurred_at=when(at),
        source="test",
        type="buy",
        amount=amount,
        currency="EUR",
        payee_id="shop",
    )


def relation(event_id: str, actor: str, counterpart: str, at: float = 0) -> Relation:
    """A message from one user to another."""
    return Relation(
        event_id=event_id,
        actor_id=actor,
        relation="message",
        counterpart_id=counterpart,
        occurred_at=when(at),
        source="test",
    )


def label(event_id: str, user: str = "ann", at: float = 0, *, value: float = 1.0) -> Label:
    """A late outcome."""
    return Label(
        event_id=event_id, user_id=user, task="fraud", ref_time=when(at), known_at=when(at), value=value, source="test"
    )


def item(item_id: str, title: str = "") -> Item:
    """A description of an item."""
    return Item(item_id=item_id, source="test", title=title)


def key_of(record: Record) -> str:
    """The Kafka key of a record."""
    key: str = getattr(record, key_field(type(record)))
    return key


def identity(record: UserEvent | Payment | Relation | Label) -> Identity:
    """What makes the record the one it is."""
    return topic_of(record), key_of(record), record.event_id


class Sender:
    """Sends records and waits until the broker has them."""

    def __init__(self, config: KafkaConfig) -> None:
        self.config = config
        self._producer: Producer = kafka.producer(config, extra={"linger.ms": 0, "message.max.bytes": 100_000_000})

    def send(self, *records: Record) -> None:
        """Valid records, where they belong; record time = the start."""
        for record in records:
            self.put(topic_of(record), key_of(record).encode(), encode(record), flush=False)
        self.flush()

    def put(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        *,
        at_ms: int = START_MS,
        partition: int = -1,
        headers: Mapping[str, str] | None = None,
        flush: bool = True,
    ) -> None:
        """Any bytes."""
        given: list[tuple[str, str | bytes | None]] | None = list(headers.items()) if headers else None
        while True:
            try:
                name = self.config.physical(topic)
                self._producer.produce(name, value, key, partition=partition, timestamp=at_ms, headers=given)
                break
            except BufferError:
                self._producer.poll(0.05)
        if flush:
            self.flush()

    def flush(self) -> None:
        """Until all are acknowledged."""
        assert self._producer.flush(30) == 0


def settings(config: KafkaConfig, **given: Any) -> IngestSettings:
    """A group of the topics' own, short waits."""
    values = {"group": f"{config.prefix}ingest", "session_timeout_s": SESSION_S, "linger_s": 0.02, "port": None}
    return IngestSettings(**{**values, **given})


def ingest(database: str, config: KafkaConfig, *, stop: Stop | None = None, **given: Any) -> Ingest:
    """An `ingest` of this process."""
    return Ingest(
        postgres_url=database,
        kafka_config=config,
        settings=settings(config, **given),
        health=Health("ingest"),
        stop=stop or Stop(),
    )


def ingest_once(database: str, config: KafkaConfig, **given: Any) -> IngestTotals:
    """Takes in what the topics hold now."""
    timer = threading.Timer(45, (stop := Stop()).set, ["too slow"])
    timer.start()
    try:
        totals = ingest(database, config, stop=stop, **given).run(once=True)
    finally:
        timer.cancel()
    assert stop.reason is None, "it did not reach the ends of the topics"
    return totals


@dataclass(kw_only=True)
class Running:
    """`driftline ingest` as a process of its own."""

    process: subprocess.Popen[bytes]
    stderr: Path

    def log(self) -> str:
        """What it said so far."""
        return self.stderr.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def exit_code(self, *, within_s: float = 30) -> int:
        """Waits for its end."""
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {within_s} s:\n{self.log()[-4000:]}") from None


@dataclass
class Processes:
    """Starts `driftline ingest` processes; all are dead at the end of the test."""

    folder: Path
    running: list[Running] = field(default_factory=list)

    def start(
        self,
        database: str,
        config: KafkaConfig,
        *options: str,
        failpoint: str = "",
        port: int | None = None,
        **given: Any,
    ) -> Running:
        """One more."""
        stderr = self.folder / f"ingest-{len(self.running)}.log"
        chosen = settings(config, **given)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE_")},
            "PYTHONPATH": str(REPOSITORY),
            "DRIFTLINE_POSTGRES_URL": database,
            "DRIFTLINE_KAFKA_BOOTSTRAP": config.bootstrap,
            "DRIFTLINE_TOPIC_PREFIX": config.prefix,
            "DRIFTLINE_FAILPOINT": failpoint,
            "DRIFTLINE_INGEST__GROUP": chosen.group,
            "DRIFTLINE_INGEST__SESSION_TIMEOUT_S": str(chosen.session_timeout_s),
            "DRIFTLINE_INGEST__LINGER_S": str(chosen.linger_s),
            "DRIFTLINE_INGEST__BATCH_RECORDS": str(chosen.batch_records),
            "DRIFTLINE_INGEST__DUPLICATE_WINDOW": str(chosen.duplicate_window),
            "DRIFTLINE_INGEST__PORT": "none" if port is None else str(port),
        }
        command = [sys.executable, "-m", "driftline", "ingest", *options]
        with stderr.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=self.folder)
        made = Running(process=process, stderr=stderr)
        self.running.append(made)
        return made

    def end(self) -> None:
        """Kills what still runs."""
        for each in self.running:
            if each.process.poll() is None:
                each.process.kill()
                each.process.wait()


@contextmanager
def processes(folder: Path) -> Iterator[Processes]:
    """A place for processes."""
    made = Processes(folder)
    try:
        yield made
    finally:
        made.end()


def eventually(what: Callable[[], object], *, within_s: float = 20, every_s: float = 0.05, why: str = "") -> None:
    """Looks again and again until it is so."""
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, f"not within {within_s} s: {why or what}"
        time.sleep(every_s)


def query(database: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Rows of a statement."""
    with psycopg.connect(database, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), values or None)
        return cursor.fetchall() if cursor.description else []


@dataclass(frozen=True, kw_only=True)
class Taken:
    """All that `ingest` wrote, read by plain SQL."""

    log: Counter[Identity]
    """Accepted events and labels, by the log."""
    sequences: Counter[tuple[str, str, str, str]]
    """(user, topic, event id, role), by the view that people use."""
    totals: Counter[str]
    """Sums of the segments' counts."""
    next_offsets: dict[tuple[str, int], int]

    @property
    def identities(self) -> set[Identity]:
        """Accepted, each once."""
        assert set(self.log.values()) <= {1}, [i for i, n in self.log.items() if n > 1]
        return set(self.log)


def taken(database: str) -> Taken:
    """Reads everything, and checks what must hold at every moment.

    Segments chain up to the stored offset, counts add up, and log and sequences hold the same events.
    """
    with psycopg.connect(database) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        streams = connection.execute("SELECT stream_id, topic, partition, next_offset FROM stream_offset").fetchall()
        segments = connection.execute(
            "SELECT stream_id, first_offset, next_offset, read, accepted, duplicates, dead, suppressed, rows, status"
            " FROM log_segment ORDER BY stream_id, first_offset, epoch"
        ).fetchall()
        letters: Counter[int] = Counter(
            row[0] for row in connection.execute("SELECT stream_id FROM dead_letter").fetchall()
        )
        view = connection.execute("SELECT user_id, topic, event_id, role FROM user_event").fetchall()
    names = {stream_id: topic for stream_id, topic, _, _ in streams}
    log: Counter[Identity] = Counter()
    expected: Counter[tuple[str, str, str, str]] = Counter()
    totals: Counter[str] = Counter()
    ends: dict[int, int] = {}
    dead: Counter[int] = Counter()
    for stream_id, first, next_offset, read, accepted, duplicates, refused, suppressed, rows, status in segments:
        assert ends.get(stream_id, first) == first, f"stream {stream_id}: a segment starts at {first}"
        ends[stream_id] = next_offset
        assert read == accepted + duplicates + refused + suppressed
        assert (rows is None) == (accepted == 0)
        dead[stream_id] += refused
        totals.update(read=read, accepted=accepted, duplicates=duplicates, dead=refused, suppressed=suppressed)
        totals[f"{status} segments"] += 1
        if rows is None or names[stream_id] == topics.ITEMS:
            continue
        topic = names[stream_id]
        for row in decode_rows(rows).to_pylist():
            assert first <= row["offset"] < next_offset
            log[topic, row["user"], row["event_id"]] += 1
            if topic in topics.EVENTS:
                expected[row["user"], topic, row["event_id"], "actor"] += 1
            if topic == topics.RELATIONAL:
                expected[row["other"], topic, row["event_id"], "counterpart"] += 1
    sequences = Counter((user, topic, event_id, role) for user, topic, event_id, role in view)
    assert sequences == expected
    assert dead == letters
    for stream_id, _, _, next_offset in streams:
        assert ends.get(stream_id, next_offset) == next_offset
    return Taken(
        log=log,
        sequences=sequences,
        totals=totals,
        next_offsets={(topic, partition): at for _, topic, partition, at in streams},
    )


def letters(database: str) -> list[tuple[str, str]]:
    """(reason, topic) of the dead letters, in log order."""
    rows = query(
        database,
        "SELECT reason, topic FROM dead_letter JOIN stream_offset USING (stream_id)"
        " ORDER BY topic, partition, position",
    )
    return [(reason, topic) for reason, topic in rows]


def read_topic(config: KafkaConfig, topic: str, *, at_least: int, within_s: float = 10) -> Sequence[Message]:
    """The messages of partition 0 of a topic, from its start."""
    consumer = kafka.consumer(config, group=f"{config.prefix}look")
    consumer.assign([TopicPartition(config.physical(topic), 0, 0)])
    found: list[Message] = []
    deadline = time.monotonic() + within_s
    while len(found) < at_least and time.monotonic() < deadline:
        found += [message for message in consumer.consume(1000, 0.2) if message.error() is None]
    consumer.close()
    return found


def engine_of(database: str) -> Any:
    """An engine as the processes open it."""
    return open_engine(database, application_name="test")
