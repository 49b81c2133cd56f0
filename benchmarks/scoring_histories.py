"""How long a ranking takes, by the length of the user's history: it should not matter.

    python -m benchmarks.scoring_histories --json build/bench/scoring-histories.json

One client asks `driftline score --learner sdim` about four users in turn, with 100 to 100,000 purchases each,
compacted as `maintain` compacts them. The window holds them all, so each table is the sum of a whole history;
NEW_EVENTS purchases lie behind its cursor. For comparison the same after the tables were lost (every answer builds
one from the sequence).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import psutil
import torch
from sqlalchemy import text

from benchmarks.scoring import request, server, some_items, until_ready
from benchmarks.scoring_worlds import World, ranking_states, shopping
from benchmarks.servers import create_database, postgres
from storage import migrate

LENGTHS: Final = (100, 1_000, 10_000, 100_000)
BATCHES: Final = 100
"""In which a history came; compacted after every tenth."""
NEW_EVENTS: Final = 8
CANDIDATES: Final = 50
OPTIONS: Final = {"last_n": 131_072}
GOAL: Final = 1.1
"""The slowest length against the fastest."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path, help="file for the figures")
    arguments.add_argument("--answers", type=int, default=2_000, help="of each length")
    arguments.add_argument("--rebuilt", type=int, default=5, help="answers of each length without a table")
    given = arguments.parse_args()
    busy = psutil.cpu_percent(interval=1.0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, postgres(Path(folder)) as admin:
        os.chmod(folder, 0o755)
        url = create_database(admin, "histories")
        migrate.upgrade(url)
        world = World(url, Path(folder) / "snapshots", learner="sdim", states=ranking_states(OPTIONS), options=OPTIONS)
        _fill(world)
        with server(world) as port:
            asyncio.run(_ask(port, 50, "cache_updated"))
            waits = asyncio.run(_ask(port, given.answers, "cache_updated"))
            with world.engine.begin() as connection:
                connection.execute(text("TRUNCATE signature_table"))
            rebuilt = asyncio.run(_ask(port, given.rebuilt, "cache_rebuilt"))
    report = _report(waits, rebuilt, busy=busy)
    print(_table_of(report))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(report, indent=2) + "\n")


def _fill(world: World) -> None:
    bought = {_user(length): shopping(length, [_user(length)], length)[_user(length)] for length in LENGTHS}
    next_offset = 0
    for batch in range(BATCHES):
        rows = [one for own in bought.values() for one in own[_part(own, batch) : _part(own, batch + 1)]]
        next_offset = world.write(rows)
        if batch % 10 == 9:
            world.compact(list(bought))
    world.publish()
    world.write_tables(world.published(), bought, next_offset)
    world.write(
        [one for user, own in bought.items() for one in shopping(1, [user], len(own) + NEW_EVENTS)[user][len(own) :]]
    )
    world.settle()


def _user(length: int) -> str:
    return f"user-{length}"


def _part(rows: Sequence[object], batch: int) -> int:
    return len(rows) * batch // BATCHES


async def _ask(port: int, answers: int, state: str) -> dict[int, list[float]]:
    """Milliseconds of each answer, by length; in turn, so that whatever else the machine does meets all alike."""
    await until_ready(port)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    choice, waits = random.Random(5), {length: list[float]() for length in LENGTHS}
    for n in range(answers * len(LENGTHS)):
        length = LENGTHS[n % len(LENGTHS)]
        body = {"user_id": _user(length), "candidates": some_items(choice, CANDIDATES), "top": 10}
        started = time.perf_counter()
        status, said = await request(reader, writer, "POST /v1/score", json.dumps(body).encode())
        waits[length].append(1e3 * (time.perf_counter() - started))
        answer = json.loads(said)
        if status != 200 or (answer["state"], answer["events_seen"]) != (state, length + NEW_EVENTS):
            raise RuntimeError(f"not the answer that was to be timed: {status} {said[:500]!r}")
    writer.close()
    await writer.wait_closed()
    return waits


def _report(waits: dict[int, list[float]], rebuilt: dict[int, list[float]], *, busy: float) -> dict[str, Any]:
    lengths = {
        str(length): {
            "p50_ms": median(found),
            "p99_ms": float(np.percentile(found, 99)),
            "rebuilt_p50_ms": median(rebuilt[length]),
            "answers": len(found),
        }
        for length, found in waits.items()
    }
    medians = [one["p50_ms"] for one in lengths.values()]
    return {
        "lengths": lengths,
        "slowest / fastest, p50": max(medians) / min(medians),
        "goal": GOAL,
        "machine": {"cores": psutil.cpu_count(), "busy_before_percent": busy, "torch": torch.__version__},
    }


def _table_of(report: dict[str, Any]) -> str:
    lines = [f"{'events':>10}{'p50 ms':>10}{'p99 ms':>10}{'rebuilt p50 ms':>16}"]
    lines += [
        f"{int(length):>10,}{one['p50_ms']:>10.2f}{one['p99_ms']:>10.2f}{one['rebuilt_p50_ms']:>16.1f}"
        for length, one in report["lengths"].items()
    ]
    lines.append(f"slowest / fastest, p50: {report['slowest / fastest, p50']:.3f} (goal {report['goal']})")
    return "\n".join([*lines, f"machine busy before: {report['machine']['busy_before_percent']:.0f} %"])


if __name__ == "__main__":
    main()
