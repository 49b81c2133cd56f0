"""What an alarm says: what changed, in which window and offsets, how sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from msgspec import Struct

from contracts.clocks import newest_good
from contracts.records import DriftAlarm, DriftWindow
from runtime.kafka import PartitionOfTopic
from streams.drift.detectors import BUDGET, DetectedChange
from streams.drift.drift_series import WatchedSubject

SHIFTS = 5
"""Names of a mix that an alarm names."""


class AlarmBlock(Struct, frozen=True, array_like=True):
    """Consecutive records that gave one input."""

    first_step: int
    last_step: int
    first_offset: int
    next_offset: int
    first_at: float
    """Event time, unix seconds, the smallest; and the largest."""
    last_at: float
    rows: int

    def and_then(self, other: AlarmBlock) -> AlarmBlock:
        """Both as one."""
        return AlarmBlock(
            self.first_step,
            other.last_step,
            self.first_offset,
            other.next_offset,
            min(self.first_at, other.first_at),
            max(self.last_at, other.last_at),
            self.rows + other.rows,
        )


def raised(
    subject: WatchedSubject,
    series: str,
    change: DetectedChange,
    before: Sequence[AlarmBlock],
    after: Sequence[AlarmBlock],
    *,
    stream: PartitionOfTopic,
    shares: tuple[Mapping[str, int], Mapping[str, int]],
) -> DriftAlarm:
    """The record. The same inputs give the same bytes."""
    newest, latest = after[-1], _latest([*before, *after])
    return DriftAlarm(
        id=f"{stream.topic_id}/{subject}/{series}/{change.detector}/{newest.last_step}",
        source=subject.source,
        subject=subject.name,
        branch=subject.branch,
        series=series,
        detector=change.detector,
        step=newest.last_step,
        raised_at=_time(min(newest.last_at, latest)),
        before=_window(before, stream.partition, change.before, latest),
        after=_window(after, stream.partition, change.after, latest),
        z=round(change.z, 3),
        budget=BUDGET,
        shifts=shifts(*shares),
    )


def shifts(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, tuple[float, float]]:
    """Name -> (share before, share after), the largest differences first; {} where nothing is counted."""
    was, now = sum(before.values()), sum(after.values())
    if not was or not now:
        return {}
    moved = {name: (before.get(name, 0) / was, after.get(name, 0) / now) for name in {*before, *after}}
    largest = sorted(moved, key=lambda name: (-abs(moved[name][1] - moved[name][0]), name))
    return {name: (round(moved[name][0], 4), round(moved[name][1], 4)) for name in largest[:SHIFTS]}


def _latest(blocks: Sequence[AlarmBlock]) -> float:
    """Event time of the newest of them, unix seconds; one with a record of 2100 is passed over."""
    times = np.array([round(block.last_at * 1e6) for block in blocks], np.int64)
    good = newest_good(times)
    return max(block.last_at for block, time in zip(blocks, times, strict=True) if good is None or time <= good)


def _window(blocks: Sequence[AlarmBlock], partition: int, mean: float, latest: float) -> DriftWindow:
    first, last = blocks[0], blocks[-1]
    return DriftWindow(
        partition=partition,
        first_offset=first.first_offset,
        next_offset=last.next_offset,
        first_step=first.first_step,
        last_step=last.last_step,
        first_event_at=_time(min(block.first_at for block in blocks)),
        last_event_at=_time(min(latest, max(block.last_at for block in blocks))),
        rows=sum(block.rows for block in blocks),
        mean=round(mean, 6),
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
