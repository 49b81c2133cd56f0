"""What the times of a stream say of where it stands, though some of them be false.

A record time is what a producer's clock says, an event time what its author does. The largest of them is worth
nothing: one record of the year 2100, and everything else is 74 years old. So a stream stands at the newest of its last
33 rows that is not *far* ahead of them: no more than 16 false times ahead, and 8 behind, say anything. Nothing here
reads a clock or needs to know which side is wrong: the same log always says the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

ROWS: Final = 33
"""Rows of a stream that say where it stands: the last ones."""
FEWEST: Final = 3
"""Rows that another is measured by; fewer say nothing of how dense their stream is."""
DAY_US: Final = 86_400_000_000


def lower_median(times: Sequence[int]) -> int:
    """The middle one; of two in the middle the smaller.

    :raises ValueError: there are none.
    """
    if not times:
        raise ValueError("no times, no median")
    return sorted(times)[(len(times) - 1) // 2]


def newest(tails: Iterable[Sequence[int]]) -> int | None:
    """Where several streams stand together, microseconds: the newest good one of the 33 newest among the last 33 of
    each.

    A stream that ended long ago draws nothing back, and one that holds a few false times and nothing else draws
    nothing forward.

    :returns: None: there are no times.
    """
    pooled = sorted(time for tail in tails for time in tail[-ROWS:])
    return newest_good(np.array(pooled, np.int64))


def far(before: Ints, times: Ints) -> NDArray[np.bool_]:
    """Which rows lie more than a day after the lower median of the 33 before them, and further than four times the
    way from their lower quartile to that median: of a stream of one row a week none is far.

    :param before: record times of the last rows of the stream, microseconds, at least the last 33 if it has them.
    :param times: record times of the rows that follow.
    """
    found = np.zeros(len(times), bool)
    known = np.concatenate([before[-ROWS:], times])
    if not len(times) or times.max() - known.min() <= DAY_US:
        return found
    first = len(known) - len(times)
    for index in range(min(len(times), max(0, ROWS - first))):  # of a stream that has only begun
        found[index] = _is_far(known[None, : first + index], times[index : index + 1])[0]
    rest = max(0, ROWS - first)
    if rest < len(times):
        windows = np.lib.stride_tricks.sliding_window_view(known, ROWS)[first + rest - ROWS : -1]
        doubtful = np.flatnonzero(times[rest:] - windows.min(axis=1) > DAY_US)
        found[rest + doubtful] = _is_far(windows[doubtful], times[rest + doubtful])
    return found


def newest_good(times: Ints) -> int | None:
    """The newest of the last 33 that is not far ahead of them, in the unit of the times (microseconds)."""
    last = times[-ROWS:]
    if not len(last):
        return None
    return int(last[~_is_far(last[None, :], last)].max())


def _is_far(windows: Ints, times: Ints) -> NDArray[np.bool_]:
    """Of each time, by its window [M, N], or by the one window of all."""
    rows = windows.shape[1]
    if rows < FEWEST:
        return np.zeros(len(times), bool)
    ordered = np.sort(windows, axis=1)
    median, quartile = ordered[:, (rows - 1) // 2], ordered[:, (rows - 1) // 4]
    is_far: NDArray[np.bool_] = times - median > np.maximum(DAY_US, 4 * (median - quartile))
    return is_far
