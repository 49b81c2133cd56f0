"""Whose silence ends with the next step (foreign.md, W1 to W4).

A silence ends by the progress of the streams that could still break it, payments and the task's labels, each by the
event times of its own rows (`streams/train/task_clocks.py`). A stream holds the others back until it is drained: read
to the end that the broker has, asked after the rows were committed that moved the clocks. The end of the log would not
do: an `ingest` that lags would look like silence. Without an answer no silence ends. Nor does one while no label of
the task was ever read, unless a person says that there may be none.

What is decided here is journalled, so a repetition asks nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import Connection

from contracts import topics
from storage.learning import label_resolutions
from storage.learning.journal import LabelTimeout
from storage.log import offsets
from storage.log.offsets import Cursor
from streams.train.delayed_labels import DelayedLabels
from streams.train.merge import Reached
from streams.train.step_runner import StepRunner
from streams.train.task_clocks import Progress, TaskClocks, Watermark, watermark

KEPT_S: Final = 1.0
"""So long an answer of the broker stands."""
_NEVER: Final = 2**62
Asked = Callable[[], Mapping[tuple[str, str, int], int] | None]
"""Where the topics end now, by (topic id, topic, partition); None: no answer."""


@dataclass(frozen=True, kw_only=True)
class Silences:
    """What the next step takes of silence."""

    ticks: tuple[LabelTimeout, ...] = ()
    drained: tuple[int, ...] = ()
    """Streams that held nothing back."""
    clock: int | None = None
    """P: event time that payments have reached, microseconds."""
    held: bool = False
    """They are due, but no label of the task was ever read."""

    @property
    def passed(self) -> Silences:
        """What is left of it for a step that takes none."""
        return replace(self, ticks=(), drained=())


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What was known when the broker was asked."""

    asked_at: float
    until: int | None
    """W; None: no silence ends."""
    drained: tuple[int, ...]
    before: int
    """Subjects of steps below it were handled by then."""


class SilenceWatch:
    """Decides ahead of each step. One a run of `train`, for a learner of outcomes."""

    def __init__(self, runner: StepRunner, *, asked: Asked, now: Callable[[], float] = time.monotonic) -> None:
        assert runner.outcomes is not None
        assert runner.clocks is not None
        self._merge: Final = runner.merge
        self._outcomes: Final[DelayedLabels] = runner.outcomes
        self._clocks: Final[TaskClocks] = runner.clocks
        self._asked: Final = asked
        self._now: Final = now
        self._answer: _Answer | None = None
        self._labels_read = False
        """A label of the task was read."""
        self._assumed = False
        """A person said that there may be none; looked up when it was asked last."""
        self._looked_at: float | None = None

    def live(self, connection: Connection, number: int) -> Silences:
        """As the broker has it now.

        :param number: of the next step.
        """
        hopeful = self._hopeful()
        if not self._due(connection, hopeful):
            return Silences(clock=hopeful.payments)
        if not self._expected(connection):
            return Silences(clock=hopeful.payments, held=True)
        if self._answer is None or self._now() - self._answer.asked_at >= KEPT_S:
            self._answer = self._ask(connection, number)
        answer = self._answer
        if answer.until is None:
            return Silences(clock=hopeful.payments)
        ticks = self._outcomes.silences(connection, answer.until, before=answer.before)
        return Silences(ticks=ticks, drained=answer.drained if ticks else (), clock=hopeful.payments)

    def bounded(self, connection: Connection, ends: Cursor) -> Silences:
        """As recorded ends have it: a function of the cursor and of them, once the merge is settled."""
        drained = {
            stream_id
            for stream_id, one in self._merge.reached().items()
            if one.position >= (one.log_end if one.retired else ends.get(stream_id, _NEVER))
        }
        found = self._watermark(drained)
        if not self._due(connection, found):
            return Silences(clock=found.payments)
        if not self._expected(connection):
            return Silences(clock=found.payments, held=True)
        assert found.until is not None
        ticks = self._outcomes.silences(connection, found.until)
        named = self._of_task(drained)
        return Silences(ticks=ticks, drained=named if ticks else (), clock=found.payments)

    # -- inside --

    def _ask(self, connection: Connection, number: int) -> _Answer:
        """The cursor stands where it stands: what moved the clocks was committed before the broker is asked."""
        at, ends = self._now(), self._asked()
        nothing = _Answer(asked_at=at, until=None, drained=(), before=number)
        if ends is None:
            return nothing
        current = {
            (row.stream.topic_id, row.stream.topic, row.stream.partition): row.stream_id
            for row in offsets.streams(connection)
            if not row.retired
        }
        reached = self._merge.reached()
        if any(end > 0 and current.get(place) not in reached for place, end in ends.items()):
            return nothing  # what nobody has read yet may hold anything
        ends_of = {stream_id: ends[place] for place, stream_id in current.items() if place in ends}
        drained = {stream_id for stream_id, one in reached.items() if _drained(one, ends_of.get(stream_id))}
        return _Answer(asked_at=at, until=self._watermark(drained).until, drained=self._of_task(drained), before=number)

    def _hopeful(self) -> Watermark:
        """Were nothing on its way that the log does not hold: no silence ends earlier."""
        return self._watermark(
            {stream_id for stream_id, one in self._merge.reached().items() if one.position >= one.log_end}
        )

    def _watermark(self, drained: set[int]) -> Watermark:
        streams: dict[str, list[Progress]] = {topics.PAYMENT: [], topics.LABELS: []}
        for stream_id, one in self._merge.reached().items():
            if one.topic in streams:
                clock = self._clocks.of(stream_id)
                streams[one.topic].append(Progress(clock=clock, drained=stream_id in drained))
        return watermark(streams[topics.PAYMENT], streams[topics.LABELS])

    def _of_task(self, stream_ids: set[int]) -> tuple[int, ...]:
        reached = self._merge.reached()
        return tuple(sorted(n for n in stream_ids if reached[n].topic in (topics.PAYMENT, topics.LABELS)))

    def _due(self, connection: Connection, found: Watermark) -> bool:
        due_from = self._outcomes.due_from(connection)
        return found.until is not None and due_from is not None and found.until >= due_from

    def _expected(self, connection: Connection) -> bool:
        """Whether silence says anything: a label of the task was read, or a person said that there may be none."""
        self._labels_read = self._labels_read or self.label_clock() is not None
        if self._labels_read:
            return True
        now = self._now()
        if self._looked_at is None or now - self._looked_at >= KEPT_S:
            self._looked_at = now
            self._assumed = label_resolutions.assumed_complete(connection, self._outcomes.task)
        return self._assumed

    def label_clock(self) -> int | None:
        """When the newest outcomes became known that were read, microseconds; None: no label of the task ever was."""
        reached = self._merge.reached()
        clocks = [self._clocks.of(n) for n, one in reached.items() if one.topic == topics.LABELS]
        return max((clock for clock in clocks if clock is not None), default=None)


def _drained(one: Reached, end: int | None) -> bool:
    """A broker may tell an end too low (Tansu does): what the log holds counts too."""
    if one.retired:
        return one.position >= one.log_end
    return end is not None and one.position >= max(end, one.log_end)
