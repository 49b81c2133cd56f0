"""What `drift` finds: thresholds fixed on worlds without a change, told on others.

    python -m benchmarks.drift thresholds     # seeds 0-19 without a change -> constants of streams/drift/detectors.py
    python -m benchmarks.drift report         # seeds 100-119: found, delay in events, false alarms
    python -m benchmarks.drift labels         # the same seeds: rates of fraud that stay, double and grow fivefold
    python -m benchmarks.drift stackoverflow  # every alarm over two years of badges

Progress is that of the counting learner with itself frozen as reference, steps of 32 rows; it is kept under
build/bench/drift, so that a second call only detects.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import torch

from benchmarks.drift_runs import (
    CHANGE_DAY,
    FOLDER,
    LABELS,
    Alarmed,
    Planted,
    changing,
    kept,
    outcomes,
    planted,
    run,
    steps,
    still,
    told,
)  # fmt: skip
from benchmarks.drift_streams import labels, stackoverflow
from benchmarks.recordings import DATA
from contracts.records import Progress
from driftline.simulate.scenario import DAY_S, Drift, Scenario
from streams.drift.detectors import BUDGET, THRESHOLDS, Thresholds

THRESHOLD_SEEDS, REPORT_SEEDS = range(20), range(100, 120)
NEVER = 1e9
EXCESSES = (20.0, 25.0, 30.0, 35.0, 40.0, 50.0)
DELTAS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)


def main() -> int:
    """0 = done."""
    given = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    given.add_argument("what", choices=["thresholds", "report", "labels", "stackoverflow"])
    given.add_argument("--seeds", type=int, default=20, help="so many of them, to see whether it works")
    asked = given.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    whats = {"thresholds": thresholds, "report": report, "labels": labelled, "stackoverflow": recorded}
    found = whats[asked.what](asked.seeds)
    (FOLDER / f"{asked.what}.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    return 0


def thresholds(seeds: int) -> dict[str, Any]:
    """False alarms per 100,000 events of each test alone, for each threshold of a grid; and the first that has half
    of the budget."""
    streams = [steps(f"still-{seed}", still(seed)) for seed in THRESHOLD_SEEDS[:seeds]]
    rates: dict[str, list[tuple[float, float]]] = {"excess": [], "delta": []}
    for excess in EXCESSES:
        rates["excess"].append((excess, _rate(streams, Thresholds(excess=excess, delta=0.0))))
        print("Page-Hinkley, excess", *rates["excess"][-1], flush=True)
    for delta in DELTAS:
        rates["delta"].append((delta, _rate(streams, Thresholds(excess=NEVER, delta=delta))))
        print("ADWIN, delta", *rates["delta"][-1], flush=True)
    chosen = {name: next((value for value, found in grid if found <= BUDGET / 2), None) for name, grid in rates.items()}
    print("chosen:", chosen)
    return {"budget": BUDGET, "rates": rates, "chosen": chosen}


def report(seeds: int) -> dict[str, Any]:
    """Of changes: found, and events until then. Of worlds without: false alarms."""
    chosen = REPORT_SEEDS[:seeds]
    quiet = [run(steps(f"still-{seed}", still(seed))) for seed in chosen]
    _show_quiet(quiet)
    print("| drift | found | delay in events, least / median / most | first told by | false before |")
    print("|---|---|---|---|---|")
    kinds: dict[str, list[Planted]] = {}
    for drift in Drift:
        worlds = {seed: changing(seed, drift) for seed in chosen}
        kinds[drift.value] = [planted(world, steps(f"{drift.value}-{seed}", world)) for seed, world in worlds.items()]
        _show(drift.value, kinds[drift.value])
    return {
        "thresholds": THRESHOLDS,
        "budget": BUDGET,
        "still": [{"events": done.events, "alarms": [alarm for _, alarm in done.alarms]} for done in quiet],
        **kinds,
    }


def labelled(seeds: int) -> dict[str, Any]:
    """Of labels: false alarms of a rate that stays, and labels until a change of it is told."""
    chosen = REPORT_SEEDS[:seeds]
    quiet = [told(outcomes(still(seed), seed=seed), LABELS) for seed in chosen]
    _show_quiet(quiet, of="labels")
    found: dict[str, Any] = {"still": [{"labels": done.events, "alarms": done.alarms} for done in quiet]}
    for times in (2.0, 5.0):
        delays = [_delay(still(seed), told(outcomes(still(seed), seed=seed, times=times), LABELS)) for seed in chosen]
        known = sorted(delay for delay in delays if delay is not None)
        ends = f"{known[0]:,} / {statistics.median(known):,.0f} / {known[-1]:,}" if known else "-"
        print(f"{times:g} times as many: found {len(known)} of {len(delays)}, labels until then {ends}", flush=True)
        found[f"{times:g} times"] = delays
    return found


def _delay(scenario: Scenario, done: Alarmed) -> int | None:
    """Labels of payments from CHANGE_DAY on, until the first alarm that places a change of theirs; None: none came."""
    begins = scenario.start.timestamp() + CHANGE_DAY * DAY_S
    before = sum(label.ref_time.timestamp() < begins for label in labels(scenario))
    return next((events - before for events, alarm in done.alarms if events > before), None)


def recorded(_: int) -> list[Any]:
    """Every alarm over the StackOverflow recording."""
    done = run(kept("stackoverflow", stackoverflow(DATA)))
    for events, alarm in done.alarms:
        shifts = ", ".join(f"{name} {was:.3f} -> {now:.3f}" for name, (was, now) in list(alarm.shifts.items())[:3])
        print(
            f"{events:7,} {alarm.raised_at:%Y-%m-%d} {alarm.series:22} {alarm.detector:12} "
            f"since {alarm.after.first_event_at:%Y-%m-%d} z {alarm.z:6.1f}  {shifts}"
        )
    print(f"{len(done.alarms)} alarms in {done.events:,} events")
    return [alarm for _, alarm in done.alarms]


def _rate(streams: list[list[Progress]], chosen: Thresholds) -> float:
    """False alarms per 100,000 events of worlds without a change."""
    return _per_100k([run(records, chosen) for records in streams])


def _per_100k(runs: Sequence[Alarmed]) -> float:
    return 1e5 * sum(len(done.alarms) for done in runs) / sum(done.events for done in runs)


def _show_quiet(runs: Sequence[Alarmed], *, of: str = "events") -> None:
    by = Counter(f"{alarm.series} ({alarm.detector})" for done in runs for _, alarm in done.alarms)
    print(f"without a change: {by.total()} false alarms in {sum(done.events for done in runs):,} {of}, ", end="")
    print(f"{_per_100k(runs):.2f} per 100,000 against a budget of {BUDGET:.2f}: {_counted(by) or 'none'}")


def _show(kind: str, worlds: Sequence[Planted]) -> None:
    """A row of the report's table."""
    all_changes = [change for world in worlds for change in world.changes]
    delays = sorted(change.delay for change in all_changes if change.delay is not None)
    told = " / ".join(f"{delays[round(q * (len(delays) - 1))]:,}" for q in (0.0, 0.5, 1.0)) if delays else "-"
    firsts = Counter(f"{change.series} ({change.detector})" for change in all_changes if change.series)
    false, events = sum(world.false for world in worlds), sum(world.quiet_events for world in worlds)
    print(
        f"| {kind} | {len(delays)} of {len(all_changes)} | {told} | {_counted(firsts)} | {false} in {events:,} |",
        flush=True,
    )


def _counted(names: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in names.most_common())


if __name__ == "__main__":
    sys.exit(main())
