"""A learner on its way through the log: the part that must give the same bytes whenever it is repeated.

`train` walks a course live and writes the journal; a restart and `replay-journal` walk the same course by
the journal. Nothing here reads the clock, the broker or the environment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sqlalchemy import Connection

from learners.batch import Batch
from learners.build import build_cohort
from learners.cohort import Cohort, CohortReport, combined
from runtime.lifecycle import Refused
from storage import journal, log, offsets, suppression
from storage.journal import Seat, Step, Tick
from storage.offsets import Cursor
from storage.suppression import Suppression
from streams.front import Front
from streams.histories import Histories
from streams.merge import LabelRow, LogRow, Merge, Row, concerns
from streams.outcomes import Outcomes
from streams.task_clocks import TaskClocks


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a learner is, before it has seen anything: with the log and the journal it decides every byte."""

    learner: str
    seed: int
    options: dict[str, Any]
    """Of `learners.build.build_cohort`."""
    resolution_us: int
    """Tick of the producers' clocks, microseconds."""
    horizon_us: int | None = None
    """Silence, microseconds, that counts as an outcome; None: none does, or no outcomes are learnt."""
    correction_us: int | None = None
    """Event time, microseconds, for which a silence may be corrected by a label; None: for ever, or none counts."""

    def as_json(self) -> dict[str, Any]:
        """As the learner's row and the manifests keep it."""
        config = {"seed": self.seed, "options": self.options, "resolution_us": self.resolution_us}
        spans = {"horizon_us": self.horizon_us, "correction_us": self.correction_us}
        return {**config, **{name: span for name, span in spans.items() if span is not None}}

    @classmethod
    def from_json(cls, learner: str, config: dict[str, Any]) -> Plan:
        return cls(
            learner=learner,
            seed=config["seed"],
            options=config["options"],
            resolution_us=config["resolution_us"],
            horizon_us=config.get("horizon_us"),
            correction_us=config.get("correction_us"),
        )

    def fresh(self) -> Cohort:
        """The learner and its references as they are born."""
        return build_cohort(self.learner, self.seed, **self.options)


class Course:
    """A cohort, where it stands in the log, and the histories around it."""

    def __init__(
        self,
        plan: Plan,
        cohort: Cohort,
        cursor: Cursor,
        *,
        front: Front | None = None,
        branch: int = 1,
        seat: Seat | None = None,
    ) -> None:
        """
        :param cursor: the next offsets to learn; streams not named: from the start of their log.
        :param front: of the record times learnt so far; None: nothing was learnt yet.
        :param branch: of the learner, for what is stored of its predictions.
        :param seat: the right to store them; None: a repetition that finds them stored.
        """
        self.cohort = cohort
        self.cursor: Cursor = dict(cursor)
        self.recent = Front() if front is None else front
        needs = cohort.needs
        self.merge = Merge(cursor, labels=needs.task is not None)
        self._erased = suppression.NOBODY
        self._writes: bool = seat is not None
        self._histories = Histories(last_n=needs.last_n, items_only=needs.items_only, resolution_us=plan.resolution_us)
        self.outcomes: Outcomes | None = None
        """None for a learner of events alone."""
        self.clocks: TaskClocks | None = None
        """Likewise. Read them from the log (`read_clocks`) before silences are asked for."""
        if needs.task is not None:
            self.outcomes = Outcomes(
                self._histories,
                learner=plan.learner,
                branch=branch,
                task=needs.task,
                last_n=needs.last_n,
                horizon_us=plan.horizon_us,
                correction_us=plan.correction_us,
                seat=seat,
            )
            self.clocks = TaskClocks(needs.task)

    def pass_over_erased(self, connection: Connection) -> None:
        """From here on rows of or about erased users are not there, whether or not the log still holds them."""
        found = suppression.current(connection, self._erased)
        if found is not self._erased:
            self._erased = found
            self.merge.pass_over(found)

    def present(self, rows: Iterable[Row]) -> list[Row]:
        """Of rows taken before an erasure, those that are left."""
        named = ((row, row.event.other if isinstance(row, LogRow) else None) for row in rows)
        return [row for row, other in named if not concerns(self._erased, row.user, other)]

    def among(self, hashes: frozenset[bytes]) -> Suppression:
        """Tells whether a name is one of these erased users'; `pass_over_erased` came before."""
        return replace(self._erased, hashes=hashes)

    def learn(
        self,
        connection: Connection,
        rows: Sequence[Row],
        *,
        erased: frozenset[bytes] = frozenset(),
        number: int = 0,
        ticks: Sequence[Tick] = (),
        task_clock: datetime | None = None,
    ) -> CohortReport | None:
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
            self.cohort.forget(self.among(erased))
            self._histories.forget()
        events = [row for row in rows if isinstance(row, LogRow)]
        batch = self._histories.batch(connection, events, self.cursor) if events else None
        self.cursor |= {row.stream_id: row.offset + 1 for row in rows}
        self.recent = self.recent.after(row.record_at for row in rows)
        if self.outcomes is None or self.clocks is None:
            return self.cohort.step(batch) if batch else None
        self.clocks.take(rows)
        first, subjects = self._ask(connection, self.outcomes, number, batch, events)
        clock = None if task_clock is None else log.microseconds_of(task_clock)
        due = self.outcomes.due(connection, number, subjects, labels, ticks, self.cursor, clock)
        then = None if due.batch is None else self.cohort.mature(due.batch, due.risks)
        known = suppression.current(connection, self._erased) if labels and self._writes else self._erased
        self.outcomes.close(connection, number, due, known)
        return combined(first, then)

    def _ask(
        self, connection: Connection, outcomes: Outcomes, number: int, batch: Batch | None, events: Sequence[LogRow]
    ) -> tuple[CohortReport | None, list[LogRow]]:
        """What the step's events gave, and those whose outcome was predicted."""
        asked = None if batch is None else outcomes.ask(batch, events)
        if asked is None:
            return None, []
        report = self.cohort.step(asked[0])
        assert report.issued is not None
        outcomes.keep(connection, number, asked[1], report.issued)
        return report, asked[1]

    def read_clocks(self, connection: Connection) -> None:
        """Task clocks as the log has them at the cursor: after a restart, and before silences are asked for."""
        if self.clocks is not None:
            topic_of = [(row.stream_id, row.stream.topic) for row in offsets.streams(connection)]
            self.clocks.rebuild(connection, self.cursor, topic_of, self._erased)

    def repeat(self, connection: Connection, step: Step) -> tuple[list[Row], CohortReport | None]:
        """Runs a journalled step: the same rows in the same order, but those erased since."""
        rows = [row for run in step.rows for row in self.merge.pop_run(connection, run, thinned=step.thinned)]
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
        """Everything the cohort is, for a snapshot."""
        return {name: tensor.contiguous().numpy() for name, tensor in self.cohort.state().items()}

    def load(self, tensors: dict[str, NDArray[Any]]) -> None:
        """The inverse of `tensors`.

        :raises ForeignState: they belong to another learner, version or configuration.
        """
        load_tensors(self.cohort, tensors)


def load_tensors(cohort: Cohort, tensors: dict[str, NDArray[Any]]) -> None:
    """What a snapshot holds of the cohort, into a cohort.

    :raises ForeignState: they belong to another learner, version or configuration.
    """
    cohort.load({name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()})


def journalled(connection: Connection, learner: str, branch: int, first: int, last: int) -> list[Step]:
    """Steps first, .., last - 1.

    :raises Refused: some are missing: what follows a gap was learnt by a state that cannot be had again.
    """
    found = list(journal.steps(connection, learner, branch, first, last))
    if [step.number for step in found] != list(range(first, last)):
        raise Refused(
            f"of the steps {first} to {last - 1} the journal holds {len(found)}",
            where=f"learner {learner}",
            todo=f"restore a snapshot file younger than the gap, or let it start anew: `driftline retire {learner}`",
        )
    return found


def check_actions(step: Step, actions: tuple[str, ...]) -> None:
    """:raises Refused: repeating the step before `step`, the learner reacted otherwise than the first time."""
    if step.actions != actions:
        raise Refused(
            f"repeating step {step.number - 1} the learner reported {list(actions)}; the journal says "
            f"{list(step.actions)}",
            where="journal",
            todo="the code, the machine or the log differ from when it was first run: restore them",
        )


def make_deterministic(threads: int) -> None:
    """Sets torch so that the same steps give the same bytes on one device class."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(threads)
