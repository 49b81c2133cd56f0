"""The whole StackOverflow recording learnt by the running service, predictions scored before they are learnt from.

    python -m benchmarks.learning --json build/bench/learning.json

Windows are 73.1 days of event time. Losses are nats an event: "time" is -log of the gap's density per day,
"type" is -log p(type | gap). Every arm sees the same steps; the references are what `learners/arms/frozen.py`
and `learners/baselines/markov.py` say.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psycopg
from confluent_kafka import TopicPartition

from benchmarks.recordings import DATA
from benchmarks.servers import ROOT, Absent
from benchmarks.service import Scope, service
from contracts import topics
from contracts.records import Progress
from runtime import kafka

WINDOW_DAYS = 73.1
START = 1325376000.0
"""2012-01-01, unix seconds: where the recording begins."""
DAY_S = 86_400.0
PORT = "19103"
ASKED_USERS = 100


def main() -> int:
    """0 = learnt to the end, and every asked user was answered."""
    given = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    given.add_argument("--limit", type=int, help="only so many rows, to see whether it works")
    given.add_argument("--json", type=Path, default=ROOT / "build" / "bench" / "learning.json")
    asked = given.parse_args()
    try:
        with service() as servers:
            found = measure(servers.scope("learning", SCORE__PORT=PORT), asked.limit)
    except Absent as error:
        print(error, file=sys.stderr)
        return 2
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(found, indent=2))
    show(found)
    return 0 if found["answers"]["answered"] == ASKED_USERS else 1


def measure(scope: Scope, limit: int | None) -> dict[str, Any]:
    """Replays, ingests, learns while scoring runs, and asks for some users."""
    scope.call("replay", "stackoverflow", "--folder", str(DATA), *(["--limit", str(limit)] if limit else []))
    ingest = scope.told("ingest", "--once")
    started = time.monotonic()
    with scope.running("score"):
        train = scope.told("train", "--once")
        wall = time.monotonic() - started
        answers = ask(scope)
    with psycopg.connect(scope.database) as connection:
        taken = connection.execute("SELECT created_at FROM snapshot WHERE status = 'live' ORDER BY step").fetchall()
    gaps = [(after[0] - before[0]).total_seconds() for before, after in pairwise(taken)]
    return {
        "ingest": ingest,
        "train": train,
        "wall_s": wall,
        "rows_per_s": train["rows"] / wall,
        "rows_per_learning_s": train["rows"] / train["learn_s"],
        "seconds_between_snapshots": gaps,
        "windows": windows(read_progress(scope)),
        "answers": answers,
    }


def read_progress(scope: Scope) -> list[Progress]:
    """All steps told on `learning.progress`, each once."""
    reader = kafka.consumer(scope.kafka, group="benchmark")
    name = scope.kafka.physical(topics.PROGRESS)
    low, high = kafka.low_high(reader, name, 0)
    reader.assign([TopicPartition(name, 0, low)])
    found: dict[tuple[str, int, int], Progress] = {}
    at = low
    while at < high:
        for message in reader.consume(5000, 5.0):
            record = msgspec.json.decode(message.value() or b"", type=Progress)
            found.setdefault((record.learner, record.branch, record.step), record)
            at = (message.offset() or 0) + 1
    reader.close()
    return list(found.values())


def windows(steps: list[Progress]) -> list[dict[str, Any]]:
    """Mean losses per window and arm. A step belongs to the window of its last event."""
    sums: dict[int, dict[str, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(lambda: [0.0, 0]))
    )
    rows: dict[int, int] = defaultdict(int)
    for step in steps:
        window = int((step.last_event_at.timestamp() - START) // (WINDOW_DAYS * DAY_S))
        rows[window] += step.rows
        for arm, losses in step.losses.items():
            for loss, part in losses.items():
                entry = sums[window][arm][loss]
                entry[0] += part.sum
                entry[1] += part.rows
    return [
        {
            "window": window,
            "rows": rows[window],
            "arms": {
                arm: {
                    loss: total / count - (math.log(DAY_S) if loss == "time" else 0.0)
                    for loss, (total, count) in losses.items()
                    if count
                }
                for arm, losses in sums[window].items()
            },
        }
        for window in sorted(sums)
    ]


def ask(scope: Scope) -> dict[str, Any]:
    """Scores some users over HTTP; every answer must say what it knew."""
    with psycopg.connect(scope.database) as connection:
        users = [row[0] for row in connection.execute("SELECT value FROM vocabulary WHERE space = 1 ORDER BY value")]
    chosen = random.Random(0).sample(users, min(ASKED_USERS, len(users)))
    address = f"http://127.0.0.1:{PORT}"
    answered, milliseconds, example = 0, [], None
    with httpx.Client(base_url=address, timeout=30) as client:
        newest = newest_snapshot(scope)
        deadline = time.monotonic() + 30
        while client.get("/v1/models").json() == [] or newest not in client.get("/v1/models").text:
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        for user in chosen:
            began = time.perf_counter()
            reply = client.post("/v1/score", json={"user_id": user})
            milliseconds.append((time.perf_counter() - began) * 1e3)
            body = reply.json()
            complete = reply.status_code == 200 and body["snapshot_id"] == newest and body["watermark"]
            answered += bool(complete and body["events_seen"] and body["staleness_seconds"] is not None)
            example = example or body
    milliseconds.sort()
    return {
        "asked": len(chosen),
        "answered": answered,
        "p50_ms": milliseconds[len(milliseconds) // 2],
        "p99_ms": milliseconds[int(len(milliseconds) * 0.99)],
        "example": example,
    }


def newest_snapshot(scope: Scope) -> str:
    """The id of the newest live snapshot."""
    with psycopg.connect(scope.database) as connection:
        row = connection.execute("SELECT id FROM snapshot WHERE status = 'live' ORDER BY step DESC LIMIT 1").fetchone()
    return str(row[0]) if row else ""


def show(found: dict[str, Any]) -> None:
    """The table of windows."""
    arms = list(found["windows"][0]["arms"])
    print(
        "| window | rows | "
        + " | ".join(f"{arm.removeprefix('reference.')} time / type / error" for arm in arms)
        + " |"
    )
    print("|---|---|" + "---|" * len(arms))
    for window in found["windows"]:
        cells = [
            " / ".join(f"{window['arms'][arm].get(loss, float('nan')):.3f}" for loss in ("time", "type", "error"))
            for arm in arms
        ]
        print(f"| {window['window']} | {window['rows']:,} | " + " | ".join(cells) + " |")
    train, gaps = found["train"], found["seconds_between_snapshots"]
    print(
        f"{train['rows']:,} rows in {found['wall_s']:.0f} s: {found['rows_per_s']:.0f} rows/s with all arms; "
        f"{train['snapshots']} snapshots, {min(gaps, default=0):.0f} to {max(gaps, default=0):.0f} s apart; "
        f"{found['answers']['answered']} of {found['answers']['asked']} users answered, "
        f"p50 {found['answers']['p50_ms']:.0f} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
