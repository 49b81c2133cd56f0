"""Sequences, snapshots and signature tables as `ingest` and `train` would have left them, for `benchmarks.scoring`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from sqlalchemy import text

from learners.arms.group import LEARNER
from learners.contract.made_up.streams import random_batch
from learners.contract.state_codec import below, prefixed
from learners.contract.string_index import rows_for
from learners.models.sdim.embedding_version import EmbeddingVersion, next_version, serving
from learners.models.sdim.learner import SDIM
from learners.models.sdim.spec import SDIMConfig
from learners.registry import build, build_group
from storage.dictionary import Dictionary, Space
from storage.engine import open_engine
from storage.learning import journal, signature_rows, snapshot_files, snapshot_registry
from storage.learning.signature_rows import StoredSignature, TableVersion
from storage.log import event_log, offsets
from storage.log.offsets import Advance, KafkaPartitionId
from storage.sequences import compaction, user_sequences

STATES: Final = 4
"""States that snapshots take in turn, each with weights (and item vectors) of its own."""
CATALOGUE: Final = 20_000
State = dict[str, NDArray[Any]]

_STREAM = KafkaPartitionId(topic="events.user", partition=0, topic_id="benchmark", cluster_id="benchmark")
_NOW = event_log.time_of(0)


class Row(NamedTuple):
    """An event to come. `at` in microseconds since 1970."""

    user: str
    at: int
    type: str
    item: str | None = None


class World:
    """A database and a folder of snapshots of one learner."""

    def __init__(
        self, url: str, folder: Path, *, learner: str, states: Sequence[State], options: Mapping[str, Any]
    ) -> None:
        self.url, self.folder, self.learner, self.states = url, folder, learner, states
        self.engine = open_engine(url, application_name="benchmark")
        self._options = dict(options)
        self._version = build(learner).version
        self._vocabulary = Dictionary(self.engine)
        self.step = 0
        """Of the newest snapshot."""
        self.snapshot_bytes = sum(array.nbytes for array in states[0].values())

    @property
    def state(self) -> State:
        """Of the newest snapshot."""
        return self.states[self.step % len(self.states)]

    def write(self, rows: Sequence[Row]) -> int:
        """One committed batch; the next offset behind it."""
        with self.engine.begin() as connection:
            offsets.register(connection, {_STREAM: 0})
            (claim,) = offsets.claim(connection, offsets.streams(connection))
            first, after = claim.next_offset, claim.next_offset + len(rows)
            table = _table(rows, first)
            counts = event_log.Counts(read=len(rows), accepted=len(rows))
            segment = event_log.NewSegment(claim=claim, first=first, next=after, counts=counts, rows=table)
            event_log.append(connection, [segment])
            new = user_sequences.NewEvents(claim=claim, first_offset=first, topic_kind=user_sequences.USER, rows=table)
            user_sequences.append(connection, [new], self._vocabulary)
            offsets.advance(connection, [Advance(claim=claim, first=first, next=after)])
        return after

    def compact(self, users: Sequence[str]) -> None:
        """As `maintain` does."""
        with self.engine.begin() as connection:
            compaction.compact(connection, list(self._vocabulary.known(Space.USER, list(users)).values()))

    def settle(self) -> None:
        """As autovacuum would within a minute."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))

    def publish(self) -> None:
        """Makes the next snapshot live."""
        self.step += 1
        sha256 = snapshot_files.digest(self.state)
        config = {"seed": 0, "options": self._options}
        snapshot = snapshot_registry.Snapshot(
            id=snapshot_registry.snapshot_id(self.learner, 1, self.step),
            learner=self.learner,
            branch=1,
            step=self.step,
            parent=None,
            status="writing",
            pinned=False,
            irreproducible=False,
            cursor={},
            front=None,
            sha256=None,
            manifest=None,
            created_at=_NOW,
            live_at=None,
        )
        manifest = {
            "schema_version": 1,
            "learner": self.learner,
            "learner_version": self._version,
            "config": config,
            "sha256": sha256,
        }
        with self.engine.begin() as connection:
            lease, _ = journal.acquire_lease(connection, learner=self.learner, version=self._version, config=config)
            snapshot_registry.begin(connection, lease, snapshot)
            snapshot_files.write(self.folder, snapshot.id, self.state, manifest)
            snapshot_registry.make_live(connection, lease, snapshot.id, sha256=sha256, manifest=manifest)

    def published(self) -> EmbeddingVersion:
        """What the newest snapshot of a ranking learner serves."""
        tensors = {name: torch.from_numpy(tensor) for name, tensor in self.state.items()}
        return serving(below(f"{LEARNER}/", tensors), SDIMConfig(**self._options))

    def write_tables(
        self, published: EmbeddingVersion, histories: Mapping[str, Sequence[Row]], next_offset: int
    ) -> None:
        """Rows of the serving cache that hold these events, all of a user's below the offset."""
        version = TableVersion(learner=self.learner, embedding=published.embedding, hash_id=published.hash_id)
        last_n, reserve = published.config.last_n, published.config.reserve
        with self.engine.begin() as connection:
            (stream,) = offsets.streams(connection)
            found = []
            for user, rows in histories.items():
                kept = rows[-last_n:]
                table = published.table([str(row.item) for row in kept])
                found.append(
                    StoredSignature(
                        user=user,
                        cursor={stream.stream_id: next_offset},
                        events=len(kept),
                        last_at=kept[-1].at,
                        oldest=tuple((row.at, str(row.item)) for row in kept[:reserve]),
                        sums=table.sums,
                        counts=table.counts,
                    )
                )
            signature_rows.put(connection, version, found)


def next_event_states() -> list[State]:
    """Of PromptTPP with its references."""
    arm_group, found = build_group("prompttpp"), []
    for seed in range(STATES):
        arm_group.step(random_batch(seed, 32, 24))
        found.append(_arrays(arm_group.state()))
    return found


def ranking_states(options: Mapping[str, Any]) -> list[State]:
    """Of SDIM, as large as after a catalogue of CATALOGUE items was learnt, each with item vectors of its own.

    Drawn, not learnt: what an answer costs does not depend on what the vectors are.
    """
    learner, found = SDIM(SDIMConfig(**options)), list[State]()
    names = [f"item {number}" for number in range(CATALOGUE)]
    learnt = {f"{LEARNER}/table": torch.zeros(rows_for(CATALOGUE + 1), learner.config.width)}
    published = learner.published
    for seed in range(STATES):
        draw = torch.Generator().manual_seed(seed)
        vectors = torch.randn(CATALOGUE + 1, learner.config.width, generator=draw) * 0.1
        published = next_version(published, names, vectors, torch.zeros(CATALOGUE + 1), published.weights)
        state = {**learner.serving_state(), **prefixed("published.", published.state())}
        found.append(_arrays({**prefixed(f"{LEARNER}/", state), **learnt}))
    return found


def shopping(seed: int, users: Iterable[str], events: int) -> dict[str, list[Row]]:
    """So many purchases of each user, a minute apart, of items of the catalogue."""
    rng = np.random.default_rng(seed)
    return {
        user: [
            Row(user, (n + 1) * 60_000_000, "purchase", f"item {item}")
            for n, item in enumerate(rng.integers(0, CATALOGUE, events).tolist())
        ]
        for user in users
    }


def _arrays(state: Mapping[str, torch.Tensor]) -> State:
    return {name: tensor.numpy().copy() for name, tensor in state.items()}


def _table(rows: Sequence[Row], first: int) -> pa.Table:
    n = len(rows)
    times = pa.array([row.at for row in rows], pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    none = pa.nulls(n, pa.string())
    columns = [
        pa.array(range(first, first + n), pa.int64()),
        times,
        times,
        pa.array([str(first + i) for i in range(n)]),
        pa.array([row.user for row in rows]),
        pa.array([row.type for row in rows]),
        pa.array([row.item for row in rows], pa.string()),
        pa.nulls(n, pa.int64()),
        none,
        none,
        pa.array(["benchmark"] * n),
    ]
    return pa.table(columns, schema=event_log.EVENT_ROWS)
