"""Whether a series of numbers changed, where, and how sure that is. No state and no randomness: a detector is
its inputs since the last reset, fed again to river's objects, which cannot be stored.

Two tests see each series, in standard deviations of its first `REFERENCE` inputs:

* Page-Hinkley (Page 1954; Mouss et al. 2004): the sum of deviations from the running mean, less an allowance, above
  its minimum. Quick for an abrupt change.
* ADWIN (Bifet and Gavaldà 2007): two adjacent windows whose means differ. It also sees slow changes, and falls.

The thresholds are constants, fixed by simulation on seeds 0-19 so that all series of a learner together give
`BUDGET` false alarms per 100,000 events; `python -m benchmarks.drift thresholds` derives them, and
`python -m benchmarks.drift report` says on seeds 100-119 what they do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median
from typing import Final, Protocol

from river.drift import ADWIN, PageHinkley

BUDGET: Final = 1.0
"""False alarms per 100,000 events, over all series of one subject."""
REFERENCE: Final = 32
"""Inputs that give the scale; nothing is detected before."""
WILD: Final = 1_000.0
"""Inputs of the reference that lie further from its median than so often the median, or 1, say nothing: all series are
nats, shares or log seconds. Not in deviations: a series of rare events has tiny ones, and its events are no outliers.
"""
MAX_INPUTS: Final = 256
"""When a series holds more, the oldest half goes."""
MIN_SIDE: Final = 4
"""Inputs before a change, at least, and in each of the windows that ADWIN compares."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What is allowed before a change is called."""

    allowance: float = 0.25
    """Of Page-Hinkley, standard deviations an input: smaller changes are not looked for."""
    excess: float = 30.0
    """Of Page-Hinkley, standard deviations."""
    delta: float = 1e-3
    """Of ADWIN."""


THRESHOLDS: Final = Thresholds()


@dataclass(frozen=True, kw_only=True)
class DetectedChange:
    """A series is no longer what it was."""

    detector: str
    split: int
    """Inputs before the change, as far as it can be placed."""
    before: float
    after: float
    """Means on both sides."""
    z: float
    """Their difference in standard errors. The split is where it is largest, so it is no p-value."""

    @property
    def grew(self) -> bool:
        return self.after > self.before


def find(
    inputs: Sequence[float], *, two_sided: bool = False, thresholds: Thresholds = THRESHOLDS
) -> DetectedChange | None:
    """The first test that calls a change somewhere in the inputs; None = neither does.

    A fall of a series that is not `two_sided` is found too, by ADWIN: the caller forgets what was before it.
    """
    if len(inputs) <= REFERENCE:
        return None
    inputs = tamed(inputs)
    scaled = standardised(inputs)
    if _page_hinkley(scaled, two_sided, thresholds):
        change = placed("page_hinkley", inputs)
        if two_sided or change.grew:
            return change
    return placed("adwin", inputs) if _adwin(scaled, thresholds) else None


def tamed(inputs: Sequence[float]) -> list[float]:
    """The inputs, wild ones of the reference replaced by its median: a burst among the first rows would otherwise set a
    scale by which nothing that follows is a change."""
    middle = median(inputs[:REFERENCE])
    limit = WILD * max(abs(middle), 1.0)
    drawn = [value if abs(value - middle) <= limit else middle for value in inputs[:REFERENCE]]
    return [*drawn, *inputs[REFERENCE:]]


def standardised(inputs: Sequence[float]) -> list[float]:
    """In standard deviations of the reference, from its mean. A constant reference has the scale of its rounding."""
    reference = inputs[:REFERENCE]
    mean = sum(reference) / REFERENCE
    scale = math.sqrt(sum((value - mean) ** 2 for value in reference) / (REFERENCE - 1))
    scale = max(scale, 1e-6 * abs(mean), 1e-9)
    return [(value - mean) / scale for value in inputs]


def placed(detector: str, inputs: Sequence[float]) -> DetectedChange:
    """Where the means before and after differ most, in standard errors of a common variance."""
    n = len(inputs)
    centre = sum(inputs) / n
    sums = list(accumulate(value - centre for value in inputs))
    squares = sum((value - centre) ** 2 for value in inputs)
    best: tuple[float, int] = (-1.0, MIN_SIDE)
    for split in range(MIN_SIDE, n):
        between = sums[split - 1] ** 2 * n / (split * (n - split))
        best = max(best, (between / max(squares - between, 1e-12 * squares, 1e-300), split))
    ratio, split = best
    before = sum(inputs[:split]) / split
    after = sum(inputs[split:]) / (n - split)
    return DetectedChange(detector=detector, split=split, before=before, after=after, z=math.sqrt(ratio * (n - 2)))


def _page_hinkley(scaled: Sequence[float], two_sided: bool, thresholds: Thresholds) -> bool:
    test = PageHinkley(
        min_instances=REFERENCE,
        delta=thresholds.allowance,
        threshold=thresholds.excess,
        alpha=1.0,
        mode="both" if two_sided else "up",
    )
    return any(_detects(test, value) for value in scaled)


def _adwin(scaled: Sequence[float], thresholds: Thresholds) -> bool:
    make: Callable[..., _Test] = ADWIN  # compiled, so without types
    test = make(delta=thresholds.delta, clock=1, min_window_length=MIN_SIDE, grace_period=REFERENCE)
    return any(_detects(test, value) for value in scaled)


def _detects(test: _Test, value: float) -> bool:
    test.update(value)
    return bool(test.drift_detected)


class _Test(Protocol):
    """What river's detectors share."""

    @property
    def drift_detected(self) -> bool: ...

    def update(self, x: float) -> object: ...
