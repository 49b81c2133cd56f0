"""The four recordings through a real Kafka into Postgres, and the proof that each row counted once.

python -m benchmarks.recordings --json build/bench/recordings.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.servers import ROOT, Absent
from benchmarks.service import Service, service

DATA = ROOT.parent / "shared" / "data"
FILES = {
    "stackoverflow": "tpp_stackoverflow_badges/events.parquet",
    "taobao": "tpp_taobao/events.parquet",
    "collegemsg": "collegemsg/events.parquet",
    "fdh": "fdh_payments/events.parquet",
}


def main() -> int:
    """0 = each recording's rows were read, none lost, none twice."""
    given = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    given.add_argument("names", nargs="*", default=list(FILES))
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
    rows = pq.ParquetFile(DATA / FILES[name]).metadata.num_rows
    scope = servers.scope(name)
    started = time.monotonic()
    scope.call("replay", name, "--folder", str(DATA))
    replayed = time.monotonic() - started
    ingest = scope.told("ingest", "--once")
    started = time.monotonic()
    verified = scope.told("verify")
    seconds = time.monotonic() - started
    topics = verified["topics"]
    events = sum(topic["read"] for topic in topics.values() if topic["topic"] != "labels")
    found = {
        "name": name,
        "rows_of_the_file": rows,
        "events_read": events,
        "read_is_rows": events == rows,
        "good": bool(verified["ok"]) and events == rows,
        "ingest_records_per_s": ingest["read"] / (ingest["last_at"] - ingest["first_at"]),
        "replay_s": replayed,
        "verify_s": seconds,
        "ingest": ingest,
        "verify": verified,
    }
    counted = {
        t["topic"]: {key: t[key] for key in ("read", "accepted", "dead", "duplicates", "in_sequences")}
        | {finding: count for finding, count in t["findings"].items() if finding in ("lost", "twice")}
        for t in topics.values()
        if t["read"]
    }
    print(json.dumps({key: found[key] for key in list(found)[:8]} | {"topics": counted}), flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
