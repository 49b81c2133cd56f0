"""What `train` says of labels and of subjects that wait, in metrics and in its log."""

from __future__ import annotations

import time
from typing import Final, Literal

import structlog
from sqlalchemy import Connection

from runtime import metrics
from storage.learning import label_resolutions
from streams.train.delayed_labels import DelayedLabels, LabelCounts
from streams.train.silences import Silences, SilenceWatch

DAY_US: Final = 86_400_000_000
EVERY_S: Final = 60.0
"""Between two looks at what waits, while nothing else asks."""
Age = Literal["day", "week", "month", "older"]
AGES: Final[tuple[tuple[Age, int], ...]] = (("month", 30 * DAY_US), ("week", 7 * DAY_US), ("day", DAY_US))
"""How long ago at most outcomes became known, by name, the longest first."""

_log = structlog.get_logger(__name__)


def tell_handled(learner: str, handled: LabelCounts) -> None:
    """What came of a step's labels and silences."""
    for resolution, count in handled.labels.items():
        metrics.train_labels.inc(count, learner, resolution.value)
    metrics.train_label_timeouts.inc(handled.silent, learner)


class LabelWatch:
    """Looks at what waits, now and then."""

    def __init__(self, learner: str, outcomes: DelayedLabels) -> None:
        self._learner: Final = learner
        self._outcomes: Final = outcomes
        self._told_at: float | None = None
        self._held = False
        if outcomes.horizon_us is not None:
            metrics.train_horizon.set(outcomes.horizon_us / 1e6, learner)

    def tell_if_due(self, connection: Connection, silences: Silences, watch: SilenceWatch) -> None:
        """As `tell`, once a minute, and as soon as silences are held for want of any label."""
        now = time.monotonic()
        if silences.held != self._held or self._told_at is None or now - self._told_at >= EVERY_S:
            self.tell(connection, silences, watch)

    def tell(self, connection: Connection, silences: Silences, watch: SilenceWatch | None) -> int:
        """Sets the gauges; says so where no label was ever read. Returns how many subjects wait because of that."""
        self._told_at, self._held = time.monotonic(), silences.held
        waiting = self._outcomes.count_open(connection)
        metrics.open_subjects.set(waiting, self._learner)
        held = waiting if silences.held else 0
        metrics.unlabelled_rows.set(held, self._learner)
        if held:
            _log.warning("train.no_label_ever_read", what=label_resolutions.none_read(self._outcomes.task, held))
        if silences.clock is not None:
            self._tell_ages(connection, silences.clock, None if watch is None else watch.label_clock())
        return held

    def _tell_ages(self, connection: Connection, clock: int, newest_label: int | None) -> None:
        if newest_label is not None:
            metrics.label_age.set((clock - newest_label) / 1e6, self._learner)
        counts = self._outcomes.waiting_by_age(connection, [clock - span for _, span in AGES])
        names: tuple[Age, ...] = ("older", *(age for age, _ in AGES))
        for age, count in zip(names, counts, strict=True):
            metrics.waiting_labels.set(count, self._learner, age)
