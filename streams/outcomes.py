"""Late labels and silence: from an outcome that became known to the context of the event it speaks of.

A label resolves to the step that first handled its subject, and is learnt in the first step that covers both: its own,
or, should it have come before its subject, the subject's. The context is what the subject's own prediction saw: what
came before it in the order of the merge, strictly before the reference time. What the learner's counts said then
comes back from the stored prediction. When the event-time watermark passes the subject's time by the task's horizon,
silence counts as an outcome: a tick, which the journal names before the step runs.

Nothing here reads the clock. In a repetition the same rows of the journal and the same stored predictions give the
same batch (`storage/predictions.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from contracts import topics
from contracts.identity import event_key
from learners.batch import Batch, Floats
from learners.cohort import Issued as Told
from learners.ranking.candidates import rows_of
from storage import journal, log, predictions, sequences
from storage.journal import Place, Seat, Tick
from storage.offsets import Cursor
from storage.predictions import Closed, Issued, Kept
from streams.histories import Histories
from streams.maturity import Known, as_batch, as_of, closed, subjects_of
from streams.merge import LabelRow, LogRow

TICKS: Final = 256
"""Silences that one step closes at most: when time leaps, the steps after it share them."""
WAITING: Final = 100_000
"""Labels that wait for their subject at most; those that have waited longest are let go."""
PLACES: Final = 4_096
"""Steps whose start cursors are remembered."""
_NEVER: Final = 2**62


@dataclass(frozen=True, kw_only=True)
class Due:
    """What a step learns beside its events."""

    batch: Batch
    risks: Floats
    """[B, A] as issued, by arm."""
    closed: tuple[Closed, ...]


@dataclass
class Handled:
    """What became of a step's labels."""

    learnt: int = 0
    silent: int = 0
    waiting: int = 0
    """Their subject was not handled yet."""
    passed_over: int = 0
    """Of another task, of no event, or of one whose outcome was learnt already or can no longer be read."""


class Outcomes:
    """What a learner of outcomes keeps between steps: labels that wait. Everything else is in Postgres."""

    def __init__(
        self, histories: Histories, *, learner: str, branch: int, task: str, horizon_us: int | None, seat: Seat | None
    ) -> None:
        """
        :param horizon_us: microseconds of silence that count as an outcome; None: no silence does.
        :param seat: whose predictions are written; None: they are there already (a repetition for its own sake).
        """
        self._histories = histories
        self._line: Final = (learner, branch)
        self._task: Final = task
        self._horizon_us: Final = horizon_us
        self._seat: Final = seat
        self._waiting: OrderedDict[int, Known] = OrderedDict()
        self._places: OrderedDict[int, Place] = OrderedDict()
        self._quiet_until: int | None = None
        """No silence is due while the front is below it; None: not known."""
        self.handled = Handled()
        """Of the newest step."""

    # -- subjects --

    def ask(self, batch: Batch, rows: Sequence[LogRow]) -> tuple[Batch, list[LogRow]] | None:
        """The rows that are payments, asked at their own time; None: there are none."""
        places = [n for n, row in enumerate(rows) if row.event.kind == sequences.PAYMENT]
        if not places:
            return None
        asked, batch = [rows[n] for n in places], rows_of(batch, np.array(places, np.int64))
        query = replace(batch.query, now=batch.target.at, subject=subjects_of([row.event for row in asked]))
        return replace(batch, query=query), asked

    def keep(self, connection: Connection, number: int, rows: Sequence[LogRow], told: Told) -> None:
        """Stores what was predicted of a step's subjects."""
        if self._seat is None:
            return
        journal.check_seat(connection, self._seat)
        issued = [
            Issued(
                user=row.user,
                subject=row.event.key,
                stream_id=row.stream_id,
                position=row.offset,
                at=log.time_of(row.event.at),
                features=features,
                risks=risks,
            )
            for row, features, risks in zip(rows, told.features.tolist(), told.risks.tolist(), strict=True)
        ]
        predictions.put(connection, self._seat, number, self._task, issued)
        if self._quiet_until is not None and self._horizon_us is not None:
            self._quiet_until = min([self._quiet_until, *(row.event.at + self._horizon_us for row in rows)])

    # -- outcomes --

    def silences(self, connection: Connection, front: int | None) -> tuple[Tick, ...]:
        """Subjects that have been silent to their horizon when the watermark stands at `front`, the oldest first: the
        same until a step closes them."""
        if front is None or self._horizon_us is None or (self._quiet_until is not None and front < self._quiet_until):
            return ()
        found = predictions.oldest(connection, *self._line, limit=TICKS + 1)
        due = [(user_id, subject, log.microseconds_of(at) + self._horizon_us) for user_id, subject, at in found]
        self._quiet_until = due[0][2] if due else _NEVER  # the next subject says when to look again
        return tuple((user_id, subject) for user_id, subject, at in due[:TICKS] if at <= front)

    def due(
        self,
        connection: Connection,
        number: int,
        rows: Sequence[LogRow],
        labels: Sequence[LabelRow],
        ticks: Sequence[Tick],
        cursor: Cursor,
    ) -> Due | None:
        """The outcomes that the step learns: those that waited for one of its rows, its labels, its silences.

        :param rows: its events. :param cursor: where it ends.
        """
        self.handled = Handled()
        known = {one.subject: one for one in self._came(rows)}
        found = {kept.subject: kept for kept in self._resolved(connection, number, rows, labels, known)}
        for tick in predictions.of_numbers(connection, *self._line, number, ticks).values():
            if not tick.closed and tick.subject not in known:
                found[tick.subject] = tick
        return self._batch(connection, [(kept, known.get(kept.subject)) for kept in found.values()], cursor)

    def close(self, connection: Connection, number: int, due: Due) -> None:
        """Stores what came of subjects."""
        if self._seat is not None:
            journal.check_seat(connection, self._seat)
            predictions.close(connection, self._seat, number, due.closed)

    def count_open(self, connection: Connection) -> int:
        """Subjects that wait for an outcome."""
        return predictions.count_open(connection, *self._line)

    # -- what waits, for snapshots --

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Labels that wait, in the order in which they came."""
        waiting = list(self._waiting.values())
        times = [(one.subject, one.known_at, one.ref_time) for one in waiting]
        return {
            "waiting": np.array(times, np.int64).reshape(len(times), 3),
            "values": np.array([one.value for one in waiting], np.float64),
        }

    def load(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `tensors`."""
        rows = zip(tensors["waiting"].tolist(), tensors["values"].tolist(), strict=True)
        self._waiting = OrderedDict(
            (subject, Known(subject, known_at, ref_time, value)) for (subject, known_at, ref_time), value in rows
        )

    # -- inside --

    def _came(self, rows: Sequence[LogRow]) -> list[Known]:
        """Outcomes that waited for one of these rows; they wait no more."""
        return [self._waiting.pop(row.event.key) for row in rows if row.event.key in self._waiting]

    def _resolved(
        self,
        connection: Connection,
        number: int,
        rows: Sequence[LogRow],
        labels: Sequence[LabelRow],
        known: dict[int, Known],
    ) -> list[Kept]:
        """Subjects of the step's outcomes that are open; `known` gets the labels', and what must wait waits."""
        asks = [(row.user, row.event.key) for row in rows if row.event.key in known]
        for label in labels:
            if label.task != self._task or label.subject is None:
                self.handled.passed_over += 1
                continue
            subject = event_key(topics.PAYMENT, label.user, label.subject)
            if subject in known:
                self.handled.passed_over += 1  # the first one counts
                continue
            known[subject] = Known(subject, label.known_at, label.ref_time, label.value)
            asks.append((label.user, subject))
        found = predictions.of_users(connection, *self._line, number, asks)
        for place, (_, subject) in enumerate(asks):
            if place not in found:
                self._wait(known.pop(subject))
        self.handled.passed_over += sum(kept.closed for kept in found.values())
        return [kept for kept in found.values() if not kept.closed]

    def _wait(self, known: Known) -> None:
        self.handled.waiting += 1
        self._waiting.setdefault(known.subject, known)
        while len(self._waiting) > WAITING:
            self._waiting.popitem(last=False)

    def _silence(self, kept: Kept) -> Known:
        """What came of a subject of which nobody said anything."""
        assert self._horizon_us is not None, "ticks are journalled where there is a horizon"
        at = log.microseconds_of(kept.at)
        return Known(kept.subject, at + self._horizon_us, at, 0.0)

    def _batch(self, connection: Connection, pairs: Sequence[tuple[Kept, Known | None]], cursor: Cursor) -> Due | None:
        """Contexts as of the subjects' own steps, with what became known; None: there is nothing to learn."""
        places = self._places_of(connection, {kept.step for kept, _ in pairs})
        told = [(kept, known or self._silence(kept)) for kept, known in pairs]
        asks = [as_of(kept, known, places[kept.step]) for kept, known in told]
        views = self._histories.as_of(connection, asks, cursor)
        there = [n for n, view in enumerate(views) if view is not None]
        self._let_go(connection, [kept for (kept, _), view in zip(told, views, strict=True) if view is None])
        if not there:
            return None
        silent = [pairs[n][1] is None for n in there]
        self.handled.silent, self.handled.learnt = sum(silent), len(there) - sum(silent)
        rows = [told[n] for n in there]
        return Due(
            batch=as_batch(rows, [view for view in views if view is not None]),
            risks=np.array([kept.risks for kept, _ in rows], np.float64),
            closed=tuple(closed(kept, known, nobody) for (kept, known), nobody in zip(rows, silent, strict=True)),
        )

    def _let_go(self, connection: Connection, gone: Sequence[Kept]) -> None:
        """Predictions of events that an erasure took after they were handled: nothing can be learnt of them."""
        self.handled.passed_over += len(gone)
        for kept in gone if self._seat is not None else ():
            predictions.erase_events(connection, kept.stream_id, [kept.position])

    def _places_of(self, connection: Connection, steps: set[int]) -> Mapping[int, Place]:
        """Where these steps start; those asked for lately are remembered."""
        missing = sorted(steps - self._places.keys())
        if missing:
            self._places.update(journal.places(connection, *self._line, missing))
        for step in sorted(steps & self._places.keys()):
            self._places.move_to_end(step)
        while len(self._places) > PLACES:
            self._places.popitem(last=False)
        return self._places
