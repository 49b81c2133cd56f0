"""What `drift` finds: thresholds fixed on worlds without a change, told on others.

    python -m benchmarks.drift thresholds     # seeds 0-19 without a change -> the constants of streams/detectors.py
    python -m benchmarks.drift report         # seeds 100-119: found, delay in events, false alarms
    python -m benchmarks.drift stackoverflow  # every alarm over two years of badges

Progress is that of the counting learner with itself frozen as reference, steps of 32 rows; it is kept under
build/bench/drift, so that a second call only detects.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from benchmarks.drift_streams import Row, progress, simulated, stackoverflow
from benchmarks.recordings import DATA
from benchmarks.servers import ROOT
from contracts.codec import encode
from contracts.records import DriftAlarm, Progress
from driftline.simulate.scenario import DAY_S, Drift, Scenario
from streams.detectors import BUDGET, THRESHOLDS, Thresholds
from streams.signals import of_progress
from streams.watch import OpenBlock, Watch, added, closed, emptied

FOLDER = ROOT / "build" / "bench" / "drift"
THRESHOLD_SEEDS, REPORT_SEEDS = range(20), range(100, 120)
DAYS, CHANGE_DAY, GRADUAL_DAYS = 20.0, 12.0, 2.0
NEVER = 1e9
EXCESSES = (20.0, 25.0, 30.0, 35.0, 40.0, 50.0)
DELTAS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)


@dataclass(frozen=True, kw_only=True)
class Alarmed:
    """What a run of `drift` over a stream gave."""

    events: int
    alarms: tuple[tuple[int, DriftAlarm], ...]
    """(events seen when it was raised, the alarm)."""


def main() -> int:
    """0 = done."""
    given = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    given.add_argument("what", choices=["thresholds", "report", "stackoverflow"])
    given.add_argument("--seeds", type=int, default=20, help="so many of them, to see whether it works")
    asked = given.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    found = {"thresholds": thresholds, "report": report, "stackoverflow": recorded}[asked.what](asked.seeds)
    (FOLDER / f"{asked.what}.json").write_text(json.dumps(found, indent=2))
    return 0


def thresholds(seeds: int) -> dict[str, Any]:
    """False alarms per 100,000 events of each test alone, for each threshold of a grid; and the first that has half
    of the budget."""
    streams = [steps(f"still-{seed}", still(seed)) for seed in THRESHOLD_SEEDS[:seeds]]
    rates: dict[str, list[tuple[float, float]]] = {"excess": [], "delta": []}
    for excess in EXCESSES:
        rates["excess"].append((excess, rate(streams, Thresholds(excess=excess, delta=0.0))))
        print("Page-Hinkley, excess", *rates["excess"][-1], flush=True)
    for delta in DELTAS:
        rates["delta"].append((delta, rate(streams, Thresholds(excess=NEVER, delta=delta))))
        print("ADWIN, delta", *rates["delta"][-1], flush=True)
    chosen = {name: next((value for value, found in grid if found <= BUDGET / 2), None) for name, grid in rates.items()}
    print("chosen:", chosen)
    return {"budget": BUDGET, "rates": rates, "chosen": chosen}


def report(seeds: int) -> dict[str, Any]:
    """Of changes: found, and events until then. Of worlds without: false alarms."""
    found: dict[str, Any] = {"thresholds": msgspec.to_builtins(THRESHOLDS), "budget": BUDGET}
    runs = [run(steps(f"still-{seed}", still(seed))) for seed in REPORT_SEEDS[:seeds]]
    found["still"] = summed(runs)
    for drift in (Drift.ABRUPT, Drift.GRADUAL):
        worlds = {seed: changing(seed, drift) for seed in REPORT_SEEDS[:seeds]}
        found[drift.value] = [planted(worlds[seed], steps(f"{drift.value}-{seed}", worlds[seed])) for seed in worlds]
    show(found)
    return found


def recorded(_: int) -> list[dict[str, Any]]:
    """Every alarm over the StackOverflow recording."""
    done = run(kept("stackoverflow", stackoverflow(DATA)))
    for events, alarm in done.alarms:
        shifts = ", ".join(f"{name} {was:.3f} -> {now:.3f}" for name, (was, now) in list(alarm.shifts.items())[:3])
        print(
            f"{events:7,} {alarm.raised_at:%Y-%m-%d} {alarm.series:22} {alarm.detector:12} "
            f"since {alarm.after.first_event_at:%Y-%m-%d} z {alarm.z:6.1f}  {shifts}"
        )
    print(f"{len(done.alarms)} alarms in {done.events:,} events")
    return [msgspec.to_builtins(alarm) for _, alarm in done.alarms]


def still(seed: int) -> Scenario:
    """A world without a change, some 120,000 events."""
    return Scenario(seed=seed, change_after_s=None, duration_s=DAYS * DAY_S)


def changing(seed: int, drift: Drift) -> Scenario:
    """The same world with a change."""
    lasts = GRADUAL_DAYS * DAY_S
    change = CHANGE_DAY * DAY_S
    return Scenario(seed=seed, change_after_s=change, drift=drift, change_lasts_s=lasts, duration_s=DAYS * DAY_S)


def steps(name: str, scenario: Scenario) -> list[Progress]:
    """The progress of a world."""
    return kept(name, simulated(scenario))


def kept(name: str, rows: Iterable[Row]) -> list[Progress]:
    """The progress of a stream, read from the folder if it is there."""
    file = FOLDER / f"{name}.jsonl"
    if not file.exists():
        unfinished = file.with_suffix(".part")
        with unfinished.open("wb") as lines:
            lines.writelines(encode(record) + b"\n" for record in progress(rows))
        unfinished.rename(file)
    return [msgspec.json.decode(line, type=Progress) for line in file.read_bytes().splitlines()]


def run(records: Iterable[Progress], chosen: Thresholds = THRESHOLDS) -> Alarmed:
    """What `drift` says of it."""
    watch, block, events = Watch(), OpenBlock(), 0
    alarms: list[tuple[int, DriftAlarm]] = []
    for offset, record in enumerate(records):
        seen = of_progress(record)
        events += record.rows
        block = added(block, seen, offset)
        if block.full:
            watch, raised = closed(watch, block, seen.subject, partition=0, thresholds=chosen)
            block = emptied(block)
            alarms += [(events, alarm) for alarm in raised]
    return Alarmed(events=events, alarms=tuple(alarms))


def rate(streams: list[list[Progress]], chosen: Thresholds) -> float:
    """False alarms per 100,000 events of worlds without a change."""
    runs = [run(records, chosen) for records in streams]
    return 1e5 * sum(len(done.alarms) for done in runs) / sum(done.events for done in runs)


def summed(runs: list[Alarmed]) -> dict[str, Any]:
    events, series = sum(done.events for done in runs), dict[str, int]()
    for _, alarm in (pair for done in runs for pair in done.alarms):
        series[f"{alarm.series} {alarm.detector}"] = series.get(f"{alarm.series} {alarm.detector}", 0) + 1
    alarms = sum(len(done.alarms) for done in runs)
    return {"events": events, "alarms": alarms, "per_100k": 1e5 * alarms / events, "series": series}


def planted(scenario: Scenario, records: list[Progress]) -> dict[str, Any]:
    """One world with a change: alarms before it are false, the first that ends behind it finds it."""
    at = scenario.start.timestamp() + (scenario.change_after_s or 0.0)
    before = sum(record.rows for record in records if record.last_event_at.timestamp() < at)
    done = run(records)
    after = [(events, alarm) for events, alarm in done.alarms if events > before]
    first = after[0] if after else None
    return {
        "events_before": before,
        "false": len(done.alarms) - len(after),
        "delay": first[0] - before if first else None,
        "series": first[1].series if first else None,
        "detector": first[1].detector if first else None,
        "misplaced_s": first[1].after.first_event_at.timestamp() - at if first else None,
        "alarms": len(after),
        "all": sorted({alarm.series for _, alarm in after}),
    }


def show(found: dict[str, Any]) -> None:
    """The table of the report."""
    quiet = found["still"]
    print(f"without a change: {quiet['alarms']} false alarms in {quiet['events']:,} events, ", end="")
    print(f"{quiet['per_100k']:.2f} per 100,000 against a budget of {found['budget']:.2f}: {quiet['series']}")
    for kind in (Drift.ABRUPT, Drift.GRADUAL):
        worlds = found[kind.value]
        delays = sorted(world["delay"] for world in worlds if world["delay"] is not None)
        told = " / ".join(f"{delays[round(q * (len(delays) - 1))]:,}" for q in (0.0, 0.5, 1.0)) if delays else "-"
        firsts = sorted({f"{world['series']} ({world['detector']})" for world in worlds if world["series"]})
        print(f"{kind.value}: found {len(delays)} of {len(worlds)}; events until then, least / median / most: {told}")
        false, events = sum(world["false"] for world in worlds), sum(world["events_before"] for world in worlds)
        print(f"    false alarms before the change: {false} in {events:,} events; first told by {', '.join(firsts)}")


if __name__ == "__main__":
    sys.exit(main())
