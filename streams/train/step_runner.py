"""A learner on its way through the log: the part that must give the same bytes whenever it is repeated.

`train` walks a course live and writes the journal; a restart and `replay-journal` walk the same course by
the journal. Nothing here reads the clock, the broker or the environment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sqlalchemy import Connection

from learners.arms.group import ArmGroup, ArmGroupReport, combined
from learners.contract.batch import Batch
from learners.learner_config import LearnerConfig
from runtime.lifecycle import OperatorActionRequired
from storage.learning import journal
from storage.learning.journal import LabelTimeout, Step, WriterLease
from storage.log import event_log, offsets
from storage.log.offsets import Cursor
from storage.privacy import suppression
from storage.privacy.suppression import Suppression
from streams.train.delayed_labels import DelayedLabels
from streams.train.merge import LabelRow, LogRow, Merge, Row, concerns
from streams.train.step_batches import StepBatches
from streams.train.task_clocks import TaskClocks
from streams.train.watermark import Front


class StepRunner:
    """An arm group, where it stands in the log, and the histories around it."""

    def __init__(
        self,
        plan: LearnerConfig,
        arm_group: ArmGroup,
        cursor: Cursor,
        *,
        front: Front | None = None,
        branch: int = 1,
        lease: WriterLease | None = None,
    ) -> None:
        """
        :param cursor: the next offsets to learn; streams not named: from the start of their log.
        :param front: of the record times learnt so far; None: nothing was learnt yet.
        :param branch: of the learner, for what is stored of its predictions.
        :param lease: the right to store them; None: a repetition that finds them stored.
        """
        self.arm_group = arm_group
        self.cursor: Cursor = dict(cursor)
        self.recent = Front() if front is None else front
        needs = arm_group.needs
        self.merge = Merge(cursor, labels=needs.task is not None)
        self._erased = suppression.NOBODY
        self._writes: bool = lease is not None
        self._histories = StepBatches(
            last_n=needs.last_n, items_only=needs.items_only, resolution_us=plan.resolution_us
        )
        self.outcomes: DelayedLabels | None = None
        """None for a learner of events alone."""
        self.clocks: TaskClocks | None = None
        """Likewise. Read them from the log (`read_clocks`) before silences are asked for."""
        if needs.task is not None:
            self.outcomes = DelayedLabels(
                self._histories,
                learner=plan.learner,
                branch=branch,
                task=needs.task,
                last_n=needs.last_n,
                horizon_us=plan.horizon_us,
                correction_us=plan.correction_us,
                lease=lease,
            )
            self.clocks = TaskClocks(needs.task)

    def exclude_erased(self, connection: Connection) -> None:
        """From here on rows of or about erased users are not there, whether or not the log still holds them."""
        found = suppression.current(connection, self._erased)
        if found is not self._erased:
            self._erased = found
            self.merge.exclude_users(found)

    def present(self, rows: Iterable[Row]) -> list[Row]:
        """Of rows taken before an erasure, those that are left."""
        named = ((row, row.event.other if isinstance(row, LogRow) else None) for row in rows)
        return [row for row, other in named if not concerns(self._erased, row.user, other)]

    def among(self, hashes: frozenset[bytes]) -> Suppression:
        """Tells whether a name is one of these erased users'; `exclude_erased` came before."""
        return replace(self._erased, hashes=hashes)

    def learn(
        self,
        connection: Connection,
        rows: Sequence[Row],
        *,
        erased: frozenset[bytes] = frozenset(),
        number: int = 0,
        ticks: Sequence[LabelTimeout] = (),
        task_clock: datetime | None = None,
    ) -> ArmGroupReport | None:
        """Predicts, scores and learns the rows of one step, as the merge gave them: events first, outcomes then.

        :param erased: by hash, users whom the arms forget first; histories are read anew, as the erasure left them.
        :param number: of the step, under which predictions of outcomes are stored.
        :param ticks: silences that count as outcomes.
        :param task_clock: event time that payments had reached before the step, as the journal says.
        """
        labels = [row for row in rows if isinstance(row, LabelRow)]
        if labels and self._writes:
            suppression.share(connection)  # before the learner's row is held, as an erasure takes them
        if erased:
            self.arm_group.forget(self.among(erased))
            self._histories.forget()
        events = [row for row in rows if isinstance(row, LogRow)]
        batch = self._histories.batch(connection, events, self.cursor) if events else None
        self.cursor |= {row.stream_id: row.offset + 1 for row in rows}
        self.recent = self.recent.after(row.record_at for row in rows)
        if self.outcomes is None or self.clocks is None:
            return self.arm_group.step(batch) if batch else None
        self.clocks.take(rows)
        first, subjects = self._ask(connection, self.outcomes, number, batch, events)
        clock = None if task_clock is None else event_log.microseconds_of(task_clock)
        due = self.outcomes.due(connection, number, subjects, labels, ticks, self.cursor, clock)
        then = None if due.batch is None else self.arm_group.mature(due.batch, due.risks)
        known = suppression.current(connection, self._erased) if labels and self._writes else self._erased
        self.outcomes.close(connection, number, due, known)
        return combined(first, then)

    def _ask(
        self,
        connection: Connection,
        outcomes: DelayedLabels,
        number: int,
        batch: Batch | None,
        events: Sequence[LogRow],
    ) -> tuple[ArmGroupReport | None, list[LogRow]]:
        """What the step's events gave, and those whose outcome was predicted."""
        asked = None if batch is None else outcomes.ask(batch, events)
        if asked is None:
            return None, []
        report = self.arm_group.step(asked[0])
        assert report.issued is not None
        outcomes.keep(connection, number, asked[1], report.issued)
        return report, asked[1]

    def read_clocks(self, connection: Connection) -> None:
        """Task clocks as the log has them at the cursor: after a restart, and before silences are asked for."""
        if self.clocks is not None:
            topic_of = [(row.stream_id, row.stream.topic) for row in offsets.streams(connection)]
            self.clocks.rebuild(connection, self.cursor, topic_of, self._erased)

    def repeat(self, connection: Connection, step: Step) -> tuple[list[Row], ArmGroupReport | None]:
        """Runs a journalled step: the same rows in the same order, but those erased since."""
        rows = [row for run in step.rows for row in self.merge.pop_run(connection, run, rows_erased=step.rows_erased)]
        self.merge.idle = set(step.idle)
        report = self.learn(
            connection, rows, erased=step.erased, number=step.number, ticks=step.ticks, task_clock=step.task_clock
        )
        return rows, report

    @property
    def front(self) -> int | None:
        """Lower median of the last 33 record times learnt, microseconds; None before the first row."""
        return self.recent.at

    def front_after(self, rows: Iterable[Row]) -> int | None:
        """The front once these rows are learnt."""
        return self.recent.after(row.record_at for row in rows).at

    def late(self, rows: Iterable[Row]) -> int:
        """How many rows of the next step lie behind the front."""
        return self.recent.late(row.record_at for row in rows)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Everything the arm group is, for a snapshot."""
        return {name: tensor.contiguous().numpy() for name, tensor in self.arm_group.state().items()}

    def load(self, tensors: dict[str, NDArray[Any]]) -> None:
        """The inverse of `tensors`.

        :raises ForeignState: they belong to another learner, version or configuration.
        """
        load_tensors(self.arm_group, tensors)


def load_tensors(arm_group: ArmGroup, tensors: dict[str, NDArray[Any]]) -> None:
    """What a snapshot holds of the arm group, into an arm group.

    :raises ForeignState: they belong to another learner, version or configuration.
    """
    arm_group.load({name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()})


def journalled(connection: Connection, learner: str, branch: int, first: int, last: int) -> list[Step]:
    """Steps first, .., last - 1.

    :raises Refused: some are missing: what follows a gap was learnt by a state that cannot be had again.
    """
    found = list(journal.steps(connection, learner, branch, first, last))
    if [step.number for step in found] != list(range(first, last)):
        raise OperatorActionRequired(
            f"of the steps {first} to {last - 1} the journal holds {len(found)}",
            where=f"learner {learner}",
            hint=f"restore a snapshot file younger than the gap, or let it start anew: `driftline retire {learner}`",
        )
    return found


def check_actions(step: Step, actions: tuple[str, ...]) -> None:
    """:raises Refused: repeating the step before `step`, the learner reacted otherwise than the first time."""
    if step.actions != actions:
        raise OperatorActionRequired(
            f"repeating step {step.number - 1} the learner reported {list(actions)}; the journal says "
            f"{list(step.actions)}",
            where="journal",
            hint="the code, the machine or the log differ from when it was first run: restore them",
        )


def make_deterministic(threads: int) -> None:
    """Sets torch so that the same steps give the same bytes on one device class."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(threads)
