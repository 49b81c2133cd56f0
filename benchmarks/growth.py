"""Does ingest slow down as the database grows? The first million and the twentieth, real Kafka, real Postgres.

    python -m benchmarks.growth --parts 20 --events 1000000 --json build/bench/growth.json

The first and the last part are put on the topic and taken in by an `ingest` process. Those between are written as
`ingest` writes them (log, sequences and offset of a stream, 250,000 events a transaction) without Kafka. After each
part everything is compacted, as `maintain` would. A rate is what was committed after the first batch over the time
from the first commit to the last: start of the process, group join and duplicate filter lie before that. Users are
drawn uniformly, the hard case.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import text

from benchmarks import servers, storage
from benchmarks.contender import CONTENDERS, measure
from benchmarks.contenders.task import Task
from benchmarks.workload import FIRST, STEP, TOPIC, TYPES, Message, send
from contracts import topics
from contracts.codec import encode
from contracts.records import UserEvent
from runtime.kafka import KafkaConfig, create_topics
from storage.dictionary import Dictionary
from storage.engine import open_engine
from storage.log import event_log, offsets
from storage.log.offsets import Advance, KafkaPartitionId
from storage.sequences import user_sequences
from storage.sequences.user_sequences import NewEvents

ITEMS = 50_000
START_US, STEP_US = int(FIRST.timestamp() * 1_000_000), int(STEP.total_seconds() * 1_000_000)
BATCH = 250_000
"""Events of a transaction of `fill`: larger than those of `ingest`, so that there is less to compact."""
COMPACT_ROWS = 2
LIMIT_S = 3600.0

_COMMITS = text("""
    SELECT max(received_at) AS received_at, sum(read)::bigint AS read FROM log_segment WHERE received_at > :since
    GROUP BY xmin::text ORDER BY 1  -- a batch is a transaction
""")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a growing database is."""

    bootstrap: str
    url: str
    name: str
    """Consumer group, and the file of its log."""
    folder: Path


def main() -> int:
    """0 = measured, 2 = a server is absent."""
    given = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.splitlines()[0])
    given.add_argument("--parts", type=int, default=20)
    given.add_argument("--events", type=int, default=1_000_000, help="of a part")
    given.add_argument("--users", type=int, default=20_000)
    given.add_argument("--json", type=Path, default=servers.ROOT / "build" / "bench" / "growth.json")
    asked = given.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="driftline-bench-") as made:
            folder = Path(made)
            with servers.kafka(folder / "kafka") as bootstrap, servers.postgres(folder / "postgres") as admin:
                place = Place(
                    bootstrap=bootstrap, url=servers.create_database(admin, "growth"), name="growth", folder=folder
                )
                parts = []
                for number in range(asked.parts):
                    if 0 < number < asked.parts - 1:
                        fill(place, number, events=asked.events, users=asked.users)
                    else:
                        put(place, number, events=asked.events, users=asked.users)
                        parts.append(take(place, records=asked.events))
                    print(
                        f"part {number + 1}/{asked.parts}: {parts[-1]}, {compact(place)}", file=sys.stderr, flush=True
                    )
                stored = look(place, events=asked.parts * asked.events, users=asked.users)
    except servers.Absent as absent:
        print(absent, file=sys.stderr)
        return 2
    found = {**vars(asked), "json": str(asked.json), "parts": parts, **stored}
    found["last_to_first"] = round(parts[-1]["records_per_s"] / parts[0]["records_per_s"], 3)
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(found, indent=2))
    print(json.dumps(found, indent=2))
    return 0


def put(place: Place, number: int, *, events: int, users: int) -> None:
    """One part's records onto the topic, later ones than those of the part before."""
    create_topics(KafkaConfig(bootstrap=place.bootstrap), topics.ALL)
    send(place.bootstrap, records(number, events=events, users=users))


def records(number: int, *, events: int, users: int) -> Iterator[Message]:
    """One part's records: seeded by its number."""
    rng = np.random.default_rng(number)
    drawn = zip(
        rng.integers(users, size=events).tolist(),
        rng.integers(len(TYPES), size=events).tolist(),
        rng.integers(ITEMS, size=events).tolist(),
        strict=True,
    )
    for n, (user, kind, item) in enumerate(drawn, start=number * events):
        at: datetime = FIRST + n * STEP
        event = UserEvent(
            event_id=str(uuid.UUID(bytes=rng.bytes(16))),
            user_id=f"user-{user:06d}",
            occurred_at=at,
            source="bench",
            type=TYPES[kind],
            item_id=f"item-{item:05d}",
        )
        yield Message(key=event.user_id.encode(), value=encode(event), record_ms=int(at.timestamp() * 1000))


def fill(place: Place, number: int, *, events: int, users: int) -> None:
    """One part, written as `ingest` would, from a stream of its own that is finished afterwards."""
    engine = open_engine(place.url, application_name="bench", pooled=True)
    vocabulary = Dictionary(engine)
    stream = KafkaPartitionId(topic=TOPIC, partition=0, topic_id=f"part {number}", cluster_id="bench")
    with engine.begin() as connection:
        offsets.register(connection, {stream: 0})
        [row] = [row for row in offsets.streams(connection) if row.stream == stream]
        [claim] = offsets.claim(connection, [row])
    rng = np.random.default_rng(number)
    for first in range(0, events, BATCH):
        n = min(BATCH, events - first)
        names = [f"user-{user:06d}" for user in rng.integers(users, size=n).tolist()]
        times = START_US + (number * events + first + np.arange(n)) * STEP_US
        rows = storage.event_rows(rng, names, rng.integers(ITEMS, size=n), times, first=first)
        end, counts = first + rows.num_rows, event_log.Counts(read=rows.num_rows, accepted=rows.num_rows)
        with engine.begin() as connection:
            new = NewEvents(claim=claim, first_offset=first, topic_kind=user_sequences.USER, rows=rows)
            user_sequences.append(connection, [new], vocabulary)
            event_log.append(
                connection, [event_log.NewSegment(claim=claim, first=first, next=end, counts=counts, rows=rows)]
            )
            offsets.advance(connection, [Advance(claim=claim, first=first, next=end)])
    with engine.begin() as connection:
        offsets.retire(connection, [row])
    engine.dispose()


def take(place: Place, *, records: int) -> dict[str, Any]:
    """What is on the topic and not yet in the database, taken in by a process of its own."""
    engine = open_engine(place.url, application_name="bench")
    began = time.time()
    contender = next(one for one in CONTENDERS if one.name == "driftline")
    task = Task(
        bootstrap=place.bootstrap, topic=TOPIC, group=place.name, postgres_url=place.url, state_dir=str(place.folder),
        records=records, parseable=records,
    )  # fmt: skip
    measure(contender, task, number=0, log=place.folder / f"{place.name}.log", limit_s=LIMIT_S)
    with engine.connect() as connection:
        commits = connection.execute(_COMMITS, {"since": datetime.fromtimestamp(began).astimezone()}).all()
    seconds = (commits[-1].received_at - commits[0].received_at).total_seconds()
    taken = sum(commit.read for commit in commits)
    return {
        "records": taken,
        "batches": len(commits),
        "records_per_s": round((taken - commits[0].read) / seconds),
        "with_the_first_batch_per_s": round(taken / (commits[-1].received_at.timestamp() - began)),
    }


def compact(place: Place) -> dict[str, Any]:
    """Everything that is due."""
    engine = open_engine(place.url, application_name="bench", pooled=True)
    done = storage.compacted(engine, rows=COMPACT_ROWS)
    engine.dispose()
    return done


def look(place: Place, *, events: int, users: int) -> dict[str, Any]:
    """What is stored costs, with one history of 100,000 events more: bytes and reads."""
    engine = open_engine(place.url, application_name="bench", pooled=True)
    world = storage.World(engine, users=users, short_ids=False, even=True)
    world.write([storage.LONG] * storage.LONG_EVENTS)
    storage.compacted(engine, rows=COMPACT_ROWS)
    storage.vacuum(engine)
    with engine.connect() as connection:
        cursor = offsets.watermark(connection)
    names = [f"user-{user:06d}" for user in np.random.default_rng(1).integers(users, size=1000).tolist()]
    middle = storage.START_US + storage.LONG_EVENTS // 2 * storage.SECOND_US
    found = {
        "compacted": storage.sizes(engine, events + storage.LONG_EVENTS),
        "reads_ms": storage.reads(engine, names, cursor, middle=middle),
    }
    engine.dispose()
    return found


if __name__ == "__main__":
    sys.exit(main())
