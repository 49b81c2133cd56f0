"""`python -m tests.chaos --runs 20 [--seed 1]`: runs, a table, and exit 1 if any run can be told from the quiet one."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from driftline import local
from tests.chaos.plan import QUIET, draw
from tests.chaos.process import REPOSITORY
from tests.chaos.run import Outcome, Stage, run

KAFKA = REPOSITORY.parent / "shared" / "kafka" / "kafka"


def main() -> int:
    """0 = every run ended as the quiet one, and the disturbances bit."""
    given = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    given.add_argument("--runs", type=int, default=20)
    given.add_argument("--seed", type=int, default=1, help="of the first run; the others follow")
    given.add_argument("--users", type=int, default=120)
    given.add_argument("--days", type=float, default=2.0, help="of simulated time, about 12 events a user and day")
    given.add_argument("--json", type=Path, default=REPOSITORY / "build" / "chaos" / "report.json")
    asked = given.parse_args()
    if not KAFKA.exists():
        print(f"chaos needs a real Apache Kafka at {KAFKA}; skipped", file=sys.stderr)
        return 0
    folder = Path(tempfile.mkdtemp(prefix="driftline-chaos-"))
    broker = folder / "kafka"
    bootstrap = subprocess.run([KAFKA, "start", broker], check=True, capture_output=True, text=True).stdout.strip()
    try:
        with local.postgres(options=["max_connections=100"]) as postgres:
            stage = Stage(bootstrap, postgres, folder, users=asked.users, days=asked.days)
            print(f"{len(stage.records)} records a run; logs in {folder}", flush=True)
            quiet = run(stage, QUIET)
            _show(quiet, quiet)
            outcomes = []
            for seed in range(asked.seed, asked.seed + asked.runs):
                outcomes.append(run(stage, draw(seed)))
                _show(outcomes[-1], quiet)
    finally:
        subprocess.run([KAFKA, "kill", broker], check=False)
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps([asdict(outcome) for outcome in (quiet, *outcomes)], indent=2))
    return _verdict(quiet, outcomes)


def _show(outcome: Outcome, quiet: Outcome) -> None:
    same = outcome.sha256 == quiet.sha256 and outcome.sha256 != "none"
    print(
        f"seed {outcome.seed:>3}  {outcome.seconds:5.1f} s  verify {'clean' if outcome.clean else 'NOT CLEAN'}  "
        f"sha256 {outcome.sha256[:12]} {'same' if same else 'DIFFERENT'}  ingest kills {outcome.ingest_kills} "
        f"rolled back {outcome.rolled_back} fenced {outcome.fenced} rebalances {outcome.rebalances}  "
        f"train kills {outcome.train_kills} steps repeated {outcome.repeated_steps}  replay {outcome.replayed}"
        + (f"  TROUBLE {outcome.trouble}" if outcome.trouble else ""),
        flush=True,
    )
    if not outcome.clean:
        print(outcome.verify[-2000:], flush=True)


def _verdict(quiet: Outcome, outcomes: list[Outcome]) -> int:
    good = [
        o for o in (quiet, *outcomes)
        if o.clean and o.sha256 == quiet.sha256 != "none" and not o.trouble and "DIFFERENT" not in o.replayed
    ]  # fmt: skip
    rolled_back = sum(o.rolled_back for o in outcomes)
    repeated = sum(o.repeated_steps for o in outcomes)
    fenced = sum(o.fenced for o in outcomes)
    bit = bool(rolled_back and repeated and fenced)
    print(
        f"over {len(outcomes)} runs: ingest kills {sum(o.ingest_kills for o in outcomes)}, batches rolled back "
        f"{rolled_back}, commits fenced {fenced}, rebalances {sum(o.rebalances for o in outcomes)}, train kills "
        f"{sum(o.train_kills for o in outcomes)}, steps repeated {repeated}"
        + ("" if bit else "; NOT EVERY KIND OF DISTURBANCE BIT")
    )
    failed = len(outcomes) + 1 - len(good)
    print(f"{len(good)} passed, {failed} failed")
    return 0 if not failed and (bit or len(outcomes) < 5) else 1


sys.exit(main())
