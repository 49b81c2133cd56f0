"""Card payments whose frauds are known a week later, learnt by the running service: risks as they were issued.

    python -m benchmarks.outcomes --limit 300000 --json build/bench/outcomes.json

Of each arm the log-loss (nats a payment), the area under the ROC curve and the average precision of the predictions
as issued, over the payments whose label came; the first week has no label to learn from and is reported apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from benchmarks.recordings import DATA
from benchmarks.servers import ROOT, Absent
from benchmarks.service import Scope, service
from learners.registry import spec_of
from learners.tasks.outcome_measures import area_under_roc, average_precision, log_loss

ARMS = ("risk", *spec_of("risk").baselines)
UNTAUGHT = timedelta(days=7)
"""No label is known sooner."""


def main() -> int:
    """0 = every label was learnt."""
    given = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    given.add_argument("--limit", type=int, default=300_000, help="payments, the first in the order of time")
    given.add_argument("--json", type=Path, default=ROOT / "build" / "bench" / "outcomes.json")
    asked = given.parse_args()
    try:
        with service() as servers:
            found = measure(servers.scope("outcomes"), asked.limit)
    except Absent as error:
        print(error, file=sys.stderr)
        return 2
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(found, indent=2))
    show(found)
    return 0 if found["train"]["labels"] == found["labels"] else 1


def measure(scope: Scope, limit: int) -> dict[str, Any]:
    """Replays, ingests, learns, and reads what was predicted."""
    replayed = scope.told("replay", "fdh", "--folder", str(DATA), "--limit", str(limit))
    ingest = scope.told("ingest", "--once")
    started = time.monotonic()
    train = scope.told("train", "--learner", "risk", "--once")
    wall = time.monotonic() - started
    with psycopg.connect(scope.database) as connection:
        rows = connection.execute(
            "SELECT at, risks, coalesce(corrected_value, value) FROM prediction WHERE value IS NOT NULL"
        ).fetchall()
    first = min(at for at, _, _ in rows)
    taught = np.array([at >= first + UNTAUGHT for at, _, _ in rows])
    risks, y = np.array([risk for _, risk, _ in rows]), np.array([value for *_, value in rows])
    return {
        "labels": replayed["labels"],
        "ingest": ingest,
        "train": train,
        "wall_s": wall,
        "rows_per_s": train["rows"] / wall,
        "first week": scores(risks[~taught], y[~taught]),
        "after the first week": scores(risks[taught], y[taught]) if taught.any() else {},
    }


def scores(risks: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> dict[str, Any]:
    """By arm."""
    arms = {
        arm: {
            "log_loss": float(log_loss(risks[:, column], y).mean()),
            "auc": area_under_roc(risks[:, column], y > 0.5),
            "average_precision": average_precision(risks[:, column], y > 0.5),
        }
        for column, arm in enumerate(ARMS)
    }
    return {"payments": len(y), "frauds": int(y.sum()), "arms": arms}


def show(found: Mapping[str, Any]) -> None:
    """A table for people."""
    train = found["train"]
    speed = f"{found['wall_s']:.0f} s: {found['rows_per_s']:,.0f}/s"
    print(f"{train['rows']:,} rows ({train['labels']:,} labels) in {speed}")
    for part in ("first week", "after the first week"):
        if not found[part]:
            continue
        print(f"{part}: {found[part]['payments']:,} payments, {found[part]['frauds']:,} frauds")
        for arm, one in found[part]["arms"].items():
            print(
                f"  {arm:<10} log-loss {one['log_loss']:.5f}  AUC {one['auc']:.3f}"
                f"  average precision {one['average_precision']:.3f}"
            )


if __name__ == "__main__":
    sys.exit(main())
