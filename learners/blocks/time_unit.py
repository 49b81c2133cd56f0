"""A stream's unit of time: what its gaps are measured in, estimated from them and given up when it no longer fits.

The unit starts as the geometric mean of the first `FIRST` gaps. Afterwards it stays, so that features keep their
meaning, for as long as it fits; it is estimated anew where it does not:

* too small for now: a quarter of the newest `NEWEST` gaps are longer than `REACH` units, where all look alike. A
  burst at the start of a stream is left behind within `NEWEST` / 4 gaps.
* too small for long: three quarters of the last `KEPT` gaps are longer than `TEMPO` units.
* too large: 19 of 20 of the last `KEPT` gaps, and of the newest, are shorter than 1 / `GRAIN` of it. A burst later
  on, or a night of bots, does not reach that; that a unit is too large costs little resolution until then.

All of it is a function of the gaps in the order learnt. No gap counts as shorter than the clock's resolution.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from learners.contract.batch import Floats, Ints
from learners.contract.protocol import ForeignState, State
from learners.contract.state_codec import check_like

FIRST: Final = 256
"""Gaps that the first estimate is made of."""
NEWEST: Final = 64
KEPT: Final = 4096
"""Gaps that are remembered."""
REACH: Final = 4.0**5
"""Units: the largest point of `time_features.BANK`, beyond which a longer gap looks the same."""
TEMPO: Final = 16.0
GRAIN: Final = 64.0
NARROW: Final = 64.0
"""A new estimate counts no gap as shorter than the median of the longest quarter over this, nor as longer than that
times this."""


class TimeUnit:
    """The unit, and the gaps that speak for it."""

    def __init__(self, *, start_us: float) -> None:
        """:param start_us: microseconds; the unit until a gap was seen."""
        self.us = start_us
        """Microseconds."""
        self._gaps = np.zeros(KEPT)
        """[KEPT] microseconds, a ring: gap number n stands at n mod KEPT."""
        self._seen = 0
        self._settled = False
        """Whether the first estimate is over."""

    def learn(self, gaps: Ints, resolution: Ints) -> float | None:
        """Takes a step's gaps in, which may change the unit.

        :param gaps, resolution: [N] microseconds, each gap positive; width of the clock's tick behind each.
        :returns: the unit before, where it was given up; None where it stays, or is still the first estimate.
        """
        if len(gaps) == 0:
            return None
        kept = np.maximum(gaps, resolution).astype(np.float64)[-KEPT:]
        self._seen += len(gaps)
        self._gaps[np.arange(self._seen - len(kept), self._seen) % KEPT] = kept
        before = self.us
        if not self._settled:
            self.us = float(np.exp(np.log(self._last(self._seen)).mean()))
            self._settled = self._seen >= FIRST
        if self._seen < NEWEST or (fit := self._anew()) is None:
            return None
        self.us, self._settled = fit, True
        return before

    def _anew(self) -> float | None:
        """The unit that should be instead; None where the present one fits."""
        newest, kept = self._last(NEWEST), self._last(KEPT)
        if np.quantile(newest, 0.75) > REACH * self.us:
            return _middle(newest)
        if self._seen < FIRST:
            return None
        if np.quantile(kept, 0.25) > TEMPO * self.us:
            return _middle(kept)
        if GRAIN * max(np.quantile(kept, 0.95), np.quantile(newest, 0.95)) < self.us:
            return _middle(kept)
        return None

    def _last(self, count: int) -> Floats:
        """The last gaps, oldest first; fewer where fewer were seen."""
        count = min(count, self._seen, KEPT)
        return self._gaps[np.arange(self._seen - count, self._seen) % KEPT]

    def state(self) -> State:
        """All but the unit itself, which serving needs too and learners therefore keep apart."""
        counts = torch.tensor([self._seen, int(self._settled)])
        return {"gaps": torch.from_numpy(self._gaps.copy()), "counts": counts}

    @classmethod
    def from_state(cls, us: float, state: State | None) -> TimeUnit:
        """:param state: None where it only serves. :raises ForeignState: not such a unit."""
        if not us > 0.0 or not np.isfinite(us):
            raise ForeignState(f"a unit of time of {us} microseconds")
        unit = cls(start_us=us)
        if state is not None:
            for name, like in unit.state().items():
                check_like(name, state[name], like)
            unit._gaps = state["gaps"].numpy().copy()
            unit._seen, unit._settled = int(state["counts"][0]), bool(state["counts"][1])
        return unit


def _middle(gaps: Floats) -> float:
    """Geometric mean of gaps, those far from the longest quarter's median drawn near to it."""
    high = float(np.quantile(gaps, 0.875))
    return float(np.exp(np.log(np.clip(gaps, high / NARROW, high * NARROW)).mean()))
