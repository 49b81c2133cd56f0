"""From runs to the table, the goals and the JSON file."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from statistics import median
from typing import Any

import psutil

from benchmarks.contender import CONTENDERS, Run


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All runs of one contender."""

    name: str
    title: str
    runs: int
    events_per_s: float
    """Median."""
    slowest: float
    fastest: float
    peak_mb: float
    """Largest of its runs, in MB of 1,000,000 bytes."""
    timing: str


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One thing the measurement must show."""

    text: str
    wanted: float
    found: float | None
    """None = a contender did not run."""
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        if self.found is None:
            return None
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted


def summarise(runs: Sequence[Run]) -> list[Summary]:
    """In the order of `CONTENDERS`."""
    summaries = []
    for contender in CONTENDERS:
        own = [run for run in runs if run.contender == contender.name]
        if own:
            speeds = [run.events_per_s for run in own]
            summaries.append(
                Summary(
                    name=contender.name,
                    title=contender.title,
                    runs=len(own),
                    events_per_s=median(speeds),
                    slowest=min(speeds),
                    fastest=max(speeds),
                    peak_mb=max(run.peak_bytes for run in own) / 1e6,
                    timing="own" if all(run.timing == "own" for run in own) else "process",
                )
            )
    return summaries


def goals(summaries: Sequence[Summary]) -> list[Goal]:
    """What the issue asks of medians, and of the reference itself."""
    speed = {summary.name: summary.events_per_s for summary in summaries}
    memory = {summary.name: summary.peak_mb for summary in summaries}

    def ratio(above: str, below: str) -> float | None:
        return speed[above] / speed[below] if above in speed and below in speed else None

    return [
        Goal(
            text="row loop / Quix count (else it is no reference)",
            wanted=1.1,
            found=ratio("row_loop", "quix_count"),
        ),
        Goal(text="Driftline / row loop", wanted=1.3, found=ratio("driftline", "row_loop")),
        Goal(text="Driftline / Quix count", wanted=1.5, found=ratio("driftline", "quix_count")),
        Goal(text="Driftline / Quix Postgres sink", wanted=3.0, found=ratio("driftline", "quix_postgres")),
        Goal(text="Driftline / Faust count", wanted=25.0, found=ratio("driftline", "faust_count")),
        Goal(text="Driftline peak memory, MB", wanted=600.0, found=memory.get("driftline"), at_most=True),
    ]


def table(summaries: Sequence[Summary]) -> str:
    """Speeds and ratios, for people."""
    speed = {summary.name: summary.events_per_s for summary in summaries}
    head = f"{'':34}{'median/s':>10}{'slowest':>10}{'fastest':>10}{'x row loop':>12}{'x Quix':>9}{'peak MB':>9}"
    lines = [head, "-" * len(head)]
    for one in summaries:
        beside_loop, beside_quix = (_times(one, speed.get(name)) for name in ("row_loop", "quix_count"))
        lines.append(
            f"{one.title:34}{one.events_per_s:>10,.0f}{one.slowest:>10,.0f}{one.fastest:>10,.0f}"
            f"{beside_loop:>12}{beside_quix:>9}{one.peak_mb:>9,.0f}"
            f"{'  (whole process timed)' if one.timing == 'process' else ''}"
        )
    return "\n".join(lines)


def goal_lines(found: Sequence[Goal]) -> str:
    words = {True: "met", False: "MISSED", None: "not measured"}
    return "\n".join(
        f"{words[goal.met]:>13}  {goal.text}: {'-' if goal.found is None else f'{goal.found:,.2f}'}"
        f" (wanted {'at most' if goal.at_most else 'at least'} {goal.wanted:g})"
        for goal in found
    )


def machine(*, busy_percent: float, postgres: str, peers: dict[str, str]) -> dict[str, Any]:
    """What the numbers depend on."""
    names = ("confluent-kafka", "msgspec", "pgpq", "psycopg", "pyarrow")
    return {
        "cores": psutil.cpu_count(),
        "cpu": _cpu_model(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "postgres": postgres,
        "versions": {name: version(name) for name in names} | peers,
        "busy_before_percent": busy_percent,
    }


def as_json(summaries: Sequence[Summary], found: Sequence[Goal], runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "summary": [asdict(summary) for summary in summaries],
        "goals": [asdict(goal) | {"met": goal.met} for goal in found],
        "runs": [asdict(run) for run in runs],
    }


def _times(one: Summary, base: float | None) -> str:
    return f"{one.events_per_s / base:.2f}" if base else "-"


def _cpu_model() -> str:
    with open("/proc/cpuinfo") as lines:
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
