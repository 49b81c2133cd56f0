"""When behaviour changes, and the users' clock that runs faster in the new behaviour.

A Hawkes process on a clock of its own stays one when the clock's speed changes: it is simulated on that clock
and then brought to seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np

from driftline.simulate.scenario import Drift, Floats, Scenario


class Span(NamedTuple):
    """A change, in seconds from the start."""

    begins_s: float
    ends_s: float
    """As `begins_s`, if it is abrupt."""
    to_new: bool


def changes(scenario: Scenario) -> tuple[Span, ...]:
    """All changes that begin before the end, in order."""
    first, lasts = scenario.change_after_s, scenario.change_lasts_s
    if first is None or first >= scenario.duration_s:
        return ()
    if scenario.drift is Drift.GRADUAL:
        return (Span(first, first + lasts, True),)
    if scenario.drift is Drift.ABRUPT:
        return (Span(first, first, True),)
    times = (first + n * lasts for n in count())
    found = []
    for n, at in enumerate(times):
        if at >= scenario.duration_s:
            break
        found.append(Span(at, at, n % 2 == 0))
    return tuple(found)


@dataclass(frozen=True)
class Schedule:
    """The share of the new behaviour over time, linear on each of S pieces; the last one has no end."""

    begins_s: Floats
    """[S] seconds from the start, increasing, the first 0."""
    share_there: Floats
    """[S] share where the piece begins."""
    slope: Floats
    """[S] its growth per second."""
    speed: float
    """Of the clock in the new behaviour; in the old one 1."""
    clock_there: Floats
    """[S] the clock where the piece begins."""

    @classmethod
    def of(cls, scenario: Scenario) -> Schedule:
        """The scenario's."""
        pieces = [(0.0, 0.0, 0.0)]
        for begins, ends, to_new in changes(scenario):
            if ends > begins:
                pieces.append((begins, 0.0, 1.0 / (ends - begins)))
            pieces.append((ends, float(to_new), 0.0))
        if pieces[1:] and pieces[1][0] == 0.0:
            del pieces[0]
        begins_s, share, slope = np.array(pieces).T
        speed, length = scenario.speed_after, np.diff(begins_s)
        passed = length + (speed - 1) * (share[:-1] * length + slope[:-1] * length**2 / 2)
        return cls(begins_s, share, slope, speed, np.concatenate([[0.0], np.cumsum(passed)]))

    def share(self, at_s: Floats) -> Floats:
        """[n] share of the new behaviour at times from 0 on."""
        piece = np.searchsorted(self.begins_s, at_s, side="right") - 1
        return np.asarray(self.share_there[piece] + self.slope[piece] * (at_s - self.begins_s[piece]))

    def clock(self, at_s: Floats) -> Floats:
        """[n] what the clock shows at times from 0 on."""
        piece = np.searchsorted(self.begins_s, at_s, side="right") - 1
        since, faster = at_s - self.begins_s[piece], self.speed - 1
        gained = self.share_there[piece] * since + self.slope[piece] * since**2 / 2
        return np.asarray(self.clock_there[piece] + since + faster * gained)

    def seconds(self, clock: Floats) -> Floats:
        """[n] the times at which the clock shows this; the inverse of `clock`."""
        piece = np.searchsorted(self.clock_there, clock, side="right") - 1
        passed, faster = clock - self.clock_there[piece], self.speed - 1
        first, second = 1 + faster * self.share_there[piece], faster * self.slope[piece] / 2
        root = np.sqrt(first**2 + 4 * second * passed)  # of second * x**2 + first * x = passed
        return np.asarray(self.begins_s[piece] + 2 * passed / (first + root))
