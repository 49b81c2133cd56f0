"""Late labels and silence: from an outcome that became known to the context of the event it speaks of.

A label resolves to the step that first handled its subject, and is learnt in the first step that covers both: its own,
or, should it have come before its subject, the subject's. The context is what the subject's own prediction saw: what
came before it in the order of the merge, strictly before the reference time. What the learner's counts said then
comes back from the stored prediction. When the task's streams have passed the subject's time by its horizon
(`streams/train/silences.py`), silence counts as an outcome: a tick, which the journal names before the step runs. A
label that comes after that is learnt as a correction (`streams/train/label_resolution.py`).

Nothing here reads the clock. In a repetition the same rows of the journal and the same stored predictions and labels
give the same batch (`storage/learning/predictions.py`, `storage/learning/label_resolutions.py`).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from sqlalchemy import Connection

from contracts import topics
from contracts.identity import event_key
from learners.arms.group import IssuedRisks as Told
from learners.contract.batch import Batch, Floats
from learners.tasks.ranking import rows_of
from storage.learning import journal, label_resolutions, predictions
from storage.learning.journal import LabelTimeout, StepPosition, WriterLease
from storage.learning.label_resolutions import Met, Resolution
from storage.learning.predictions import Closed, Corrected, OpenPrediction, StoredPrediction
from storage.log import event_log
from storage.log.offsets import Cursor
from storage.sequences import sequence_retention, user_sequences
from storage.sequences.user_sequences import SequenceEvent
from streams.train.label_batches import as_batch, as_of, closed, corrected, subjects_of
from streams.train.label_resolution import Case, Heard, ObservedLabel, Resolved, Window, resolve
from streams.train.merge import LabelRow, LogRow
from streams.train.step_batches import StepBatches

TICKS: Final = 256
"""Silences that one step closes at most: when time leaps, the steps after it share them."""
PLACES: Final = 4_096
"""Steps whose start cursors are remembered."""
_NEVER: Final = 2**62
_View = tuple[SequenceEvent, list[SequenceEvent]]


@dataclass(frozen=True, kw_only=True)
class LabelBatch:
    """What a step learns beside its events, and what it writes of its labels."""

    batch: Batch | None
    """None: there is nothing to learn."""
    risks: Floats
    """[B, A] as issued, by arm."""
    closed: tuple[Closed, ...]
    corrected: tuple[Corrected, ...]
    met: tuple[tuple[str, Met], ...]
    """The step's own labels, with their users."""
    settled: tuple[tuple[int, int, Resolution], ...]
    """Labels that waited for one of its rows."""


@dataclass
class LabelCounts:
    """What came of a step's labels and silences."""

    labels: Counter[Resolution] = field(default_factory=Counter)
    """Those that ended, its own and those that had waited."""
    waiting: int = 0
    """Its own whose subject was not handled yet."""
    silent: int = 0

    @property
    def learnt(self) -> int:
        """Labels learnt as the first outcome of their subject."""
        return self.labels[Resolution.LEARNT] + self.labels[Resolution.AFTER_HORIZON]


class DelayedLabels:
    """What a learner of outcomes does beside its events. It keeps nothing between steps: all of it is in Postgres."""

    def __init__(
        self,
        histories: StepBatches,
        *,
        learner: str,
        branch: int,
        task: str,
        last_n: int,
        horizon_us: int | None,
        correction_us: int | None,
        lease: WriterLease | None,
    ) -> None:
        """
        :param last_n: events that a history holds.
        :param horizon_us: microseconds of silence that count as an outcome; None: no silence does.
        :param correction_us: microseconds of event time for which a silence may be corrected; None: for ever.
        :param lease: whose predictions are written; None: they are there already (a repetition for its own sake).
        """
        self._histories = histories
        self._line: Final = (learner, branch)
        self.task: Final = task
        self._last_n: Final = last_n
        self.horizon_us: Final = horizon_us
        self._correction_us: Final = correction_us
        self._lease: Final = lease
        self._places: OrderedDict[int, StepPosition] = OrderedDict()
        self._quiet_until: int | None = None
        """No silence is due while the task's watermark is below it; None: not known."""
        self.handled = LabelCounts()
        """Of the newest step."""

    # -- subjects --

    def ask(self, batch: Batch, rows: Sequence[LogRow]) -> tuple[Batch, list[LogRow]] | None:
        """The rows that are payments, asked at their own time; None: there are none."""
        places = [n for n, row in enumerate(rows) if row.event.kind == user_sequences.PAYMENT]
        if not places:
            return None
        asked, batch = [rows[n] for n in places], rows_of(batch, np.array(places, np.int64))
        query = replace(batch.query, now=batch.target.at, subject=subjects_of([row.event for row in asked]))
        return replace(batch, query=query), asked

    def keep(self, connection: Connection, number: int, rows: Sequence[LogRow], told: Told) -> None:
        """Stores what was predicted of a step's subjects."""
        if self._lease is None:
            return
        journal.check_lease(connection, self._lease)
        issued = [
            StoredPrediction(
                user=row.user,
                subject=row.event.key,
                stream_id=row.stream_id,
                position=row.offset,
                at=event_log.time_of(row.event.at),
                features=features,
                risks=risks,
            )
            for row, features, risks in zip(rows, told.features.tolist(), told.risks.tolist(), strict=True)
        ]
        predictions.put(connection, self._lease, number, self.task, issued)
        if self._quiet_until is not None and self.horizon_us is not None:
            self._quiet_until = min([self._quiet_until, *(row.event.at + self.horizon_us for row in rows)])

    # -- outcomes --

    def due_from(self, connection: Connection) -> int | None:
        """No silence is due while the task's watermark is below this, microseconds; None: none ever is."""
        if self.horizon_us is None:
            return None
        if self._quiet_until is None:
            oldest = predictions.oldest(connection, *self._line, limit=1)
            self._quiet_until = event_log.microseconds_of(oldest[0][2]) + self.horizon_us if oldest else _NEVER
        return self._quiet_until

    def silences(self, connection: Connection, until: int, *, before: int | None = None) -> tuple[LabelTimeout, ...]:
        """Subjects that have been silent to their horizon when the task's watermark stands at `until`, the oldest
        first: the same until a step closes them.

        :param before: of those that steps below it handled; None: of all.
        """
        due_from = self.due_from(connection)
        if self.horizon_us is None or due_from is None or until < due_from:
            return ()
        self._quiet_until = None  # looked for again: these are closed by the next step
        found = predictions.oldest(connection, *self._line, limit=TICKS, before=before)
        return tuple(
            (user_id, subject)
            for user_id, subject, at in found
            if event_log.microseconds_of(at) + self.horizon_us <= until
        )

    def due(
        self,
        connection: Connection,
        number: int,
        rows: Sequence[LogRow],
        told: Sequence[LabelRow],
        ticks: Sequence[LabelTimeout],
        cursor: Cursor,
        clock: int | None,
    ) -> LabelBatch:
        """The outcomes that the step learns: of labels that waited for one of its rows, of its labels, of its silences.

        :param rows: its events. :param told: its labels. :param cursor: where it ends.
        :param clock: where the task's clock stood before it, microseconds.
        """
        self.handled = LabelCounts()
        own = [(row, self._subject_of(row)) for row in told]
        resolved = self._resolved(connection, number, rows, own, clock)
        cases = list(resolved.cases)
        for kept in predictions.of_numbers(connection, *self._line, number, ticks).values():
            if not kept.closed and kept.subject not in {case.kept.subject for case in cases}:
                cases.append(Case(kept, self._silence(kept), None, correction=False))
        learnt, views = self._with_views(connection, cases, cursor, resolved)
        self._count(resolved, learnt, own)
        return LabelBatch(
            batch=as_batch(learnt, views) if learnt else None,
            risks=np.array([case.kept.risks for case in learnt], np.float64),
            closed=tuple(closed(case.kept, case.known, not case.heard) for case in learnt if not case.correction),
            corrected=tuple(corrected(case) for case in (*learnt, *resolved.confirmed) if case.correction),
            met=tuple((row.user, self._met(row, subject, resolved)) for row, subject in own),
            settled=tuple(
                (heard.stream_id, heard.position, fate)
                for heard, fate in resolved.fates.items()
                if heard.waited and fate is not None
            ),
        )

    def close(self, connection: Connection, number: int, due: LabelBatch, erased: Container[str]) -> None:
        """Stores what came of subjects and labels.

        :param erased: users who are, as the transaction has it to its end: their labels may be gone from the log.
        """
        if self._lease is not None and (due.closed or due.corrected or due.met or due.settled):
            journal.check_lease(connection, self._lease)
            predictions.close(connection, self._lease, number, due.closed)
            predictions.correct(connection, self._lease, number, due.corrected)
            label_resolutions.put(connection, self._lease, number, [met for user, met in due.met if user not in erased])
            label_resolutions.settle(connection, self._lease, number, due.settled)

    def count_open(self, connection: Connection) -> int:
        """Subjects that wait for an outcome."""
        return predictions.count_open(connection, *self._line)

    def waiting_by_age(self, connection: Connection, bounds: Sequence[int]) -> list[int]:
        """Labels that wait for their subject, by when their outcome became known: before the first of these times
        (microseconds), between the first and the second, .., from the last on."""
        return label_resolutions.waiting_by_age(connection, *self._line, [event_log.time_of(at) for at in bounds])

    # -- inside --

    def _subject_of(self, row: LabelRow) -> int | None:
        """Digest of the payment a label speaks of; None: of another task, or of none."""
        if row.task != self.task or row.subject is None:
            return None
        return event_key(topics.PAYMENT, row.user, row.subject)

    def _resolved(
        self,
        connection: Connection,
        number: int,
        rows: Sequence[LogRow],
        own: Sequence[tuple[LabelRow, int | None]],
        clock: int | None,
    ) -> Resolved:
        """What comes of the labels that waited for these rows, and of the step's own."""
        speaking = [(row, subject) for row, subject in own if subject is not None]
        subjects = {row.event.key for row in rows} | {subject for _, subject in speaking}
        waits = label_resolutions.waiting(connection, *self._line, number, subjects)
        came = [
            Heard(one.stream_id, one.position, _known(one), True)
            for one in (waits.pop(row.event.key, None) for row in rows)
            if one is not None
        ]
        heard = [
            *came,
            *(Heard(row.stream_id, row.offset, _told(row, subject), False) for row, subject in speaking),
        ]
        users = {row.event.key: row.user for row in rows} | {subject: row.user for row, subject in speaking}
        asks = [(users[one.known.subject], one.known.subject) for one in heard]
        handled = {kept.subject: kept for kept in self._handled(connection, number, asks)}
        still = {subject: one.value for subject, one in waits.items()}
        window = Window(horizon_us=self.horizon_us, correction_us=self._correction_us, clock=clock)
        return resolve(heard, handled, still, window)

    def _handled(self, connection: Connection, number: int, asks: Sequence[tuple[str, int]]) -> list[OpenPrediction]:
        return list(predictions.of_users(connection, *self._line, number, list(dict.fromkeys(asks))).values())

    def _silence(self, kept: OpenPrediction) -> ObservedLabel:
        """What came of a subject of which nobody said anything."""
        assert self.horizon_us is not None, "ticks are journalled where there is a horizon"
        at = event_log.microseconds_of(kept.at)
        return ObservedLabel(kept.subject, at + self.horizon_us, at, 0.0)

    def _with_views(
        self, connection: Connection, cases: Sequence[Case], cursor: Cursor, resolved: Resolved
    ) -> tuple[list[Case], list[_View]]:
        """Cases with the contexts of their subjects' own steps; those whose context is gone are let go."""
        places = self._places_of(connection, {case.kept.step for case in cases})
        asks = [as_of(case.kept, case.known, places[case.kept.step]) for case in cases]
        views = self._histories.as_of(connection, asks, cursor) if asks else []
        trimmed = sequence_retention.among(connection, [case.kept.user_id for case in cases if case.correction])
        there: list[tuple[Case, _View]] = []
        for case, view in zip(cases, views, strict=True):
            short = view is not None and case.kept.user_id in trimmed and len(view[1]) < self._last_n
            if view is None or (case.correction and short):
                self._let_go(connection, case, resolved)
            else:
                there.append((case, view))
        return [case for case, _ in there], [view for _, view in there]

    def _let_go(self, connection: Connection, case: Case, resolved: Resolved) -> None:
        """Nothing can be learnt of it any more. What is open keeps its context from retention: an erasure took it."""
        if case.heard is not None:
            resolved.fates[case.heard] = Resolution.CONTEXT_GONE
        if self._lease is not None and not case.correction:
            predictions.erase_events(connection, case.kept.stream_id, [case.kept.position])

    def _count(self, resolved: Resolved, learnt: Sequence[Case], own: Sequence[tuple[LabelRow, int | None]]) -> None:
        fates = [*resolved.fates.values(), *(self._unspoken(row) for row, subject in own if subject is None)]
        self.handled.labels = Counter(fate for fate in fates if fate is not None)
        self.handled.waiting = sum(fate is None for fate in fates)
        self.handled.silent = sum(case.heard is None for case in learnt)

    def _met(self, row: LabelRow, subject: int | None, resolved: Resolved) -> Met:
        if subject is None:
            fate: Resolution | None = self._unspoken(row)
        else:
            fate = resolved.fates[Heard(row.stream_id, row.offset, _told(row, subject), False)]
        return Met(
            stream_id=row.stream_id,
            position=row.offset,
            subject=subject,
            known_at=event_log.time_of(row.known_at),
            ref_time=event_log.time_of(row.ref_time),
            value=row.value,
            resolution=fate,
        )

    def _unspoken(self, row: LabelRow) -> Resolution:
        return Resolution.OTHER_TASK if row.task != self.task else Resolution.NO_SUBJECT

    def _places_of(self, connection: Connection, steps: set[int]) -> Mapping[int, StepPosition]:
        """Where these steps start; those asked for lately are remembered."""
        missing = sorted(steps - self._places.keys())
        if missing:
            self._places.update(journal.places(connection, *self._line, missing))
        for step in sorted(steps & self._places.keys()):
            self._places.move_to_end(step)
        while len(self._places) > PLACES:
            self._places.popitem(last=False)
        return self._places


def _told(row: LabelRow, subject: int) -> ObservedLabel:
    return ObservedLabel(subject, row.known_at, row.ref_time, row.value)


def _known(one: label_resolutions.Waiting) -> ObservedLabel:
    return ObservedLabel(
        one.subject, event_log.microseconds_of(one.known_at), event_log.microseconds_of(one.ref_time), one.value
    )
