"""From a stored prediction and what became known of it to a learner's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from contexts.batch_builder import context_of, strings
from learners.baselines.counterparty_features import without_features
from learners.contract.batch import Batch, Origin, Query, Subject, Target, TargetKind
from storage.learning.journal import StepPosition
from storage.learning.predictions import Closed, Corrected, OpenPrediction
from storage.log import event_log
from storage.sequences.user_sequences import SequenceEvent
from streams.train.label_resolution import Case, ObservedLabel, outcome
from streams.train.step_batches import SubjectView


def as_of(kept: OpenPrediction, known: ObservedLabel, place: StepPosition) -> SubjectView:
    """The subject as it was handled, its history up to the reference time."""
    return SubjectView(
        user=kept.user,
        key=kept.subject,
        stream_id=kept.stream_id,
        offset=kept.position,
        at=event_log.microseconds_of(kept.at),
        before=known.ref_time,
        seen=place.before(kept.stream_id, kept.position),
    )


def closed(kept: OpenPrediction, known: ObservedLabel, silent: bool) -> Closed:
    """What came of a subject, for the table."""
    return Closed(
        user_id=kept.user_id,
        subject=kept.subject,
        value=known.value,
        known_at=event_log.time_of(known.known_at),
        silent=silent,
    )


def corrected(case: Case) -> Corrected:
    """What a label told after a subject's silence, for the table."""
    known = case.known
    return Corrected(
        user_id=case.kept.user_id,
        subject=case.kept.subject,
        value=known.value,
        known_at=event_log.time_of(known.known_at),
    )


def as_batch(cases: Sequence[Case], views: Sequence[tuple[SequenceEvent, list[SequenceEvent]]]) -> Batch:
    """Outcomes with what their subjects' own predictions saw.

    :param views: of each case its event and the history that it may see.
    """
    events, n = [event for event, _ in views], len(cases)
    ref_times = np.array([case.known.ref_time for case in cases], np.int64)
    return Batch(
        context=context_of([stack for _, stack in views]),
        query=Query(
            stack=np.arange(n, dtype=np.int64),
            visible=np.array([len(stack) for _, stack in views], np.int64),
            now=ref_times,
            user=strings([case.kept.user for case in cases]),
            subject=replace(subjects_of(events), features=np.array([case.kept.features for case in cases], np.float64)),
        ),
        target=Target(
            kind=TargetKind.OUTCOME,
            at=np.array([case.known.known_at for case in cases], np.int64),
            type=strings([event.type for event in events]),
            resolution=np.ones(n, np.int64),
            timed=np.zeros(n, np.bool_),
            weight=np.ones(n),
            item=strings([event.item for event in events]),
            y=np.array([outcome(case.known.value) for case in cases], np.float64),
            **_superseded(cases),
        ),
        origin=Origin(key=np.array([event.key for event in events], np.int64)),
    )


def _superseded(cases: Sequence[Case]) -> dict[str, np.ndarray[Any, Any]]:
    """What the corrections among them correct."""
    if not any(case.correction for case in cases):
        return {}
    values = [case.kept.value if case.correction else np.nan for case in cases]
    times = [_closed_at(case.kept) if case.correction else 0 for case in cases]
    return {"supersedes": np.array(values, np.float64), "superseded_at": np.array(times, np.int64)}


def _closed_at(kept: OpenPrediction) -> int:
    assert kept.known_at is not None, "its silence was learnt"
    return event_log.microseconds_of(kept.known_at)


def subjects_of(events: Sequence[SequenceEvent]) -> Subject:
    """Payments as those whose outcome is asked for; what is known of their parties is not filled in."""
    return without_features([event.amount or 0 for event in events], [event.other for event in events])
