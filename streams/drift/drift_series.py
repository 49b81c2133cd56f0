"""What one record says that may drift: sums that add up over records, by the name of the series.

| series | from | a block's value |
|---|---|---|
| `<arm>/<loss>` | `learning.progress` | mean prequential loss of an arm that is watched |
| `calibration` | `learning.progress` | probability given to the type held most probable, minus how often it came |
| `types`, `prompts` | `learning.progress` | a mix: the rows' types, the prompts they retrieved |
| `rate` | `labels` | mean value of a task's labels |
| `log_wait` | `scores.results` | mean log of the median wait, in log seconds, that answers give |
| `answers` | `scores.results` | a mix: the type held most probable |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from contracts import topics
from contracts.records import Label, LossSum, Progress
from contracts.scoring import ScoreResult

LEARNER, FROZEN = "learner", "reference.frozen"
ARMS = (LEARNER, FROZEN)
"""Arms whose losses are watched. A learner that adapts soon hides a change; one that stopped learning cannot."""
COSTS = frozenset({"time", "type", "error", "rank", "risk"})
"""Losses that grow when the world is no longer what was learnt; of `learners/`, the others fall or have few rows."""
TYPES, PROMPTS, CALIBRATION = "types", "prompts", "calibration"
RATE, LOG_WAIT, ANSWERS = "rate", "log_wait", "answers"
TWO_SIDED = frozenset({CALIBRATION, RATE, LOG_WAIT})
"""Series that mean something in both directions; of the others only growth counts."""


@dataclass(frozen=True, kw_only=True, order=True)
class WatchedSubject:
    """Whose series they are."""

    source: str
    """Logical topic."""
    name: str
    """Learner; task of a label."""
    branch: int
    """Branch of a learner; of a topic without steps the partition, since each is read by itself."""

    def __str__(self) -> str:
        return f"{self.source}/{self.name}/{self.branch}"


@dataclass(frozen=True, kw_only=True)
class Signals:
    """One record."""

    subject: WatchedSubject
    step: int
    """Grows with every new record of the subject; a repeated record repeats it."""
    rows: int
    first_at: float
    """Event time, unix seconds, and that of the last row."""
    last_at: float
    sums: Mapping[str, LossSum]
    """Series of numbers."""
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Series of mixes."""


def of_progress(record: Progress) -> Signals:
    """One step of a learner."""
    sums = {
        f"{arm}/{loss}": part
        for arm in ARMS
        for loss, part in record.losses.get(arm, {}).items()
        if loss in COSTS and part.rows
    }
    error = record.losses.get(LEARNER, {}).get("error")
    if record.confidence is not None and error is not None and error.rows == record.confidence.rows:
        sums[CALIBRATION] = LossSum(sum=record.confidence.sum - (error.rows - error.sum), rows=error.rows)
    return Signals(
        subject=WatchedSubject(source=topics.PROGRESS, name=record.learner, branch=record.branch),
        step=record.step,
        rows=record.rows,
        first_at=record.first_event_at.timestamp(),
        last_at=record.last_event_at.timestamp(),
        sums=sums,
        counts={name: mix for name, mix in ((TYPES, record.types), (PROMPTS, record.prompts)) if mix},
    )


def of_label(record: Label, *, partition: int, offset: int) -> Signals:
    """One outcome. A label sent twice counts twice: only offsets tell repetitions here."""
    at = record.ref_time.timestamp()
    return Signals(
        subject=WatchedSubject(source=topics.LABELS, name=record.task, branch=partition),
        step=offset,
        rows=1,
        first_at=at,
        last_at=at,
        sums={RATE: LossSum(sum=record.value, rows=1)},
    )


def of_result(record: ScoreResult, *, partition: int, offset: int) -> Signals:
    """One answer of `score`."""
    at = record.asked_at.timestamp()
    wait = next((part.seconds for part in record.next_event if part.quantile == 0.5), None)
    best = max(record.next_type, key=lambda part: (part.probability, part.type), default=None)
    return Signals(
        subject=WatchedSubject(source=topics.RESULTS, name=record.learner, branch=partition),
        step=offset,
        rows=1,
        first_at=at,
        last_at=at,
        sums={LOG_WAIT: LossSum(sum=math.log(wait), rows=1)} if wait else {},
        counts={ANSWERS: {best.type: 1}} if best else {},
    )
