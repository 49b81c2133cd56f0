"""From a stored prediction and what became known of it to a learner's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from learners.baselines.parties import without_features
from learners.batch import Batch, Origin, Query, Subject, Target, TargetKind
from runtime.context import context_of, strings
from storage import log
from storage.journal import Place
from storage.predictions import Closed, Kept
from storage.sequences import SequenceEvent
from streams.histories import AsOf


class Known(NamedTuple):
    """An outcome, without saying whose: what waits for its subject, and stands in snapshots."""

    subject: int
    """Digest of the event's identity."""
    known_at: int
    """Microseconds, as all times here."""
    ref_time: int
    value: float


def as_of(kept: Kept, known: Known, place: Place) -> AsOf:
    """The subject as it was handled, its history up to the reference time."""
    return AsOf(
        user=kept.user,
        key=kept.subject,
        stream_id=kept.stream_id,
        offset=kept.position,
        at=log.microseconds_of(kept.at),
        before=known.ref_time,
        seen=place.before(kept.stream_id, kept.position),
    )


def closed(kept: Kept, known: Known, silent: bool) -> Closed:
    """What came of a subject, for the table."""
    return Closed(
        user_id=kept.user_id,
        subject=kept.subject,
        value=known.value,
        known_at=log.time_of(known.known_at),
        silent=silent,
    )


def as_batch(rows: Sequence[tuple[Kept, Known]], views: Sequence[tuple[SequenceEvent, list[SequenceEvent]]]) -> Batch:
    """Outcomes with what their subjects' own predictions saw.

    :param views: of each row its event and the history that it may see.
    """
    events, n = [event for event, _ in views], len(rows)
    ref_times = np.array([known.ref_time for _, known in rows], np.int64)
    return Batch(
        context=context_of([stack for _, stack in views]),
        query=Query(
            stack=np.arange(n, dtype=np.int64),
            visible=np.array([len(stack) for _, stack in views], np.int64),
            now=ref_times,
            user=strings([kept.user for kept, _ in rows]),
            subject=replace(subjects_of(events), features=np.array([kept.features for kept, _ in rows], np.float64)),
        ),
        target=Target(
            kind=TargetKind.OUTCOME,
            at=np.array([known.known_at for _, known in rows], np.int64),
            type=strings([event.type for event in events]),
            resolution=np.ones(n, np.int64),
            timed=np.zeros(n, np.bool_),
            weight=np.ones(n),
            item=strings([event.item for event in events]),
            y=np.clip(np.array([known.value for _, known in rows], np.float64), 0.0, 1.0),
        ),
        origin=Origin(key=np.array([event.key for event in events], np.int64)),
    )


def subjects_of(events: Sequence[SequenceEvent]) -> Subject:
    """Payments as those whose outcome is asked for; what is known of their parties is not filled in."""
    return without_features([event.amount or 0 for event in events], [event.other for event in events])
