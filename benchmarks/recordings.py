"""All recordings through a real Kafka into Postgres, and the proof that each row counted once.

python -m benchmarks.recordings --json build/bench/recordings.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.servers import ROOT, Absent
from benchmarks.service import Service, service

DATA = ROOT.parent / "shared" / "data"


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a data set must come to, by its own description."""

    file: str
    """Its rows are one record each."""
    beside: Mapping[str, int] = field(default_factory=dict)
    """topic -> records that are no rows of the file."""
    dead: Mapping[str, int] = field(default_factory=dict)
    """reason -> records that no reader can accept."""


ROW_TOPICS = ("events.user", "events.payment", "events.relational")
EXPECTED = {
    "stackoverflow": Expected(file="tpp_stackoverflow_badges/events.parquet"),
    "taobao": Expected(file="tpp_taobao/events.parquet"),
    "collegemsg": Expected(file="collegemsg/events.parquet"),
    "fdh": Expected(file="fdh_payments/events.parquet", beside={"labels": 1_754_155}),
    "online_retail": Expected(
        file="online_retail/events.parquet", beside={"items": 3_958}, dead={"missing_field": 135_080}
    ),
    "foursquare": Expected(  # one friendship in the file is with oneself
        file="lbsn_foursquare/events.parquet",
        beside={"items": 29_557, "events.relational": 118_821},
        dead={"self_relation": 1},
    ),
    "berka": Expected(file="berka_payments/events.parquet", beside={"labels": 682}),
    "amazon_titles": Expected(  # beside the rows: the histories of users' first rows, one event an item
        file="amazon_titles_sequences/sequences.parquet", beside={"items": 7_145, "events.user": 26_393}
    ),
}


def main() -> int:
    """0 = each recording's rows were read, none lost, none twice."""
    given = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    given.add_argument("names", nargs="*", default=list(EXPECTED))
    given.add_argument("--json", type=Path, default=ROOT / "build" / "bench" / "recordings.json")
    asked = given.parse_args()
    if not DATA.is_dir():
        print(f"no recordings at {DATA}", file=sys.stderr)
        return 2
    try:
        with service() as servers:
            found = [measure(servers, name) for name in asked.names]
    except Absent as error:
        print(error, file=sys.stderr)
        return 2
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(found, indent=2))
    return 0 if all(one["good"] for one in found) else 1


def measure(servers: Service, name: str) -> dict[str, Any]:
    """Replays, ingests and verifies one recording."""
    scope = servers.scope(name)
    started = time.monotonic()
    scope.call("replay", name, "--folder", str(DATA))
    replayed = time.monotonic() - started
    ingest = scope.told("ingest", "--once")
    started = time.monotonic()
    verified = scope.told("verify")
    seconds = time.monotonic() - started
    dead = scope.told("status")["dead_letters"]
    wrong = _wrong(name, verified["topics"].values(), dead)
    found = {
        "name": name,
        "good": bool(verified["ok"]) and not wrong,
        "wrong": wrong,
        "dead_letters": dead,
        "ingest_records_per_s": ingest["read"] / (ingest["last_at"] - ingest["first_at"]),
        "replay_s": replayed,
        "verify_s": seconds,
        "topics": {topic["topic"]: _counted(topic) for topic in verified["topics"].values() if topic["read"]},
    }
    print(json.dumps(found), flush=True)
    return found | {"ingest": ingest, "verify": verified}


def _wrong(name: str, topics: Iterable[dict[str, Any]], dead: dict[str, int]) -> list[str]:
    """What is not as the data set's description says."""
    expected = EXPECTED[name]
    rows = pq.ParquetFile(DATA / expected.file).metadata.num_rows
    read = {topic["topic"]: topic["read"] for topic in topics if topic["read"]}
    in_rows = {topic for topic in read if topic in ROW_TOPICS}
    must = rows + sum(count for topic, count in expected.beside.items() if topic in ROW_TOPICS)
    wrong = []
    if (events := sum(read[topic] for topic in in_rows)) != must:
        wrong.append(f"{events:,} events read, {must:,} expected")
    for topic in set(read) - in_rows:
        if read[topic] != expected.beside.get(topic):
            wrong.append(f"{read[topic]:,} records of {topic} read, {expected.beside.get(topic)} expected")
    if dead != dict(expected.dead):
        wrong.append(f"dead letters {dead}, expected {dict(expected.dead)}")
    return wrong


def _counted(topic: dict[str, Any]) -> dict[str, int]:
    counts = {name: topic[name] for name in ("read", "accepted", "dead", "duplicates", "in_sequences")}
    return counts | {finding: count for finding, count in topic["findings"].items() if finding in ("lost", "twice")}


if __name__ == "__main__":
    sys.exit(main())
