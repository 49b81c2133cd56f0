"""Worlds with and without a change, their progress kept on disk, their labels, and what `drift` says of both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from benchmarks.drift_streams import Row, labels, progress, simulated
from benchmarks.servers import ROOT
from contracts import topics
from contracts.codec import encode
from contracts.records import DriftAlarm, Progress
from driftline.simulate.scenario import DAY_S, Drift, Scenario
from driftline.simulate.schedule import changes
from runtime.kafka import PartitionOfTopic
from streams.drift.detectors import THRESHOLDS, Thresholds
from streams.drift.drift_series import Signals, of_label, of_progress
from streams.drift.subject_state import OpenBlock, Watch, added, closed, emptied

FOLDER = ROOT / "build" / "bench" / "drift"
DAYS, CHANGE_DAY, LASTS_DAYS = 20.0, 12.0, 2.0

STREAM = PartitionOfTopic(cluster_id="", topic_id="", topic=topics.PROGRESS, partition=0)
LABELS = PartitionOfTopic(cluster_id="", topic_id="", topic=topics.LABELS, partition=0)


@dataclass(frozen=True, kw_only=True)
class Alarmed:
    """What a run of `drift` over a stream gave."""

    events: int
    alarms: tuple[tuple[int, DriftAlarm], ...]
    """(events seen when it was raised, the alarm)."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A planted change, and the first alarm behind it."""

    events: int
    """From the change to the next one, or to the end."""
    delay: int | None
    """Events from the change to the alarm; None = none came before the next change."""
    series: str | None
    detector: str | None
    misplaced_s: float | None
    """Event time at which the alarm places the change, less the true one."""


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A world with changes."""

    quiet_events: int
    """Before the first change."""
    false: int
    """Alarms there."""
    changes: tuple[Found, ...]


def still(seed: int) -> Scenario:
    """A world without a change, some 120,000 events."""
    return Scenario(seed=seed, change_after_s=None, duration_s=DAYS * DAY_S)


def changing(seed: int, drift: Drift) -> Scenario:
    """The same world with a change after 12 of its 20 days, or with one every other day from there."""
    lasts = LASTS_DAYS * DAY_S
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


def outcomes(scenario: Scenario, *, seed: int, times: float = 1.0) -> Iterator[Signals]:
    """A world's labels, as one partition; from CHANGE_DAY on `times` as many of them say fraud, from 1 on."""
    rng, begins = np.random.default_rng(seed), scenario.start.timestamp() + CHANGE_DAY * DAY_S
    frauds = known = 0
    for offset, label in enumerate(labels(scenario)):
        value = label.value
        if label.ref_time.timestamp() < begins:
            frauds, known = frauds + (value > 0), known + 1
        elif value == 0 and rng.random() < (times - 1) * frauds / (known - frauds):
            value = 1.0
        yield of_label(msgspec.structs.replace(label, value=value), partition=0, offset=offset)


def run(records: Iterable[Progress], chosen: Thresholds = THRESHOLDS) -> Alarmed:
    """What `drift` says of a learner."""
    return told(map(of_progress, records), STREAM, chosen)


def told(signals: Iterable[Signals], stream: PartitionOfTopic, chosen: Thresholds = THRESHOLDS) -> Alarmed:
    """What `drift` says of one subject."""
    watch, block, events = Watch(), OpenBlock(), 0
    alarms: list[tuple[int, DriftAlarm]] = []
    for offset, seen in enumerate(signals):
        events += seen.rows
        block = added(block, seen, offset)
        if block.full:
            watch, raised = closed(watch, block, seen.subject, stream=stream, thresholds=chosen)
            block = emptied(block)
            alarms += [(events, alarm) for alarm in raised]
    return Alarmed(events=events, alarms=tuple(alarms))


def planted(scenario: Scenario, records: list[Progress]) -> Planted:
    """A world with changes: alarms before the first are false, the first behind each finds it."""
    times = [scenario.start.timestamp() + change.begins_s for change in changes(scenario)]
    done = run(records)
    ends = [sum(record.rows for record in records if record.last_event_at.timestamp() < at) for at in times]
    ends.append(done.events)
    return Planted(
        quiet_events=ends[0],
        false=sum(events <= ends[0] for events, _ in done.alarms),
        changes=tuple(_found(done, at, *ends[n : n + 2]) for n, at in enumerate(times)),
    )


def _found(done: Alarmed, at: float, begin: int, end: int) -> Found:
    events, alarm = next((pair for pair in done.alarms if begin < pair[0] <= end), (0, None))
    return Found(
        events=end - begin,
        delay=events - begin if alarm else None,
        series=alarm.series if alarm else None,
        detector=alarm.detector if alarm else None,
        misplaced_s=alarm.after.first_event_at.timestamp() - at if alarm else None,
    )
