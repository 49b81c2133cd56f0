"""The time by which a row takes its place in the merge, made of what follows it in its own stream (protocol, rule 13).

A record time is what a producer's clock says, and one false clock must not hold up what stands behind it: a row of
the year 2100 at the head of a partition would wait until all others are empty, and the rest of its partition with
it. So a row counts as no later than what follows it: its *effective time* is the smallest of its record time, q33
and q1024, where q_k is the value at index (n - 1) // 10 of the sorted record times of the next n <= k rows of its
stream, the row itself among them. Where times only grow, that is the record time. A tenth of the rows may be too old
without drawing the others forward; the short window lets an hour of a false clock pass, the long one a day of it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

WINDOWS: Final = (33, 1024)
"""Rows looked at, from the row itself on."""
LONGEST: Final = max(WINDOWS)
_BLOCK = 1024  # rows whose effective times are made at once
_NO_LIMIT = 2**63 - 1
_NONE = np.empty(0, np.int64)


def effective(times: Ints, count: int) -> Ints:
    """Effective times of the first `count` rows, in microseconds like their record times.

    :param times: record times of these rows and of what follows them: `LONGEST` - 1 more, or all that there are.
    """
    found = times[:count].copy()
    if (times[1:] >= times[:-1]).all():
        return found
    later = np.minimum.accumulate(times[::-1])[::-1]
    for rows in WINDOWS:
        if _may_lower(times, later, count, rows):
            np.minimum(found, _quantiles(times.tolist(), count, rows), out=found)
    return found


def _may_lower(times: Ints, later: Ints, count: int, rows: int) -> bool:
    """Whether one of the quantiles may lie below its own row: only if something that far behind it is older.

    :param later: the smallest record time from each row on.
    """
    at = np.arange(count)
    index = (np.minimum(rows, len(times) - at) - 1) // 10
    behind = at + index + 1
    there = behind < len(times)
    return bool((later[behind[there]] < times[:count][there]).any())


def _quantiles(times: list[int], count: int, rows: int) -> list[int]:
    window, found = sorted(times[:rows]), []
    for at in range(count):
        found.append(window[(len(window) - 1) // 10])
        del window[bisect_left(window, times[at])]
        if at + rows < len(times):
            insort(window, times[at + rows])
    return found


class Lookahead:
    """The rows that were read of one stream, from its head on: their offsets and times."""

    def __init__(self) -> None:
        self._times, self._offsets = _NONE, _NONE
        self._head = 0  # index of the head in both
        self._limit = _NO_LIMIT
        self._effective: deque[int] = deque()  # of the head and what follows; made as far as it was asked for
        self.rows = 0
        """Below the limit, the head among them. From `LONGEST` on nothing that comes changes the head's time."""

    def add(self, times: Ints, offsets: Ints) -> None:
        """What follows in the stream."""
        final = max(0, self.rows - LONGEST + 1)
        while len(self._effective) > final:  # made without what comes now
            self._effective.pop()
        self._times = np.concatenate([self._times[self._head :], times])
        self._offsets = np.concatenate([self._offsets[self._head :], offsets])
        self._head = 0
        self._count()

    def set_limit(self, limit: int) -> None:
        """Rows from this offset on are not there."""
        if limit != self._limit:
            self._limit = limit
            self._effective.clear()
            self._count()

    def drop(self) -> None:
        """The head is taken."""
        self._head += 1
        self.rows = max(0, self.rows - 1)
        if self._effective:
            self._effective.popleft()

    def head(self) -> int | None:
        """The head's effective time; None: there is none below the limit."""
        if not self.rows:
            return None
        if not self._effective:
            count = min(self.rows, _BLOCK)
            times = self._times[self._head : self._head + min(self.rows, count + LONGEST - 1)]
            self._effective.extend(effective(times, count).tolist())
        return self._effective[0]

    def _count(self) -> None:
        self.rows = max(0, int(np.searchsorted(self._offsets, self._limit)) - self._head)
