"""How long a killed `ingest` is away: kill -9, restarted by the supervisor of `up`, first new commit in Postgres.

    python -m benchmarks.recovery --kills 50 --json build/bench/recovery.json
    python -m benchmarks.recovery --kills 50 --processes 2 --json build/bench/recovery-2.json

Records come at a steady rate all the time. Kafka has its own defaults where they matter (a group's first join waits
3 s, no session under 6 s). Seconds are counted from the kill, as Postgres shows them, looked at every 5 ms:
the new process's session, its claim, the first segment of the new owner with accepted records (`first_commit_s`), and
one on every partition of the killed process (`whole_s`). `driftline verify` reads everything again at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGKILL
from typing import Any

import psutil
import psycopg

from benchmarks.servers import ROOT, Absent
from benchmarks.service import Scope, service
from contracts import topics
from contracts.codec import encode
from contracts.records import UserEvent
from driftline.local.supervisor import STEADY_S, Child, supervise
from runtime import kafka
from runtime.lifecycle import Stop

GOAL_S = 5.0
KAFKA_DEFAULTS = "group.initial.rebalance.delay.ms=3000 group.min.session.timeout.ms=6000"
"""The shared Kafka is set for quick tests; users' brokers are not."""
USERS = 500
DRAWN_S = 2.0
"""A process is killed up to so long after it has worked for `STEADY_S` of the supervisor and all is steady."""
LIMIT_S = 90.0


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Seconds since one kill."""

    session_s: float
    """Restarted, imports done, connected."""
    claim_s: float
    """Joined, a partition claimed."""
    first_commit_s: float
    whole_s: float
    """All partitions of the killed process have a new commit."""


def main() -> int:
    """0 = measured and verified; 1 = `verify` found something; 2 = a server is absent. A missed goal is printed."""
    given = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__.splitlines()[0])
    given.add_argument("--kills", type=int, default=50)
    given.add_argument("--processes", type=int, default=1, help="`ingest` processes; killed in turn")
    given.add_argument("--rate", type=float, default=200.0, help="records a second")
    given.add_argument("--seed", type=int, default=1)
    given.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="more DRIFTLINE_ settings")
    given.add_argument("--json", type=Path, default=ROOT / "build" / "bench" / "recovery.json")
    asked = given.parse_args()
    os.environ.setdefault("KAFKA_PROPERTIES", KAFKA_DEFAULTS)
    busy = psutil.cpu_percent(interval=3.0)
    try:
        with service() as servers:
            settings = dict(pair.split("=", 1) for pair in asked.setting)
            scope = servers.scope("recovery", LOG_LEVEL="warning", **settings)
            found = measure(scope, kills=asked.kills, processes=asked.processes, rate=asked.rate, seed=asked.seed)
    except Absent as error:
        print(error, file=sys.stderr)
        return 2
    found = {"busy_before_percent": busy, "kafka": os.environ["KAFKA_PROPERTIES"], **vars(asked), **found}
    found["json"] = str(asked.json)
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(found, indent=2))
    print(table(found))
    return 0 if found["verify"] == 0 else 1


def measure(scope: Scope, *, kills: int, processes: int, rate: float, seed: int) -> dict[str, Any]:
    """Kills, looks, and has everything verified."""
    rng = random.Random(seed)
    runs: list[Recovery] = []
    os.environ.update(scope.environment)
    with (
        feeding(scope, rate) as sent,
        psycopg.connect(scope.database, autocommit=True) as look,
        supervised(processes) as children,
    ):
        for number in range(kills):
            victim = children[number % processes]
            steady(processes, look)
            time.sleep(max(0.0, STEADY_S - victim.age_s) + DRAWN_S * rng.random())
            runs.append(recovery(victim, look))
            print(f"kill {number + 1}/{kills}: {runs[-1]}", file=sys.stderr, flush=True)
    verify = scope.call("verify", "--json", check=False)
    (scope.folder / "verify.json").write_text(verify.stdout)
    if verify.returncode:
        print(verify.stdout, file=sys.stderr)
    return {
        "sent": sent[0],
        "verify": verify.returncode,
        "spread": {name: spread([getattr(run, name) for run in runs]) for name in Recovery.__dataclass_fields__},
        "runs": [asdict(run) for run in runs],
    }


@contextmanager
def supervised(processes: int) -> Iterator[list[Child]]:
    """`ingest` as `up` runs it, so many times, until the block ends."""
    children = [Child("ingest", [], before=[]) for _ in range(processes)]
    stop = Stop()
    thread = threading.Thread(target=supervise, args=(children, stop))
    thread.start()
    try:
        yield children
    finally:
        stop.set()
        thread.join()


@contextmanager
def feeding(scope: Scope, rate: float) -> Iterator[list[int]]:
    """Sends records until the block ends; gives a list whose one element is how many."""
    stop, sent = threading.Event(), [0]

    def feed() -> None:
        producer = kafka.producer(scope.kafka)
        began = time.monotonic()
        while not stop.wait(max(0.0, began + sent[0] / rate - time.monotonic())):
            number = sent[0]
            user = f"user-{number * 7919 % USERS}"
            event = UserEvent(
                event_id=f"event-{number}",
                user_id=user,
                occurred_at=datetime.now(UTC),
                source="recovery",
                type=f"type-{number % 7}",
            )
            producer.produce(scope.kafka.physical(topics.USER), key=user, value=encode(event))
            producer.poll(0)
            sent[0] += 1
        producer.flush(30)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield sent
    finally:
        stop.set()
        thread.join()


_OWNERS = """
    SELECT s.stream_id, s.epoch, a.pid,
           (SELECT max(l.epoch) FROM log_segment l WHERE l.stream_id = s.stream_id AND l.accepted > 0)
    FROM stream_offset s
    LEFT JOIN pg_stat_activity a ON a.pid = s.owner_pid AND a.backend_start = s.owner_started
    WHERE s.topic = 'events.user'
"""
_NEWEST_SESSION = """
    SELECT max(extract(epoch FROM backend_start))::float8 FROM pg_stat_activity
    WHERE application_name = 'driftline-ingest' AND datname = current_database()
"""


def steady(processes: int, look: psycopg.Connection) -> None:
    """Waits until all partitions are owned, by so many processes, and each has a commit of its owner."""
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        rows = look.execute(_OWNERS).fetchall()
        sessions = {session for _, _, session, _ in rows}
        if rows and None not in sessions and len(sessions) == processes and all(row[1] == row[3] for row in rows):
            return
        time.sleep(0.05)
    raise RuntimeError(f"not all of {processes} processes own partitions after {LIMIT_S} s")


def recovery(victim: Child, look: psycopg.Connection) -> Recovery:
    """Kills it and looks until each of its partitions has a new commit."""
    at, unix = time.monotonic(), time.time()
    assert victim.pid is not None
    os.kill(victim.pid, SIGKILL)
    lost: dict[int, int] = {}  # stream id -> epoch; those whose session ends now
    session = claim = first = None
    while (now := time.monotonic() - at) < LIMIT_S:
        time.sleep(0.005)
        rows = {row[0]: row for row in look.execute(_OWNERS)}
        lost = lost or {stream: row[1] for stream, row in rows.items() if row[2] is None}
        if session is None and (newest := look.execute(_NEWEST_SESSION).fetchone()) and (newest[0] or 0) > unix:
            session = newest[0] - unix
        if claim is None and any(rows[stream][1] > epoch for stream, epoch in lost.items()):
            claim = now
        new = [(rows[stream][3] or 0) > epoch for stream, epoch in lost.items()]
        if first is None and any(new):
            first = now
        if first is not None and all(new):
            return Recovery(session_s=session or 0.0, claim_s=claim or first, first_commit_s=first, whole_s=now)
    raise RuntimeError(f"no recovery within {LIMIT_S} s: streams and epochs {lost}")


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, tail and worst, in seconds (nearest rank)."""
    ordered = sorted(seconds)
    return {
        "p50": round(ordered[(len(ordered) - 1) // 2], 2),
        "p95": round(ordered[-(-95 * len(ordered) // 100) - 1], 2),
        "max": round(ordered[-1], 2),
    }


def table(found: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{'seconds since kill -9':<34}{'p50':>7}{'p95':>7}{'max':>7}"]
    says = {
        "session_s": "restarted and connected",
        "claim_s": "joined, partitions claimed",
        "first_commit_s": "first new commit",
        "whole_s": "new commit on each partition",
    }
    for name, text in says.items():
        one = found["spread"][name]
        lines.append(f"{text:<34}{one['p50']:>7.2f}{one['p95']:>7.2f}{one['max']:>7.2f}")
    p95 = found["spread"]["first_commit_s"]["p95"]
    lines.append(f"goal: first new commit p95 <= {GOAL_S:g} s: {'met' if p95 <= GOAL_S else 'MISSED'}")
    lines.append(
        f"{found['kills']} kills, {found['processes']} processes, {found['sent']:,} records, verify "
        f"{'clean' if found['verify'] == 0 else 'NOT CLEAN'}, machine {found['busy_before_percent']:.0f} % busy before"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
