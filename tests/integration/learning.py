"""Event logs written by hand, as `ingest` would have written them, and a `train` that learns from them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import torch
from sqlalchemy import Connection, text

from contracts import topics
from contracts.records import Progress
from runtime import kafka
from runtime.admin_app import Health
from runtime.kafka import KafkaConfig
from runtime.lifecycle import OperatorActionRequired, Stop
from runtime.settings import TrainSettings
from storage.dictionary import Dictionary
from storage.engine import open_engine
from storage.learning import snapshot_files
from storage.log import event_log, offsets
from storage.log.offsets import Advance, Claim, Cursor, KafkaPartitionId
from storage.privacy import suppression
from storage.sequences import user_sequences
from streams.train.process import Train, TrainTotals
from tests.integration.feeding import eventually, read_topic

Place = tuple[str, int]
"""(topic, partition)."""
SECOND = 1_000_000


class Given(NamedTuple):
    """A record that was accepted. Times in microseconds since 1970."""

    offset: int
    record_at: int
    at: int = 0
    user: str = "ann"
    type: str = "click"
    other: str | None = None
    item: str | None = None
    amount: int | None = None
    """Millionths of a euro."""


class Told(NamedTuple):
    """A label that was accepted. Times in microseconds since 1970."""

    offset: int
    record_at: int
    known_at: int
    user: str
    subject: str | None
    """Id of the event it speaks of: "<topic>-<partition>-<offset>"."""
    ref_time: int
    value: float = 1.0
    task: str = "fraud"


class Scribe:
    """Writes segments over one connection, in whatever transaction it is in."""

    def __init__(
        self, connection: Connection, vocabulary: Dictionary, streams: Mapping[Place, KafkaPartitionId]
    ) -> None:
        self._connection = connection
        self._vocabulary = vocabulary
        offsets.register(connection, dict.fromkeys(streams.values(), 0))
        rows = {row.stream: row for row in offsets.streams(connection)}
        erased = suppression.load(connection).version
        self._claims = {
            place: Claim(
                stream_id=rows[stream].stream_id, stream=stream, epoch=0, next_offset=0, suppression_version=erased
            )
            for place, stream in streams.items()
        }
        self.next: dict[Place, int] = {place: rows[stream].next_offset for place, stream in streams.items()}

    def stream_id(self, place: Place) -> int:
        return self._claims[place].stream_id

    def write(
        self, place: Place, rows: Sequence[Given | Told], *, next_offset: int | None = None, known: bool = True
    ) -> None:
        """One segment, up to its last row or to `next_offset`.

        :param known: the events stand in their users' sequences too.
        """
        claim, first = self._claims[place], self.next[place]
        end = next_offset if next_offset is not None else rows[-1].offset + 1
        table = _labels(place, rows) if place[0] == topics.LABELS else _table(place, rows)
        counts = event_log.Counts(read=len(rows), accepted=len(rows))
        event_log.append(
            self._connection, [event_log.NewSegment(claim=claim, first=first, next=end, counts=counts, rows=table)]
        )
        if known and rows and place[0] in user_sequences.KIND_OF_TOPIC:
            kind = user_sequences.KIND_OF_TOPIC[place[0]]
            new = user_sequences.NewEvents(claim=claim, first_offset=first, topic_kind=kind, rows=table)
            user_sequences.append(self._connection, [new], self._vocabulary)
        offsets.advance(self._connection, [Advance(claim=claim, first=first, next=end)])
        self.next[place] = end

    def retire(self, place: Place) -> None:
        """Nothing more comes."""
        offsets.retire(
            self._connection, [r for r in offsets.streams(self._connection) if r.stream_id == self.stream_id(place)]
        )

    def ends(self) -> Cursor:
        """What is written, as a cursor."""
        return {self.stream_id(place): end for place, end in self.next.items()}


def streams_of(*places: Place) -> dict[Place, KafkaPartitionId]:
    """Streams of no particular cluster."""
    return {
        place: KafkaPartitionId(topic=place[0], partition=place[1], topic_id=f"id-{place[0]}", cluster_id="cluster")
        for place in places
    }


@contextmanager
def undone(connection: Connection) -> Iterator[None]:
    """A transaction of which nothing stays: each example of a property starts from an empty database."""
    transaction = connection.begin()
    try:
        yield
    finally:
        transaction.rollback()


class School:
    """A database with a log, topics whose streams it holds, and a folder of snapshots."""

    def __init__(self, database: str, config: KafkaConfig, folder: Path, *, labels: bool) -> None:
        """
        :param labels: the streams of labels are there too.
        """
        self.database = database
        self.config = config
        self.folder = folder
        self.health = Health("train")
        self.engine = open_engine(database, application_name="test-school", pooled=True)
        self._vocabulary = Dictionary(self.engine)
        self.streams = {
            (topic.topic, partition): KafkaPartitionId(
                topic=topic.topic, partition=partition, topic_id=topic.topic_id, cluster_id=topic.cluster_id
            )
            for topic in kafka.describe(config, [*topics.EVENTS, *((topics.LABELS,) if labels else ())]).values()
            for partition in range(topic.partitions)
        }

    def write(self, rows: int, *, users: int = 5, types: int = 4, place: Place = (topics.USER, 0)) -> None:
        """So many more events of a stream, a second apart, in one segment."""
        with self.engine.begin() as connection:
            scribe = Scribe(connection, self._vocabulary, self.streams)
            first = scribe.next[place]
            given = [
                Given(n, n * SECOND, n * SECOND, f"user-{n * 7 % users}", f"type-{n % types}")
                for n in range(first, first + rows)
            ]
            scribe.write(place, given)

    def process(self, *, stop: Stop | None = None, folder: Path | None = None, **given: Any) -> Train:
        """A `train` of this process: counts only (fast), small steps, no snapshot before the end."""
        values = {"learner": "markov", "step_rows": 8, "snapshot_every_s": 3600, "port": None, **given}
        return Train(
            postgres_url=self.database,
            kafka_config=self.config,
            snapshots=folder or self.folder,
            settings=TrainSettings(**values),
            health=self.health,
            stop=stop or Stop(),
        )

    def train(self, *, stop: Stop | None = None, folder: Path | None = None, **given: Any) -> TrainTotals:
        """Learns what the log holds now."""
        return self.process(stop=stop, folder=folder, **given).run(once=True)

    def train_and_die(self, **given: Any) -> TrainTotals:
        """Learns what the log holds now, and is gone before a snapshot can be written."""
        nowhere = self.folder.parent / "a-file-where-the-folder-should-be"
        nowhere.touch()
        with gone_when(lambda: "cannot write" in str(self.health.report())) as stop:
            return self.train(stop=stop, folder=nowhere, **given)

    @contextmanager
    def refused(self) -> Iterator[list[OperatorActionRequired]]:
        """A `train` that runs beside the block from its first step on; behind it, why it ended by itself."""
        stop, said = Stop(), list[OperatorActionRequired]()

        def learn() -> None:
            try:
                self.process(stop=stop, merge_wait_s=0.0, step_linger_s=0.0).run()
            except OperatorActionRequired as error:
                said.append(error)

        running = threading.Thread(target=learn)
        running.start()
        try:
            eventually(lambda: self.journalled() >= 1)
            yield said
            running.join(10)
        finally:
            stop.set()
            running.join(10)

    def query(self, statement: str, **values: object) -> list[Any]:
        """Rows of a statement, committed."""
        with self.engine.begin() as connection:
            found = connection.execute(text(statement), values)
            return list(found.all()) if found.returns_rows else []

    def forget(self) -> None:
        """The log stays; learners, journals, snapshots and their files are gone."""
        self.query("TRUNCATE learner, learner_action, journal, snapshot, prediction, label_resolution")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.health.set_ready("train", False, "starting")

    def undisturbed(self, **given: Any) -> str:
        """sha256 of what the log gives when nothing happens, as if nobody had looked."""
        self.forget()
        found = self.train(**given).sha256
        self.forget()
        assert found is not None
        return found

    def journalled(self) -> int:
        """Steps in the journal."""
        return int(self.query("SELECT count(*) FROM journal")[0][0])

    def live(self) -> list[str]:
        """Ids of the live snapshots, the oldest first."""
        return [row.id for row in self.query("SELECT id FROM snapshot WHERE status = 'live' ORDER BY step")]

    def file(self, snapshot_id: str) -> Path:
        """Where the tensors of a live snapshot are."""
        [row] = self.query("SELECT sha256 FROM snapshot WHERE id = :id", id=snapshot_id)
        return snapshot_files.path_of(self.folder, snapshot_id, row.sha256)

    def progress(self, *, at_least: int) -> list[Progress]:
        """What stands on `learning.progress`."""
        messages = read_topic(self.config, topics.PROGRESS, at_least=at_least)
        return [msgspec.json.decode(message.value() or b"", type=Progress) for message in messages]


@contextmanager
def schools(database: str, config: KafkaConfig, folder: Path, *, labels: bool = False) -> Iterator[School]:
    """A school; torch is as before when it closes."""
    threads = torch.get_num_threads()
    school = School(database, config, folder / "snapshots", labels=labels)
    yield school
    school.engine.dispose()
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@contextmanager
def gone_when(condition: Callable[[], bool]) -> Iterator[Stop]:
    """A stop that is asked for as soon as something is so."""
    stop, over = Stop(), threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            if condition():
                stop.set("the test saw what it waited for")
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield stop
    finally:
        over.set()
        watcher.join()


class StopAtLook(Stop):
    """Asks to stop when it is looked at for the n-th time: a way to stop at every place there is."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self._left = n

    def is_set(self) -> bool:
        self._left -= 1
        if self._left == 0:
            self.set("the test asks")
        return super().is_set()


def _labels(place: Place, rows: Sequence[Any]) -> pa.Table:
    columns: dict[str, list[Any]] = {
        "offset": [row.offset for row in rows],
        "record_at": [event_log.time_of(row.record_at) for row in rows],
        "at": [event_log.time_of(row.known_at) for row in rows],
        "event_id": [f"{place[0]}-{place[1]}-{row.offset}" for row in rows],
        "user": [row.user for row in rows],
        "task": [row.task for row in rows],
        "subject": [row.subject for row in rows],
        "ref_time": [event_log.time_of(row.ref_time) for row in rows],
        "value": [row.value for row in rows],
        "source": ["test"] * len(rows),
    }
    return pa.table(columns, schema=event_log.LABEL_ROWS)


def _table(place: Place, rows: Sequence[Any]) -> pa.Table:
    n = len(rows)
    columns: dict[str, list[Any]] = {
        "offset": [row.offset for row in rows],
        "record_at": [event_log.time_of(row.record_at) for row in rows],
        "at": [event_log.time_of(row.at) for row in rows],
        "event_id": [f"{place[0]}-{place[1]}-{row.offset}" for row in rows],
        "user": [row.user for row in rows],
        "type": [row.type for row in rows],
        "item": [row.item for row in rows],
        "amount": [row.amount for row in rows],
        "currency": [None if row.amount is None else "EUR" for row in rows],
        "other": [row.other for row in rows],
        "source": ["test"] * n,
    }
    return pa.table(columns, schema=event_log.EVENT_ROWS)
