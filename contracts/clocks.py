"""What the times of a stream say of where it stands, though some of them be false.

A record time is what a producer's clock says, an event time what its author does. The newest of them is worth
nothing: one record of the year 2100, and everything else is 74 years old. The lower median of the last 33 is moved by
no 16 of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

ROWS: Final = 33
"""Rows of a stream that say where it stands: the last ones."""


def lower_median(times: Sequence[int]) -> int:
    """The middle one; of two in the middle the smaller.

    :raises ValueError: there are none.
    """
    if not times:
        raise ValueError("no times, no median")
    return sorted(times)[(len(times) - 1) // 2]


def newest(tails: Iterable[Sequence[int]]) -> int | None:
    """Where several streams stand together: the lower median of the 33 newest among the last 33 of each.

    Of one stream, the lower median of its last 33. A stream that stopped long ago draws nothing back, and one that
    holds a few false times and nothing else draws nothing forward.

    :returns: in the unit of the times; None: there are none.
    """
    pooled = sorted(time for tail in tails for time in tail[-ROWS:])[-ROWS:]
    return lower_median(pooled) if pooled else None
