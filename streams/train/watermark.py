"""The front of the merge: how far the rows that were taken have come in record time (protocol, rule 13).

It is shown, and rows behind it are counted as late; neither order nor weights depend on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from contracts.clocks import ROWS, lower_median


@dataclass(frozen=True)
class Front:
    """The lower median of the last 33 record times that were taken, so that one false clock moves nothing."""

    times: tuple[int, ...] = ()
    """Those record times, microseconds since 1970, in the order taken; at most 33."""

    @property
    def at(self) -> int | None:
        """Microseconds since 1970; None before the first row."""
        return lower_median(self.times) if self.times else None

    def after(self, times: Iterable[int]) -> Front:
        """Once rows of these record times are taken."""
        return Front((*self.times, *times)[-ROWS:])

    def late(self, times: Iterable[int]) -> int:
        """How many of the next rows lie behind the front, each behind that of the rows before it."""
        front, late = self, 0
        for time in times:
            late += front.at is not None and time < front.at
            front = front.after((time,))
        return late
