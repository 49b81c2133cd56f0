"""`driftline verify --learners`: did every label that a learner has read end in exactly one count?

With SQL and code of its own, in one transaction that sees one moment: the labels of the log below the learner's cursor,
read from the segments themselves, against what is written of them and of the payments they speak of.

- Each accepted label below the cursor has one row in `label_resolution`, of the right step's past; and none is there
  that the log does not hold (below what retention left of it nothing can be compared).
- A label that was learnt is the outcome of its payment, one that corrected a silence its correction, with the value
  that the log holds; and each outcome that is no silence has exactly one such label.

The newest step may be journalled and not run yet: its labels may all be missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from typing import Any

import psycopg
import pyarrow as pa

from contracts import topics
from contracts.identity import event_key
from driftline.audit.database_reader import one_moment

NAMES = (
    "learnt", "corrected", "confirmed_silence", "after_horizon", "waiting", "repeated", "contradicting", "too_late",
    "context_gone", "subject_skipped", "other_task", "no_subject",
)  # fmt: skip
"""What a label can end in; "waiting" has not ended yet."""
SHOWN = 5
_FIRST = ("learnt", "after_horizon")
_LATER = ("corrected", "confirmed_silence")

_LEARNERS = """
    SELECT l.name, l.branch, l.config ->> 'label', j.cursor, j.rows
    FROM learner l LEFT JOIN journal j ON j.learner = l.name AND j.branch = l.branch AND j.step = l.next_step - 1
    WHERE l.config ->> 'label' IS NOT NULL ORDER BY l.name
"""
_STREAMS = "SELECT stream_id, log_begins FROM stream_offset WHERE topic = 'labels' ORDER BY stream_id"
_SEGMENTS = """
    SELECT rows FROM log_segment
    WHERE stream_id = %s AND first_offset < %s AND rows IS NOT NULL ORDER BY first_offset, epoch
"""
_RESOLUTIONS = """
    SELECT stream_id, position, subject, coalesce(resolution, 'waiting'), resolved_step FROM label_resolution
    WHERE learner = %s AND branch = %s
"""
_PREDICTIONS = """
    SELECT subject, silent, closed_step, value, known_at, corrected_step, corrected_value, corrected_known_at
    FROM prediction WHERE learner = %s AND branch = %s AND closed_step IS NOT NULL
"""
_ERASED = "SELECT user_hash FROM suppression"
_KEY = "SELECT suppression_key FROM installation"


Settled = tuple[int | None, str, int | None]
"""Subject, what came of the label, and the step that settled it."""


@dataclass(kw_only=True)
class LearnerReport:
    """What was found of one learner."""

    learner: str
    task: str
    labels: int = 0
    """Accepted ones that the log holds below the learner's cursor."""
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 0))
    """Of these, how each ended: their sum is all of them."""
    not_compared: int = 0
    """Written of labels that retention removed from the log."""
    not_run: int = 0
    """Labels of a step that is journalled and has not run."""
    wrong: int = 0
    details: list[str] = field(default_factory=list)
    """Of the first ones."""

    def found(self, detail: str) -> None:
        """Counts a finding, and keeps the first ones."""
        self.wrong += 1
        if len(self.details) < SHOWN:
            self.details.append(detail)


@dataclass(frozen=True, kw_only=True)
class _Label:
    """As the log holds it."""

    subject: int | None
    task: str
    value: float
    known_at: datetime


def audit_learners(postgres_url: str) -> list[LearnerReport]:
    """Checks all learners of outcomes. Safe beside running processes: it looks at one moment and writes nothing."""
    with one_moment(postgres_url) as connection:
        return [_Check(connection, *row).run() for row in connection.execute(_LEARNERS).fetchall()]


class _Check:
    """One learner."""

    def __init__(
        self,
        connection: psycopg.Connection[tuple[Any, ...]],
        name: str,
        branch: int,
        task: str,
        cursor: dict[str, int] | None,
        rows: list[list[int]] | None,
    ) -> None:
        self._connection = connection
        self._key = (name, branch)
        self._report = LearnerReport(learner=name, task=task)
        self._cursor = {int(stream): offset for stream, offset in (cursor or {}).items()}
        self._before_last = dict(self._cursor)
        self._erased = frozenset(bytes(found) for (found,) in connection.execute(_ERASED).fetchall())
        [(secret,)] = connection.execute(_KEY).fetchall()
        self._secret = bytes(secret)
        for stream, _, end in rows or []:
            self._cursor[stream] = end

    def run(self) -> LearnerReport:
        """Labels first, then the outcomes they told."""
        settled: dict[tuple[int, int], Settled] = {
            (stream, at): (subject, resolution, step)
            for stream, at, subject, resolution, step in self._all(_RESOLUTIONS)
        }
        begins = dict(self._connection.execute(_STREAMS).fetchall())
        told: dict[int, list[tuple[str, int, _Label]]] = {}
        for spot, label in self._labels(begins):
            found = settled.pop(spot, None)
            if label is None:
                continue  # of an erased user: on its way out
            self._report.labels += 1
            if found is None:
                self._missing(spot)
            else:
                self._count(spot, label, found, told)
        for stream, at in settled:
            if at < begins.get(stream, 0):
                self._report.not_compared += 1
            else:
                self._report.found(f"stream {stream} offset {at}: counted, and no label stands there")
        self._not_run_at_once()
        if not self._report.not_compared:
            self._outcomes(told)
        return self._report

    def _labels(self, begins: dict[int, int]) -> Iterator[tuple[tuple[int, int], _Label | None]]:
        """Labels below the cursor; None instead of an erased user's."""
        for stream in begins:
            below = self._cursor.get(stream, 0)
            for (rows,) in self._connection.execute(_SEGMENTS, (stream, below)).fetchall():
                for row in pa.ipc.open_stream(rows).read_all().to_pylist():
                    if row["offset"] < below:
                        yield (stream, row["offset"]), None if self._is_erased(row["user"]) else self._label(row)

    def _is_erased(self, user: str) -> bool:
        return blake2b(user.encode(), key=self._secret, digest_size=32).digest() in self._erased

    def _label(self, row: dict[str, Any]) -> _Label:
        speaks = row["task"] == self._report.task and row["subject"] is not None
        subject = event_key(topics.PAYMENT, row["user"], row["subject"]) if speaks else None
        return _Label(subject=subject, task=row["task"], value=row["value"], known_at=row["at"])

    def _missing(self, spot: tuple[int, int]) -> None:
        stream, at = spot
        if at >= self._before_last.get(stream, 0):
            self._report.not_run += 1
        else:
            self._report.found(f"stream {stream} offset {at}: a label that was read, and ended in no count")

    def _not_run_at_once(self) -> None:
        """A step's labels are written in its one transaction: of those it took either none is missing, or all are."""
        ran = self._connection.execute(
            "SELECT count(*) FROM label_resolution r JOIN learner l ON l.name = r.learner AND l.branch = r.branch "
            "WHERE r.learner = %s AND r.branch = %s AND r.step = l.next_step - 1",
            self._key,
        ).fetchone()
        if self._report.not_run and ran is not None and ran[0]:
            self._report.found(f"{self._report.not_run} labels of the newest step ended in no count, others did")

    def _count(
        self,
        spot: tuple[int, int],
        label: _Label,
        found: Settled,
        told: dict[int, list[tuple[str, int, _Label]]],
    ) -> None:
        subject, resolution, step = found
        self._report.counts[resolution] += 1
        if subject != label.subject:
            self._report.found(f"stream {spot[0]} offset {spot[1]}: counted for another subject than the label's")
        elif label.subject is None and resolution != (
            "other_task" if label.task != self._report.task else "no_subject"
        ):
            self._report.found(f"stream {spot[0]} offset {spot[1]}: {resolution}, though it speaks of no payment")
        elif subject is not None and resolution in (*_FIRST, *_LATER) and step is not None:
            told.setdefault(subject, []).append((resolution, step, label))

    def _outcomes(self, told: dict[int, list[tuple[str, int, _Label]]]) -> None:
        """Outcomes against the labels that told them; labels whose payment an erasure took speak of nothing."""
        for subject, silent, closed_step, value, known_at, corrected_step, corrected, corrected_at in self._all(
            _PREDICTIONS
        ):
            labels = told.pop(subject, [])
            wanted: Counter[tuple[bool, int, float, datetime]] = Counter()
            if not silent:
                wanted[True, closed_step, value, known_at] += 1
            if corrected_step is not None:
                wanted[False, corrected_step, corrected, corrected_at] += 1
            heard = Counter((kind in _FIRST, step, label.value, label.known_at) for kind, step, label in labels)
            if heard != wanted and (heard or not self._erased):  # an erasure takes labels before outcomes
                self._report.found(f"payment {subject}: its outcome is not what its labels told")
        if told and not self._erased:
            self._report.found(f"{len(told)} payments have labels that were learnt, and no outcome")

    def _all(self, statement: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement.encode(), self._key).fetchall()
