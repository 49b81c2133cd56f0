"""Rows whose record time lies far ahead of their stream's: accepted all the same, counted and shown.

Nothing in the log says which side is wrong, so nothing is refused. What is far depends on the rows before it alone
and on no clock, so the same log has the same far rows however it came in.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from contracts.clocks import ROWS

Ints = NDArray[np.int64]

DAY_US: Final = 86_400_000_000
FEWEST: Final = 3
"""Rows before it that a row is measured by; fewer say nothing of how dense their stream is."""


def far(before: Ints, times: Ints) -> NDArray[np.bool_]:
    """Which rows lie more than a day after the lower median of the 33 before them, and further than three times the way
    from their lowest tenth to that median: a stream of one row a week is no row far.

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
    median, tenth = ordered[:, (rows - 1) // 2], ordered[:, (rows - 1) // 10]
    return times - median > np.maximum(DAY_US, 3 * (median - tenth))
