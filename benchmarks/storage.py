"""What stored events cost: bytes, reads, growth, compaction, erasure. On an embedded, durable Postgres, without Kafka.

    python -m benchmarks.storage --events 1000000 --json build/bench/storage.json

Events go in as `ingest` writes them (log, sequences, offsets in one transaction a batch), users drawn by Zipf's
law or evenly; one user more has a history of 100,000. Then everything is compacted, read, and users are erased.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, text

from benchmarks.servers import ROOT, Absent, create_database, postgres
from contexts.batch_builder import context_of
from contracts import topics
from learners.contract.batch import Context
from storage import migrate
from storage.dictionary import Dictionary
from storage.engine import driver, open_engine
from storage.log import event_log, offsets
from storage.log.offsets import Advance, Claim, Cursor, KafkaPartitionId
from storage.privacy import erasure
from storage.sequences import compaction, history_reader, user_sequences
from storage.sequences.user_sequences import HistoryAsk, NewEvents

BATCH = 50_000
START_US = 1_700_000_000_000_000
SECOND_US = 1_000_000
LONG = "long-history"
LONG_EVENTS = 100_000
FOREVER = 2**62
COMPACT_ROWS = 16

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
    given.add_argument("--lengths", choices=["zipf", "even"], default="zipf", help="how many events users have")
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
    world = World(engine, users=asked.users, short_ids=asked.ids == "short", even=asked.lengths == "even")
    found: dict[str, Any] = {name: getattr(asked, name) for name in ("events", "users", "lengths", "ids")}
    found["growth"] = grow(world, engine, asked.events)
    world.write([LONG] * LONG_EVENTS)
    found["compact_last"] = compacted(engine, rows=2)
    vacuum(engine)
    found["compacted"] = sizes(engine, asked.events + LONG_EVENTS)
    found["reads_ms"] = reads(engine, world.draw(300), world.cursor, middle=_time(world.next - LONG_EVENTS // 2))
    found["erasure"] = erased(engine, asked.users, asked.erase)
    engine.dispose()
    return found


class World:
    """Writes batches of events as `ingest` would."""

    def __init__(self, engine: Engine, *, users: int, short_ids: bool, even: bool) -> None:
        self._engine = engine
        self._vocabulary = Dictionary(engine)
        weights = np.ones(users) if even else 1 / np.arange(1, users + 1)
        self._weights: NDArray[np.float64] = weights / weights.sum()
        self._rng = np.random.default_rng(7)
        self._short_ids = short_ids
        stream = KafkaPartitionId(topic=topics.USER, partition=0, topic_id="bench", cluster_id="bench")
        with engine.begin() as connection:
            offsets.register(connection, {stream: 0})
            own = [row for row in offsets.streams(connection) if row.stream == stream]
            [self._claim] = offsets.claim(connection, own)
        self.next = 0

    @property
    def cursor(self) -> Cursor:
        """As of everything written."""
        return {self._claim.stream_id: self.next}

    def draw(self, n: int) -> list[str]:
        """Users of events, by how many they have."""
        return [f"user-{user:07d}" for user in self._rng.choice(len(self._weights), n, p=self._weights)]

    def write(self, users: Sequence[str]) -> float:
        """Events of these users, a second apart, batch by batch; seconds it took, without making them up."""
        seconds = 0.0
        for at in range(0, len(users), BATCH):
            batch = users[at : at + BATCH]
            items = self._rng.zipf(1.3, len(batch)) % 50_000
            times = _time(self.next + np.arange(len(batch)))
            rows = event_rows(self._rng, batch, items, times, first=self.next, short_ids=self._short_ids)
            started = time.perf_counter()
            claim, first, last = self._claim, self.next, self.next + rows.num_rows
            with self._engine.begin() as connection:
                events = NewEvents(claim=claim, first_offset=first, topic_kind=user_sequences.USER, rows=rows)
                user_sequences.append(connection, [events], self._vocabulary)
                event_log.append(connection, [_segment(claim, first, last, rows)])
                offsets.advance(connection, [Advance(claim=claim, first=first, next=last)])
            self.next = last
            seconds += time.perf_counter() - started
        return seconds


def event_rows(
    rng: np.random.Generator, users: Sequence[str], items: NDArray[Any], times_us: NDArray[Any], *, first: int,
    short_ids: bool = False,
) -> pa.Table:  # fmt: skip
    """Rows of the log: events of these users about these items, with ids that no other has.

    :param first: offset of the first.
    """
    n, nothing = len(users), pa.nulls(len(users), pa.string())
    at = np.arange(first, first + n)
    times = pa.array(times_us).cast(pa.timestamp("us", tz="UTC"))
    columns = {
        "offset": pa.array(at), "record_at": times, "at": times,
        "event_id": pa.array([f"e{i}" for i in at]) if short_ids else _uuids(rng, n),
        "user": pa.array(users),
        "type": pa.array([f"type-{kind}" for kind in rng.integers(0, 20, n).tolist()]),
        "item": pa.array([f"item-{item}" for item in items.tolist()]),
        "amount": pa.nulls(n, pa.int64()), "currency": nothing, "other": nothing,
        "source": pa.array(["bench"] * n),
    }  # fmt: skip
    return pa.table(columns, schema=event_log.EVENT_ROWS)


def _uuids(rng: np.random.Generator, n: int) -> pa.Array:
    digits = np.frombuffer(rng.bytes(16 * n).hex().encode(), "S1").reshape(n, 32)
    written = np.insert(digits, [8, 12, 16, 20], b"-", axis=1)  # [n, 36]
    return pa.array(np.ascontiguousarray(written).view("S36").ravel().astype("U36"))


def _time(number: Any) -> Any:
    """Event time of the events of these numbers, microseconds."""
    return START_US + number * SECOND_US


def _segment(claim: Claim, first: int, last: int, rows: pa.Table) -> event_log.NewSegment:
    counts = event_log.Counts(read=rows.num_rows, accepted=rows.num_rows)
    return event_log.NewSegment(claim=claim, first=first, next=last, counts=counts, rows=rows)


def grow(world: World, engine: Engine, events: int) -> list[dict[str, Any]]:
    """Writing in ten parts, compacted in between as `maintain` would: the rate of each tells whether size matters."""
    parts, compacted_s = [], 0.0
    for part in range(10):
        users = world.draw(events // 10)
        seconds = world.write(users)
        compaction_done = compacted(engine, rows=COMPACT_ROWS)
        compacted_s += compaction_done["seconds"]
        parts.append({"events": world.next, "events_per_s": round(len(users) / seconds), "compact": compaction_done})
        print(f"part {part + 1}/10: {parts[-1]}", file=sys.stderr, flush=True)
    return parts


def compacted(engine: Engine, *, rows: int) -> dict[str, Any]:
    """Compacts what is due."""
    started = time.perf_counter()
    done = compaction.Compacted()
    with engine.begin() as connection:
        due = compaction.due(connection, rows=rows, limit=10**6)
    for users in compaction.batches(due, rows=2_000):
        with engine.begin() as connection:
            done += compaction.compact(connection, users)
    return {"seconds": round(time.perf_counter() - started, 2), "users": len(due), **asdict(done)}


def vacuum(engine: Engine) -> None:
    """So that sizes are of what is there, since rewritten rows would be reused, not returned; and that no checkpoint is
    still writing all this out while reads are timed."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM FULL user_segment"))
        connection.execute(text("VACUUM ANALYZE"))
        connection.execute(text("CHECKPOINT"))


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


def reads(engine: Engine, users: Sequence[str], cursor: Cursor, *, middle: int) -> dict[str, dict[str, float]]:
    """Milliseconds until a history is there, strings and all, over a connection that has read before.

    :param users: whose newest 1,000 are read.
    :param middle: event time in the midst of the long history, microseconds.
    """
    ask = HistoryAsk(user=LONG, before=FOREVER, last_n=1000)
    gc.freeze()  # as `score` does before it serves: else each collection walks all that was imported
    with engine.connect() as connection:
        read = partial(_timed, history_reader.read, connection, cursor)
        return {
            "newest 1,000, first time": spread(read([replace(ask, user=user) for user in users])),
            "newest 1,000, again": spread(read([replace(ask, user=user) for user in users])),
            "newest 1,000 of 100,000": spread(read([ask] * 300)),
            "1,000 in the middle of 100,000": spread(read([replace(ask, before=middle)] * 300)),
            "all of 100,000": spread(read([replace(ask, last_n=LONG_EVENTS)] * 200)),
            "all of 100,000 as a learner's batch": spread(
                _timed(_as_context, connection, cursor, [replace(ask, last_n=LONG_EVENTS)] * 100)
            ),
            "all of 100,000 as a list of objects": spread(
                _timed(user_sequences.histories, connection, cursor, [replace(ask, last_n=LONG_EVENTS)] * 10)
            ),
            "all of 100,000, arrays as stored": spread(_raw(connection, 10)),
        }


def _as_context(connection: Connection, asks: Sequence[HistoryAsk], cursor: Cursor) -> Context:
    return context_of(history_reader.read(connection, asks, cursor))


def _timed(
    read: Callable[[Connection, Sequence[HistoryAsk], Cursor], object],
    connection: Connection,
    cursor: Cursor,
    asks: Sequence[HistoryAsk],
) -> Iterator[float]:
    for ask in asks:
        started = time.perf_counter()
        read(connection, [ask], cursor)
        yield (time.perf_counter() - started) * 1000


def _raw(connection: Connection, times: int) -> Iterator[float]:
    """Postgres and the wire alone."""
    statement = text("""
        SELECT s.at, s.kind, s.type, s.item, s.amount, s.other, s.stream, s.position
        FROM user_segment s JOIN vocabulary u ON u.id = s.user_id WHERE u.space = 1 AND u.value = :user
    """)
    raw = driver(connection)
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
