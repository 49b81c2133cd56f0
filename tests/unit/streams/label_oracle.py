"""A plain reading of what comes of labels: each learnt once, or counted with its reason (foreign.md, W6 and W9)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from contracts.identity import event_key
from contracts.topics import PAYMENT
from streams.train.merge import LabelRow, LogRow, Row

Spot = tuple[int, int]
"""Stream and offset of a label."""


class Taken(NamedTuple):
    """A step as it was run."""

    rows: Sequence[Row]
    ticked: frozenset[int]
    clock: int | None
    """Microseconds."""


@dataclass
class Subject:
    at: int
    value: float | None = None
    silent: bool = False
    corrected: float | None = None

    @property
    def last(self) -> float | None:
        return self.value if self.corrected is None else self.corrected


class Oracle:
    """Goes through the steps one after the other."""

    def __init__(self, *, horizon_us: int | None, correction_us: int | None, task: str = "fraud") -> None:
        self._horizon_us, self._correction_us, self._task = horizon_us, correction_us, task
        self.subjects: dict[int, Subject] = {}
        self.fates: dict[Spot, str] = {}
        self._waiting: dict[int, tuple[Spot, LabelRow]] = {}

    def run(self, steps: Iterable[Taken]) -> Oracle:
        for step in steps:
            self._step(step)
        return self

    def _step(self, step: Taken) -> None:
        now: dict[int, float] = {}
        came: list[tuple[int, tuple[Spot, LabelRow]]] = []
        for row in step.rows:
            if isinstance(row, LogRow) and row.topic == PAYMENT:
                self.subjects.setdefault(row.event.key, Subject(at=row.event.at))
                if row.event.key in self._waiting:
                    came.append((row.event.key, self._waiting.pop(row.event.key)))
        for key, (spot, label) in came:
            self.fates[spot] = self._hear(spot, key, label, now, step.clock)
        for row in step.rows:
            if isinstance(row, LabelRow):
                spot = (row.stream_id, row.offset)
                if row.task != self._task:
                    self.fates[spot] = "other_task"
                elif row.subject is None:
                    self.fates[spot] = "no_subject"
                else:
                    key = event_key(PAYMENT, row.user, row.subject)
                    self.fates[spot] = self._hear(spot, key, row, now, step.clock)
        for key in step.ticked:
            subject = self.subjects[key]
            if subject.value is None:
                subject.value, subject.silent = 0.0, True

    def _hear(self, spot: Spot, key: int, label: LabelRow, now: dict[int, float], clock: int | None) -> str:
        value = label.value
        if key in now:
            return _again(value, now[key])
        if key not in self.subjects:
            if key in self._waiting:
                return _again(value, self._waiting[key][1].value)
            self._waiting[key] = (spot, label)
            return "waiting"
        subject = self.subjects[key]
        if subject.value is None:
            subject.value = now[key] = value
            over = self._horizon_us is not None and label.known_at > subject.at + self._horizon_us
            return "after_horizon" if over else "learnt"
        if subject.silent and subject.corrected is None:
            if clock is not None and self._correction_us is not None and subject.at + self._correction_us < clock:
                return "too_late"
            subject.corrected = now[key] = value
            return "corrected" if value else "confirmed_silence"
        assert subject.last is not None
        return _again(value, subject.last)


def _again(value: float, before: float) -> str:
    return "repeated" if value == before else "contradicting"
