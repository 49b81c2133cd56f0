"""A database with hand-made sequences, snapshots of a small learner, and real servers over both."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from learners.contract.made_up.streams import random_batch
from learners.models.prompttpp.learner import PromptTPP
from learners.registry import build_group
from runtime.admin_app import Health
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Stop
from runtime.settings import ScoreSettings
from scoring.serve.process import Score
from storage.dictionary import Dictionary
from storage.engine import open_engine
from storage.learning import journal, snapshot_files, snapshot_registry
from storage.log import event_log, offsets
from storage.log.offsets import Advance, KafkaPartitionId
from storage.sequences import user_sequences

START = datetime(2026, 1, 1, tzinfo=UTC)
OPTIONS: dict[str, Any] = {
    "hidden": 8,
    "time_dim": 4,
    "layers": 1,
    "pool": 4,
    "prompt_length": 2,
    "retrieved": 2,
    "last_n": 8,
}
MANIFEST = {"schema_version": 1, "learner": "prompttpp", "learner_version": PromptTPP.version, "branch": 1}
States = list[dict[str, NDArray[Any]]]
Event = tuple[str, float, str]
"""(user, hours after START, type)."""


@pytest.fixture(scope="session")
def states() -> States:
    """States of one arm group after 1, 2, 3 steps."""
    arm_group = build_group("prompttpp", 0, **OPTIONS)
    found = []
    for step in range(3):
        arm_group.step(random_batch(step, 16, 6))
        found.append({name: tensor.numpy().copy() for name, tensor in arm_group.state().items()})
    return found


class World:
    """What ingest and train would have written."""

    def __init__(self, url: str, folder: Path, states: States) -> None:
        self.url = url
        self.folder = folder
        self.states = states
        self.engine = open_engine(url, application_name="test")
        self._vocabulary = Dictionary(self.engine)
        self._stream = KafkaPartitionId(topic="events.user", partition=0, topic_id="topic-1", cluster_id="cluster")

    def add(self, *events: Event) -> None:
        """One committed batch of user events."""
        with self.engine.begin() as connection:
            offsets.register(connection, {self._stream: 0})
            row = next(row for row in offsets.streams(connection) if row.stream == self._stream)
            (claim,) = offsets.claim(connection, [row])
            first = claim.next_offset
            rows = _rows(events, first)
            segment = event_log.NewSegment(
                claim=claim,
                first=first,
                next=first + len(events),
                counts=event_log.Counts(read=len(events), accepted=len(events)),
                rows=rows,
            )
            event_log.append(connection, [segment])
            new = user_sequences.NewEvents(claim=claim, first_offset=first, topic_kind=user_sequences.USER, rows=rows)
            user_sequences.append(connection, [new], self._vocabulary)
            offsets.advance(connection, [Advance(claim=claim, first=first, next=first + len(events))])

    def retire_and_go_on(self, topic_id: str) -> None:
        """The topic is recreated: the old stream is retired, what comes next comes on another."""
        with self.engine.begin() as connection:
            offsets.retire(connection, offsets.streams(connection))
        self._stream = KafkaPartitionId(topic="events.user", partition=0, topic_id=topic_id, cluster_id="cluster")

    def publish(self, step: int, *, spoil: Callable[[Path], object] = lambda file: None, **changed: Any) -> str:
        """Makes the state after `step` steps live; returns the snapshot's id.

        :param spoil: called with the file before the snapshot is live.
        :param changed: other entries of the manifest.
        """
        tensors = self.states[step - 1]
        config = {"seed": 0, "options": OPTIONS}
        snapshot = snapshot_of(step)
        sha256 = snapshot_files.digest(tensors)
        manifest = {**MANIFEST, "id": snapshot.id, "step": step, "config": config, "sha256": sha256, **changed}
        with self.engine.begin() as connection:
            lease, _ = journal.acquire_lease(connection, learner="prompttpp", version=PromptTPP.version, config=config)
            snapshot_registry.begin(connection, lease, snapshot)
            snapshot_files.write(self.folder, snapshot.id, tensors, manifest)
            spoil(snapshot_files.path_of(self.folder, snapshot.id, sha256))
            snapshot_registry.make_live(connection, lease, snapshot.id, sha256=sha256, manifest=manifest)
        return snapshot.id

    def file(self, step: int) -> Path:
        """Where the tensors after `step` steps are."""
        return snapshot_files.path_of(self.folder, snapshot_of(step).id, snapshot_files.digest(self.states[step - 1]))


def snapshot_of(step: int) -> snapshot_registry.Snapshot:
    """As `train` registers it."""
    return snapshot_registry.Snapshot(
        id=snapshot_registry.snapshot_id("prompttpp", 1, step),
        learner="prompttpp",
        branch=1,
        step=step,
        parent=None,
        status="writing",
        pinned=False,
        irreproducible=False,
        cursor={},
        front=START,
        sha256=None,
        manifest=None,
        created_at=START,
        live_at=None,
    )


class Running:
    """A served world."""

    def __init__(self, score: Score, stop: Stop) -> None:
        self.port = score.port
        self.stop = stop
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{score.port}", timeout=20)

    def ask(self, user: str, **request: Any) -> dict[str, Any]:
        """An answer; fails on any other status than 200."""
        reply = self.post(user, **request)
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    def post(self, user: str, **request: Any) -> httpx.Response:
        """Any reply."""
        return self.client.post("/v1/score", json={"user_id": user, **request})

    def model(self) -> str | None:
        """Id of the snapshot that answers."""
        models = self.client.get("/v1/models").json()
        return models[0]["snapshot_id"] if models else None

    def ready(self) -> bool:
        return self.client.get("/readyz").status_code == 200

    @staticmethod
    def until(condition: Callable[[], Any], *, seconds: float = 15.0) -> None:
        """Waits for something that another thread brings about."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"did not happen within {seconds} s"
            time.sleep(0.01)


Serve = Callable[..., Running]


@pytest.fixture
def world(database: str, tmp_path: Path, states: States) -> World:
    """An empty one."""
    return World(database, tmp_path / "snapshots", states)


@pytest.fixture
def serve(world: World) -> Iterator[Serve]:
    """Call it with settings: a running server, awaited until ready unless `ready=False`. `kafka`: answers there too."""
    with ExitStack() as servers:
        yield lambda *, ready=True, kafka=None, **settings: servers.enter_context(
            served(world.url, world.folder, ready, settings, kafka)
        )


@contextmanager
def served(
    url: str, folder: Path, ready: bool, settings: dict[str, Any], kafka: KafkaConfig | None = None
) -> Iterator[Running]:
    """A `score` over this database and these snapshots, while the block runs."""
    stop, failures = Stop(), list[BaseException]()
    score = Score(
        postgres_url=url,
        snapshots=folder,
        settings=ScoreSettings(port=0, poll_s=0.05, **settings),
        health=Health("score"),
        stop=stop,
        kafka=kafka,
    )

    def run() -> None:
        try:
            score.run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    running = Running(score, stop)
    try:
        if ready:
            running.until(running.ready)
        yield running
    finally:
        stop.set()
        running.client.close()
        thread.join(15)
    assert not thread.is_alive()
    assert not failures


def at(hours: float) -> datetime:
    """A time `hours` after START."""
    return START + timedelta(hours=hours)


def _rows(events: tuple[Event, ...], first: int) -> pa.Table:
    n = len(events)
    columns = {
        "offset": np.arange(first, first + n),
        "record_at": [at(hours) for _, hours, _ in events],
        "at": [at(hours) for _, hours, _ in events],
        "event_id": [f"event-{first + i}" for i in range(n)],
        "user": [user for user, _, _ in events],
        "type": [name for _, _, name in events],
        "item": [None] * n,
        "amount": [None] * n,
        "currency": [None] * n,
        "other": [None] * n,
        "source": ["test"] * n,
    }
    return pa.table(columns, schema=event_log.EVENT_ROWS)


@pytest.fixture
def people(world: World) -> list[str]:
    """70 users with 1 to 12 events each, and one live snapshot."""
    rng = np.random.default_rng(1)
    users = [f"user-{n}" for n in range(70)]
    events = [
        (user, float(hours), f"type-{rng.integers(5)}")
        for n, user in enumerate(users)
        for hours in np.cumsum(rng.exponential(1.0, 1 + n % 12))
    ]
    world.add(*events)
    world.publish(1)
    return users
