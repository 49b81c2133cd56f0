"""What comes of the labels of a step: each is learnt, corrects a silence, waits, or is counted with its reason.

Of the labels of one subject the first one counts, in the order of the merge. One that comes after the silence of its
subject was learnt is a correction, at most one a subject; the silence stays written, so that every step repeats as it
was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from storage.learning.label_resolutions import Resolution
from storage.learning.predictions import OpenPrediction
from storage.log import event_log


class ObservedLabel(NamedTuple):
    """An outcome, without saying whose."""

    subject: int
    """Digest of the event's identity."""
    known_at: int
    """Microseconds, as all times here."""
    ref_time: int
    value: float


class Heard(NamedTuple):
    """A label that a step has to deal with."""

    stream_id: int
    position: int
    known: ObservedLabel
    waited: bool
    """An earlier step took it from the log."""


class Case(NamedTuple):
    """An outcome on its way to the learner."""

    kept: OpenPrediction
    known: ObservedLabel
    heard: Heard | None
    """None: silence."""
    correction: bool


@dataclass(frozen=True, kw_only=True)
class Window:
    """How long silence lasts, and how long it may be corrected, microseconds of event time."""

    horizon_us: int | None
    """None: no silence counts."""
    correction_us: int | None
    """None: without bound."""
    clock: int | None
    """Where the task's clock stood before the step."""

    def too_late(self, at: int) -> bool:
        """Whether the silence of an event is corrected no more."""
        return self.clock is not None and self.correction_us is not None and at + self.correction_us < self.clock

    def over(self, at: int, known_at: int) -> bool:
        """Whether an outcome became known behind the horizon."""
        return self.horizon_us is not None and known_at > at + self.horizon_us


@dataclass
class Resolved:
    """What came of the labels, and what is to be learnt of them."""

    fates: dict[Heard, Resolution | None] = field(default_factory=dict)
    """None: it waits."""
    cases: list[Case] = field(default_factory=list)
    confirmed: list[Case] = field(default_factory=list)
    """Silences that a label says too: written, not learnt."""


def resolve(
    heard: Iterable[Heard], handled: Mapping[int, OpenPrediction], waiting: Mapping[int, float], window: Window
) -> Resolved:
    """Goes through labels in the order in which they count.

    :param handled: subjects that were handled as of the step.
    :param waiting: value of the label that waits, by subject.
    """
    found, said, waits = Resolved(), dict[int, float](), dict(waiting)
    for one in heard:
        subject, value = one.known.subject, one.known.value
        kept = handled.get(subject)
        if subject in said:
            found.fates[one] = again(value, said[subject])
        elif kept is None:
            found.fates[one] = again(value, waits[subject]) if subject in waits else None
            waits.setdefault(subject, value)
        else:
            fate = _of_handled(one, kept, window)
            found.fates[one] = fate
            if fate in _COUNTS:
                said[subject] = value
                case = Case(kept, one.known, one, correction=kept.closed)
                (found.confirmed if fate is Resolution.CONFIRMED_SILENCE else found.cases).append(case)
    return found


_COUNTS = frozenset({Resolution.LEARNT, Resolution.AFTER_HORIZON, Resolution.CORRECTED, Resolution.CONFIRMED_SILENCE})
"""The label is the one that counts for its subject."""


def _of_handled(one: Heard, kept: OpenPrediction, window: Window) -> Resolution:
    at = event_log.microseconds_of(kept.at)
    if not kept.closed:
        return Resolution.AFTER_HORIZON if window.over(at, one.known.known_at) else Resolution.LEARNT
    if not kept.silent or kept.corrected:
        before = kept.corrected_value if kept.corrected else kept.value
        assert before is not None, "an outcome that is closed or corrected has a value"
        return again(one.known.value, before)
    if window.too_late(at):
        return Resolution.TOO_LATE
    return Resolution.CORRECTED if outcome(one.known.value) else Resolution.CONFIRMED_SILENCE


def again(value: float, before: float) -> Resolution:
    """What a label is whose subject had one already."""
    return Resolution.REPEATED if outcome(value) == outcome(before) else Resolution.CONTRADICTING


def outcome(value: float) -> float:
    """A label's value as it is learnt: 0 to 1."""
    return min(max(value, 0.0), 1.0)
