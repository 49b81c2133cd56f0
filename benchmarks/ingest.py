"""Ingest speed: Driftline beside a plain loop, Quix Streams and Faust, on one real Kafka and one Postgres.

    python -m benchmarks.ingest --events 1000000 --users 20000 --runs 5 --json build/bench/ingest.json

Each run gives each contender a fresh database, consumer group and state folder; the order rotates. What is
timed, and what is unequal between the contenders, stands in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import psutil

from benchmarks import report, servers, verify
from benchmarks.contender import CONTENDERS, PEERS_PYTHON, Contender, Failed, Run, measure
from benchmarks.contenders.task import Task
from benchmarks.workload import PARTITIONS, TOPIC, Workload, fill

BUSY_PERCENT = 10.0
"""Above it the machine is not quiet enough for a number worth quoting."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 measured, 1 a contender failed or left a wrong result, 2 a server is absent."""
    options = _parse(arguments)
    busy = psutil.cpu_percent(interval=3.0)
    if busy > BUSY_PERCENT:
        _say(f"CAUTION: the machine is {busy:.0f} % busy before the start; these numbers are not to be quoted.")
    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as folder:
        try:
            return _bench(options, Path(folder), busy)
        except servers.Absent as absent:
            _say(f"Skipped: {absent}")
            return 2


def _bench(options: argparse.Namespace, folder: Path, busy: float) -> int:
    contenders = _present(options.contenders)
    logs: Path = options.json.parent / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    workload = Workload(events=options.events, users=options.users, seed=options.seed)
    with servers.kafka(folder / "kafka") as bootstrap, servers.postgres(folder / "postgres") as admin_url:
        began = time.monotonic()
        fill(bootstrap, workload)
        _say(
            f"{workload.events:,} records ({workload.size / 1e6:,.0f} MB, {workload.users:,} users, "
            f"{workload.duplicates:,} duplicates, {workload.malformed:,} malformed) "
            f"in {time.monotonic() - began:.0f} s"
        )
        runs: list[Run] = []
        failures: list[str] = []
        for number in range(options.runs):
            turn = number % len(contenders)
            for contender in contenders[turn:] + contenders[:turn]:
                try:
                    run = _one(contender, number, workload, bootstrap, admin_url, folder, logs, options.limit_s)
                except (Failed, verify.Wrong) as failure:
                    _say(f"FAILED  {failure}")
                    failures.append(str(failure))
                    continue
                _say(
                    f"run {number + 1}  {contender.title:34}{run.events_per_s:>10,.0f}/s"
                    f"{run.peak_bytes / 1e6:>7,.0f} MB"
                )
                runs.append(run)
        facts = report.machine(busy_percent=busy, postgres=servers.postgres_version(admin_url), peers=_peer_versions())
    summaries = report.summarise(runs)
    found = report.goals(summaries)
    _say(f"\n{report.table(summaries)}\n\n{report.goal_lines(found)}")
    shape = {key: value for key, value in asdict(workload).items() if key != "parseable_by_key"} | {
        "topic": TOPIC,
        "partitions": PARTITIONS,
    }
    result = {"workload": shape, "machine": facts, "postgres_settings": servers.POSTGRES_SETTINGS, "failures": failures}
    options.json.write_text(json.dumps(result | report.as_json(summaries, found, runs), indent=2) + "\n")
    _say(f"\nwritten: {options.json}")
    return 1 if failures else 0


def _one(
    contender: Contender,
    number: int,
    workload: Workload,
    bootstrap: str,
    admin_url: str,
    folder: Path,
    logs: Path,
    limit_s: float,
) -> Run:
    """One run of one contender on a clean floor, its result checked."""
    name = f"bench_{contender.name}_{number}"
    state = folder / name
    state.mkdir()
    task = Task(
        bootstrap=bootstrap,
        topic=TOPIC,
        group=name,
        postgres_url=servers.create_database(admin_url, name),
        state_dir=str(state),
        records=workload.events,
        parseable=workload.parseable,
    )
    run = measure(contender, task, number=number, log=logs / f"{name}.log", limit_s=limit_s)
    contender.check(task, workload)
    servers.drop_database(admin_url, name)
    return run


def _present(names: str) -> list[Contender]:
    """The contenders asked for that can run here."""
    wanted = [one for one in CONTENDERS if names == "all" or one.name in names.split(",")]
    for one in wanted:
        if one.absent():
            _say(f"Skipped: {one.title}: {one.absent()}")
    present = [one for one in wanted if not one.absent()]
    if not present:
        raise servers.Absent(f"none of the contenders {names} can run here")
    return present


def _peer_versions() -> dict[str, str]:
    if not PEERS_PYTHON.exists():
        return {}
    names = ("quixstreams", "faust-streaming", "confluent-kafka", "orjson", "rocksdict")
    code = f"from importlib.metadata import version; print(*map(version, {names}))"
    said = subprocess.run([PEERS_PYTHON, "-c", code], capture_output=True, text=True, check=True)
    return {f"peers' {name}": found for name, found in zip(names, said.stdout.split(), strict=True)}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest", description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=Workload(events=0, users=0).seed)
    parser.add_argument("--contenders", default="all", help="comma list of " + ",".join(c.name for c in CONTENDERS))
    parser.add_argument("--limit-s", type=float, default=900.0, help="longest run of one contender")
    parser.add_argument("--json", type=Path, default=servers.ROOT / "build" / "bench" / "ingest.json")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
