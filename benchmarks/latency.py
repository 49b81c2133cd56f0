"""How long an event takes to reach user state, and to reach the weights, at a steady rate.

    python -m benchmarks.latency --rate 200 --seconds 60 --json build/bench/latency.json

event-to-state: from the record's time (set by the producer as it hands the record over) until another
connection sees the committed offset pass it, looked at every 5 ms. event-to-weights: until the progress record
of the step that learnt it was made (its Kafka time), after which snapshots contain it.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from bisect import bisect_right
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from confluent_kafka import Message, TopicPartition

from benchmarks.servers import ROOT, Absent
from benchmarks.service import Scope, service
from contracts import topics
from contracts.codec import encode
from contracts.records import Progress, UserEvent
from runtime import kafka

USERS = 500
WARM_UP_S = 10.0
Seen = dict[int, list[tuple[int, float]]]
"""partition -> [(next offset, unix seconds when it was seen)], growing."""


def main() -> int:
    """0 = every event reached state and weights."""
    given = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    given.add_argument("--rate", type=float, default=200.0, help="events a second")
    given.add_argument("--seconds", type=float, default=60.0)
    given.add_argument("--json", type=Path, default=ROOT / "build" / "bench" / "latency.json")
    asked = given.parse_args()
    try:
        with service() as servers:
            found = measure(servers.scope("latency"), asked.rate, asked.seconds)
    except Absent as error:
        print(error, file=sys.stderr)
        return 2
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(found, indent=2))
    print(json.dumps(found, indent=2))
    return 0 if found["state"]["events"] == found["weights"]["events"] == found["sent"] else 1


def measure(scope: Scope, rate: float, seconds: float) -> dict[str, Any]:
    """Sends at the rate while ingest and train run, and watches from outside."""
    seen: Seen = defaultdict(list)
    stop = threading.Event()
    with scope.running("ingest"), scope.running("train"):
        watching = threading.Thread(target=watch, args=(scope.database, seen, stop))
        watching.start()
        time.sleep(WARM_UP_S)  # both have joined and loaded
        sent = send(scope, rate, seconds)
        time.sleep(10.0)
        stop.set()
        watching.join()
        learnt = weights_times(scope)
    # The first seconds train waits for partitions it has never seen yield: not the steady state.
    steady = {place: at for place, at in sent.items() if at > min(sent.values()) + WARM_UP_S}
    return {
        "rate": rate,
        "sent": len(steady),
        "state": spread([reached(seen[p], o) - at for (p, o), at in steady.items() if seen[p][-1][0] > o]),
        "weights": spread([learnt[place] - at for place, at in steady.items() if place in learnt]),
    }


def send(scope: Scope, rate: float, seconds: float) -> dict[tuple[int, int], float]:
    """(partition, offset) -> unix seconds at the hand-over."""
    producer = kafka.producer(scope.kafka)
    topic = scope.kafka.physical(topics.USER)
    sent: dict[tuple[int, int], float] = {}

    def delivered(at: float) -> Any:
        def note(error: object, message: Message) -> None:
            assert error is None, error
            sent[(message.partition() or 0, message.offset() or 0)] = at

        return note

    began = time.time()
    for number in range(int(rate * seconds)):
        while (early := began + number / rate - time.time()) > 0:
            producer.poll(early)
        at = time.time()
        user = f"user-{number * 7919 % USERS}"
        event = UserEvent(
            event_id=f"event-{number}", user_id=user, occurred_at=datetime.fromtimestamp(at, UTC), source="latency",
            type=f"type-{number % 7}",
        )  # fmt: skip
        producer.produce(topic, key=user, value=encode(event), timestamp=int(at * 1e3), on_delivery=delivered(at))
    producer.flush(30)
    return sent


def watch(database: str, seen: Seen, stop: threading.Event) -> None:
    """Notes when the committed offsets move."""
    with psycopg.connect(database, autocommit=True) as connection:
        while not stop.wait(0.005):
            rows = connection.execute(
                "SELECT partition, next_offset FROM stream_offset WHERE topic = %s", (topics.USER,)
            ).fetchall()
            now = time.time()
            for partition, offset in rows:
                if not seen[partition] or seen[partition][-1][0] < offset:
                    seen[partition].append((offset, now))


def reached(moves: list[tuple[int, float]], offset: int) -> float:
    """When the committed offset passed this one."""
    return moves[bisect_right(moves, offset, key=lambda move: move[0])][1]


def weights_times(scope: Scope) -> dict[tuple[int, int], float]:
    """(partition, offset) -> unix seconds when the step that learnt it was told."""
    told = progress_times(scope)
    found: dict[tuple[int, int], float] = {}
    with psycopg.connect(scope.database) as connection:
        partitions: dict[int, int] = dict(
            connection.execute("SELECT stream_id, partition FROM stream_offset").fetchall()
        )
        for step, runs in connection.execute("SELECT step, rows FROM journal ORDER BY step"):
            if step in told:
                for stream, first, after in runs:
                    found |= {(partitions[stream], offset): told[step] for offset in range(first, after)}
    return found


def progress_times(scope: Scope) -> dict[int, float]:
    """step -> Kafka time of its progress record, unix seconds."""
    reader = kafka.consumer(scope.kafka, group="latency")
    name = scope.kafka.physical(topics.PROGRESS)
    low, high = kafka.low_high(reader, name, 0)
    reader.assign([TopicPartition(name, 0, low)])
    found: dict[int, float] = {}
    at = low
    while at < high:
        for message in reader.consume(5000, 5.0):
            found[msgspec.json.decode(message.value() or b"", type=Progress).step] = message.timestamp()[1] / 1e3
            at = (message.offset() or 0) + 1
    reader.close()
    return found


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and tail, in milliseconds."""
    ordered = sorted(seconds)
    return {
        "events": len(ordered),
        "p50_ms": ordered[len(ordered) // 2] * 1e3,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1e3,
        "max_ms": ordered[-1] * 1e3,
    }


if __name__ == "__main__":
    sys.exit(main())
