"""`python -m tests.chaos --runs 20 [--seed 1]`: runs, a table, and exit 1 if any run can be told from the quiet one."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from driftline.local import embedded
from tests.chaos.outcome import line, verdict
from tests.chaos.plan import QUIET, Kind, draw
from tests.chaos.process import REPOSITORY
from tests.chaos.run import run
from tests.chaos.servers import Broker
from tests.chaos.stage import Stage

KAFKA = REPOSITORY.parent / "shared" / "kafka" / "kafka"


def main() -> int:
    """0 = every run ended as the quiet one, and the disturbances bit."""
    asked = _arguments()
    if not KAFKA.exists():
        print(f"chaos needs a real Apache Kafka at {KAFKA}; skipped", file=sys.stderr)
        return 0
    logging.getLogger("librdkafka").setLevel(logging.CRITICAL)  # the broker is away when the plan says so
    folder = Path(tempfile.mkdtemp(prefix="driftline-chaos-"))
    broker = Broker(KAFKA, folder / "kafka")
    try:
        with embedded.postgres(options=["max_connections=100"]) as postgres:
            stage = Stage(broker, postgres, folder, users=asked.users, days=asked.days)
            print(f"{len(stage.records)} records a run; logs in {folder}", flush=True)
            quiet = run(stage, QUIET)
            print(line(quiet, quiet), flush=True)
            outcomes = []
            for seed in range(asked.seed, asked.seed + asked.runs):
                outcome = run(stage, draw(seed, asked.only))
                outcomes.append(outcome)
                print(line(outcome, quiet), flush=True)
                if any("verify" in what for what in outcome.trouble):
                    print(outcome.verify[-2000:], flush=True)
    finally:
        broker.kill()
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps([asdict(outcome) for outcome in (quiet, *outcomes)], indent=2))
    good, said = verdict(quiet, outcomes, only=bool(asked.only))
    print(said)
    return 0 if good else 1


def _arguments() -> argparse.Namespace:
    given = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    given.add_argument("--runs", type=int, default=20)
    given.add_argument("--seed", type=int, default=1, help="of the first run; the others follow")
    given.add_argument("--only", action="append", choices=get_args(Kind), default=[], help="disturb these alone")
    given.add_argument("--users", type=int, default=60)
    given.add_argument("--days", type=float, default=2.0, help="of simulated time, about 12 events a user and day")
    given.add_argument("--json", type=Path, default=REPOSITORY / "build" / "chaos" / "report.json")
    return given.parse_args()


sys.exit(main())
