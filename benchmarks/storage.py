"""What stored events cost: bytes, reads, growth, sealing, erasure. On an embedded, durable Postgres, without Kafka.

    python -m benchmarks.storage --events 1000000 --json build/bench/storage.json

Events go in as `ingest` writes them (log, sequences, offsets in one transaction a batch), users drawn by Zipf's
law; one user more has a history of 100,000. Then everything is sealed, read, and users are erased.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, text

from benchmarks.servers import ROOT, Absent, create_database, postgres
from contracts import topics
from storage import erasure, log, migrate, offsets, sealing, sequences
from storage.engine import open_engine
from storage.offsets import Advance, Claim, Cursor, Stream
from storage.sequences import HistoryAsk, NewEvents
from storage.vocabulary import Vocabulary

BATCH = 50_000
START_US = 1_700_000_000_000_000
SECOND_US = 1_000_000
LONG = "long-history"
LONG_EVENTS = 100_000
FOREVER = 2**62
SEAL_ROWS = 16

_SIZES = text("""
    SELECT pg_total_relation_size('user_segment') AS sequences, pg_total_relation_size('log_segment') AS log,
           (SELECT sum(pg_column_size(event_id))::bigint FROM user_segment) AS event_ids,
           (SELECT count(*) FROM user_segment) AS rows
""")


def main() -> int:
    """0 = measured."""
    given = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    given.add_argument("--events", type=int, default=1_000_000)
    given.add_argument("--users", type=int, default=20_000)
    given.add_argument("--erase", type=int, default=100, help="users")
    given.add_argument("--ids", choices=["short", "uuid"], default="uuid", help="what event ids look like")
    given.add_argument("--json", type=Path, default=ROOT / "build" / "bench" / "storage.json")
    asked = given.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="driftline-bench-") as folder, postgres(Path(folder)) as admin:
            found = measure(create_database(admin, "storage"), asked)
    except Absent as error:
        print(error, file=sys.stderr)
        return 2
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(found, indent=2))
    print(json.dumps(found, indent=2))
    return 0


def measure(url: str, asked: argparse.Namespace) -> dict[str, Any]:
    """All of it, one after the other."""
    migrate.upgrade(url)
    engine = open_engine(url, application_name="bench", pooled=True)
    world = World(engine, users=asked.users, short_ids=asked.ids == "short")
    found: dict[str, Any] = {"events": asked.events, "users": asked.users, "event_ids": asked.ids}
    found["growth"] = grow(world, engine, asked.events)
    world.write(np.full(LONG_EVENTS, asked.users))
    found["seal_last"] = sealed(engine, rows=2)
    vacuum(engine)
    found["sealed"] = sizes(engine, asked.events + LONG_EVENTS)
    found["reads_ms"] = reads(engine, world)
    found["erasure"] = erased(engine, asked.users, asked.erase)
    engine.dispose()
    return found


class World:
    """Writes batches of events as `ingest` would."""

    def __init__(self, engine: Engine, *, users: int, short_ids: bool) -> None:
        self._engine = engine
        self._vocabulary = Vocabulary(engine)
        self._users = [f"user-{n:07d}" for n in range(users)] + [LONG]
        weights = 1 / np.arange(1, users + 1)
        self.weights: NDArray[np.float64] = weights / weights.sum()
        self.rng = np.random.default_rng(7)
        self._short_ids = short_ids
        stream = Stream(topic=topics.USER, partition=0, topic_id="bench", cluster_id="bench")
        with engine.begin() as connection:
            offsets.register(connection, {stream: 0})
            [self._claim] = offsets.claim(connection, offsets.streams(connection))
        self.next = 0

    @property
    def cursor(self) -> Cursor:
        """As of everything written."""
        return {self._claim.stream_id: self.next}

    def draw(self, n: int) -> NDArray[np.int64]:
        """Users of the next events, by Zipf's law."""
        return self.rng.choice(len(self.weights), n, p=self.weights)

    def write(self, users: NDArray[np.int64]) -> None:
        """Events of these users, a second apart, batch by batch."""
        for at in range(0, len(users), BATCH):
            rows = self._rows(users[at : at + BATCH])
            claim, first, last = self._claim, self.next, self.next + rows.num_rows
            with self._engine.begin() as connection:
                events = NewEvents(claim=claim, first_offset=first, topic_kind=sequences.USER, rows=rows)
                sequences.append(connection, [events], self._vocabulary)
                log.append(connection, [_segment(claim, first, last, rows)])
                offsets.advance(connection, [Advance(claim=claim, first=first, next=last)])
            self.next = last

    def _rows(self, users: NDArray[np.int64]) -> pa.Table:
        n, nothing = len(users), pa.nulls(len(users), pa.string())
        at = np.arange(self.next, self.next + n)
        times = pa.array(START_US + at * SECOND_US).cast(pa.timestamp("us", tz="UTC"))
        ids = [f"e{i}" for i in at] if self._short_ids else [str(uuid.UUID(bytes=self.rng.bytes(16))) for _ in at]
        columns = {
            "offset": pa.array(at), "record_at": times, "at": times, "event_id": pa.array(ids),
            "user": pa.array([self._users[user] for user in users]),
            "type": pa.array([f"type-{kind}" for kind in self.rng.integers(0, 20, n)]),
            "item": pa.array([f"item-{item}" for item in self.rng.zipf(1.3, n) % 50_000]),
            "amount": pa.nulls(n, pa.int64()), "currency": nothing, "other": nothing,
            "source": pa.array(["bench"] * n),
        }  # fmt: skip
        return pa.table(columns, schema=log.EVENT_ROWS)


def _segment(claim: Claim, first: int, last: int, rows: pa.Table) -> log.NewSegment:
    counts = log.Counts(read=rows.num_rows, accepted=rows.num_rows)
    return log.NewSegment(claim=claim, first=first, next=last, counts=counts, rows=rows)


def grow(world: World, engine: Engine, events: int) -> list[dict[str, Any]]:
    """Ingest in ten parts, sealed in between as `maintain` would: the rate of each tells whether size matters."""
    parts, sealed_s = [], 0.0
    for part in range(10):
        users = world.draw(events // 10)
        started = time.perf_counter()
        world.write(users)
        seconds = time.perf_counter() - started
        sealing_done = sealed(engine, rows=SEAL_ROWS)
        sealed_s += sealing_done["seconds"]
        parts.append({"events": world.next, "events_per_s": round(len(users) / seconds), "seal": sealing_done})
        print(f"part {part + 1}/10: {parts[-1]}", file=sys.stderr, flush=True)
    return parts


def sealed(engine: Engine, *, rows: int) -> dict[str, Any]:
    """Seals what is due."""
    started = time.perf_counter()
    done = sealing.Sealed()
    with engine.begin() as connection:
        due = sealing.due(connection, rows=rows, limit=10**6)
    for users in sealing.batches(due, rows=2_000):
        with engine.begin() as connection:
            done += sealing.seal(connection, users)
    return {"seconds": round(time.perf_counter() - started, 2), "users": len(due), **asdict(done)}


def vacuum(engine: Engine) -> None:
    """So that sizes are of what is there; rewritten rows would be reused, not returned."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM FULL user_segment"))
        connection.execute(text("VACUUM ANALYZE"))


def sizes(engine: Engine, events: int) -> dict[str, Any]:
    """Bytes an event."""
    with engine.begin() as connection:
        row = connection.execute(_SIZES).one()
    return {
        "rows": row.rows,
        "bytes_per_event": round(row.sequences / events, 1),
        "without_event_ids": round((row.sequences - row.event_ids) / events, 1),
        "log_bytes_per_event": round(row.log / events, 1),
    }


def reads(engine: Engine, world: World) -> dict[str, dict[str, float]]:
    """Milliseconds until a history is a list of events in Python, through the function that all readers call."""
    asked = [world.draw(1)[0] for _ in range(300)]
    users = [f"user-{user:07d}" for user in asked]
    with engine.connect() as connection:
        return {
            "newest 1,000, users by activity": spread(_timed(connection, world.cursor, users, FOREVER, 1000)),
            "newest 1,000 of 100,000": spread(_timed(connection, world.cursor, [LONG] * 50, FOREVER, 1000)),
            "1,000 in the middle of 100,000": spread(
                _timed(connection, world.cursor, [LONG] * 50, _middle(world), 1000)
            ),
            "all of 100,000": spread(_timed(connection, world.cursor, [LONG] * 5, FOREVER, LONG_EVENTS)),
            "all of 100,000, arrays as stored": spread(_raw(connection, 10)),
        }


def _middle(world: World) -> int:
    return START_US + (world.next - LONG_EVENTS // 2) * SECOND_US


def _timed(connection: Connection, cursor: Cursor, users: Sequence[str], before: int, last_n: int) -> Iterator[float]:
    for user in users:
        started = time.perf_counter()
        sequences.histories(connection, [HistoryAsk(user=user, before=before, last_n=last_n)], cursor)
        yield (time.perf_counter() - started) * 1000


def _raw(connection: Connection, times: int) -> Iterator[float]:
    """Postgres and the wire alone."""
    statement = text("""
        SELECT s.at, s.kind, s.type, s.item, s.amount, s.other, s.stream, s.position
        FROM user_segment s JOIN vocabulary u ON u.id = s.user_id WHERE u.space = 1 AND u.value = :user
    """)
    raw = sequences.driver(connection)
    for _ in range(times):
        started = time.perf_counter()
        with raw.cursor(binary=True) as cursor:
            cursor.execute(str(statement).replace(":user", "%s").encode(), [LONG])
            result = cursor.pgresult
            assert result is not None
            for n in range(result.ntuples):
                result.get_value(n, 0)
        yield (time.perf_counter() - started) * 1000


def spread(values: Iterator[float]) -> dict[str, float]:
    """Median and p99."""
    found = np.array(list(values))
    return {"p50": round(float(np.median(found)), 2), "p99": round(float(np.quantile(found, 0.99)), 2)}


def erased(engine: Engine, users: int, n: int) -> dict[str, Any]:
    """Erases the users of every n-th rank, so that hot and rare ones are among them."""
    chosen = [f"user-{rank:07d}" for rank in range(0, users, max(1, users // n))][:n]
    steps: dict[str, float] = {}
    started = time.perf_counter()

    def done(step: str) -> None:
        steps[step] = round(time.perf_counter() - started, 2)

    result = erasure.erase(engine, chosen, done=done)
    return {"users": len(chosen), "seconds": steps.get("strings"), "seconds_until": steps, **asdict(result)}


if __name__ == "__main__":
    sys.exit(main())
