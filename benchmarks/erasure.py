"""Erasing users out of a running service's database: seconds, what is left of their ids, what the learners lose.

    python -m benchmarks.erasure --users 3800 --erase 100 --json build/bench/erasure.json

A simulated world goes through a real Kafka into Postgres and is compacted; each learner learns its beginning. Then
users are erased, each learner forgets and goes on, and the whole topics are replayed into a fresh database that
knows of the first one who is suppressed, by keyed hash, and nothing else. Every table and file of both is
searched for the ids. 3,800 users make about 1,000,000 events. Beside it, a control: the same world learnt as far
by the same learners, and nobody erased.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from confluent_kafka import TopicPartition

from benchmarks.servers import ROOT, Absent, create_database
from benchmarks.service import Scope, Service, service
from contracts import topics
from contracts.records import Progress
from driftline.audit.byte_traces import traces
from driftline.simulate.encoding import user_id
from runtime import kafka
from storage import migrate

LEARNERS = ("sdim", "prompttpp")
LOSSES = {"sdim": "rank", "prompttpp": "time"}
"""What is told of each learner, in nats a row."""
EVENTS = (
    "SELECT count(*), coalesce(sum(hashtextextended(concat(user_id, topic, event_id, role), 0)), 0) FROM user_event"
)


def main() -> int:
    """0 = no byte of the erased ids was left anywhere, and the replay led to the same sequences."""
    given = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    given.add_argument("--users", type=int, default=3_800, help="more than 1,100")
    given.add_argument("--days", type=float, default=14.0, help="of the simulated world")
    given.add_argument("--erase", type=int, default=100, help="users")
    given.add_argument("--learn", type=int, default=80_000, help="records before the erasure, of each learner")
    given.add_argument("--then", type=int, default=20_000, help="records after it")
    given.add_argument("--warmup", type=int, default=5_000, help="rows after which references are frozen")
    given.add_argument("--step-rows", type=int, default=128)
    given.add_argument("--json", type=Path, default=ROOT / "build" / "bench" / "erasure.json")
    asked = given.parse_args()
    try:
        with service() as servers:
            found = measure(servers, asked)
    except Absent as error:
        print(error, file=sys.stderr)
        return 2
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(found, indent=2))
    print(json.dumps(found, indent=2))
    return 0 if found["good"] else 1


def measure(servers: Service, asked: argparse.Namespace) -> dict[str, Any]:
    """The whole story, in order."""
    settings = {
        "TRAIN__STEP_ROWS": str(asked.step_rows),
        "TRAIN__OPTIONS": json.dumps({name: {"warmup_events": asked.warmup} for name in LEARNERS}),
    }
    scope = servers.scope("erasure", MAINTAIN__PORT="none", **settings)
    # Of four digits: the id of none of them is the beginning of another's.
    gone = sorted(random.Random(7).sample([user_id(n) for n in range(1_000, asked.users)], asked.erase))
    listed = scope.folder.parent / "asked.txt"
    listed.write_text("\n".join(gone))
    found: dict[str, Any] = {"users": asked.users, "erased": asked.erase, "step_rows": asked.step_rows}
    world = ("simulate", "--users", str(asked.users), "--days", str(asked.days))
    found["sent"] = scope.told(*world)
    found["ingest"] = scope.told("ingest", "--once")
    found["compaction"] = scope.told("maintain", "--once")
    for learner in LEARNERS:
        learn(scope, learner, asked.learn)
    found["before"] = {"traces": places(scope, gone), "snapshots": marked(scope), "events": entries(scope)[0]}
    said(found, "before")
    found["erase_s"], found["erase"] = timed(lambda: scope.told("erase", "--from", str(listed), "--yes"))
    said(found, "erase_s", "erase")
    for learner in LEARNERS:
        learn(scope, learner, asked.learn + asked.then)
    steps = {learner: forgetting(scope, learner) for learner in LEARNERS}
    found["losses"] = {learner: losses(scope, learner, step) for learner, step in steps.items()}
    found["after"] = {"traces": places(scope, gone), "snapshots": marked(scope), "events": entries(scope)[0]}
    said(found, "losses", "after")
    found["verify"] = verified(scope)
    fresh = replayed_into(servers, scope)
    found["replay_s"], found["replay"] = timed(lambda: fresh.told("ingest", "--once"))
    found["replayed"] = {
        "traces": places(fresh, gone),
        "verify": verified(fresh),
        "same": entries(fresh) == entries(scope),
    }
    said(found, "replay_s", "replayed")
    control = servers.scope("control", **settings)
    control.told(*world)
    control.told("ingest", "--once")
    for learner in LEARNERS:
        learn(control, learner, asked.learn + asked.then)
    found["control"] = {learner: losses(control, learner, step) for learner, step in steps.items()}
    said(found, "control")
    found["good"] = not found["after"]["traces"] and not found["replayed"]["traces"] and found["replayed"]["same"]
    return found


def said(found: dict[str, Any], *names: str) -> None:
    print(json.dumps({name: found[name] for name in names}), file=sys.stderr, flush=True)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    started = time.monotonic()
    done = work()
    return time.monotonic() - started, done


def learn(scope: Scope, learner: str, events: int) -> None:
    """Until the learner's snapshots have so many events behind them, about; it takes one as it ends."""
    with scope.running("train", "--learner", learner), psycopg.connect(scope.database, autocommit=True) as connection:
        while journalled(connection, learner) < events:
            time.sleep(0.5)


def journalled(connection: psycopg.Connection, learner: str) -> int:
    """Offsets a learner's steps cover."""
    row = connection.execute(
        "SELECT coalesce(sum((run ->> 2)::bigint - (run ->> 1)::bigint), 0)"
        " FROM journal, jsonb_array_elements(rows) AS run WHERE learner = %s",
        (learner,),
    ).fetchone()
    return int(row[0]) if row else 0


def forgetting(scope: Scope, learner: str) -> int:
    """The step ahead of which a learner forgot."""
    with psycopg.connect(scope.database) as connection:
        row = connection.execute("SELECT min(step) FROM learner_action WHERE learner = %s", (learner,)).fetchone()
    assert row is not None
    return int(row[0])


def losses(scope: Scope, learner: str, step: int) -> dict[str, Any]:
    """Mean loss, before it learnt them, of the rows on either side of a step, and of all rows before it."""
    told = {record.step: record for record in progress(scope) if record.learner == learner}
    after = [told[number] for number in sorted(told) if number >= step]
    before = [told[number] for number in sorted(told) if number < step]
    parts = {"all before": before, "before": before[-len(after) :], "after": after}
    return {"step": step, "loss": LOSSES[learner]} | {
        name: {"rows": sum(record.rows for record in records)}
        | {arm: mean(records, arm, LOSSES[learner]) for arm in sorted(after[0].losses)}
        for name, records in parts.items()
    }


def mean(records: list[Progress], arm: str, loss: str) -> float:
    """Over the rows that have the loss."""
    sums = [record.losses[arm][loss] for record in records if loss in record.losses[arm]]
    return sum(one.sum for one in sums) / max(sum(one.rows for one in sums), 1)


def progress(scope: Scope) -> list[Progress]:
    """What stands on `learning.progress`."""
    client = kafka.consumer(scope.kafka, group="bench-erasure")
    topic, found = scope.kafka.physical(topics.PROGRESS), list[Progress]()
    for partition in range(kafka.describe(scope.kafka, [topics.PROGRESS])[topics.PROGRESS].partitions):
        low, high = kafka.low_high(client, topic, partition)
        client.assign([TopicPartition(topic, partition, low)])
        while low < high and (messages := client.consume(1_000, 5.0)):
            found += [msgspec.json.decode(message.value() or b"", type=Progress) for message in messages]
            low = max(message.offset() or 0 for message in messages) + 1
    client.close()
    return found


def places(scope: Scope, gone: list[str]) -> dict[str, int]:
    """Where the ids stand: tables, and files of the data folder (snapshots, logs)."""
    return traces(scope.database, scope.folder, *gone)


def marked(scope: Scope) -> dict[str, int]:
    """Live snapshots, and those that can no longer be rebuilt."""
    with psycopg.connect(scope.database) as connection:
        row = connection.execute(
            "SELECT count(*), count(*) FILTER (WHERE irreproducible) FROM snapshot WHERE status = 'live'"
        ).fetchone()
    assert row is not None
    return {"live": row[0], "irreproducible": row[1]}


def entries(scope: Scope) -> tuple[int, int]:
    """Entries of sequences, and a sum over what they are."""
    with psycopg.connect(scope.database) as connection:
        row = connection.execute(EVENTS.encode()).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def verified(scope: Scope) -> dict[str, Any]:
    """Whether each retained record is counted once, and how many were not taken for their users' sake."""
    report = scope.told("verify")
    return {"ok": report["ok"], "suppressed": sum(one["suppressed"] for one in report["topics"].values())}


def replayed_into(servers: Service, scope: Scope) -> Scope:
    """The same topics and an empty database, which is told of the erased by their hashes and the hashes' key."""
    database = create_database(servers.postgres, "service_replayed")
    migrate.upgrade(database)
    with psycopg.connect(scope.database) as old, psycopg.connect(database) as new:
        key = old.execute("SELECT suppression_key FROM installation").fetchone()
        new.execute("UPDATE installation SET suppression_key = %s", key)
        for row in old.execute("SELECT user_hash, version FROM suppression"):
            new.execute("INSERT INTO suppression (user_hash, version) VALUES (%s, %s)", row)
    folder = servers.folder / "replayed"
    folder.mkdir()
    environment = {**scope.environment, "DRIFTLINE_POSTGRES_URL": database, "DRIFTLINE_DATA_DIR": str(folder)}
    return replace(scope, database=database, folder=folder, environment=environment)


if __name__ == "__main__":
    sys.exit(main())
