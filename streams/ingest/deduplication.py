"""Which records have been accepted before (protocol, rule 5).

An event's identity is (topic, record key, event id). The filter holds the 64-bit digests of the identities
accepted in the newest `window` offsets of one stream, with the offset each was accepted at. Two identities
may share a digest, so a hit is only a suspicion: `ingest` confirms it by the row at that offset.

The digests stand in sorted runs. A batch adds a run; runs are merged when the newer is as long as half the
older, so there are O(log window) of them and 16 bytes an entry.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Run:
    digests: Ints
    """Sorted."""
    offsets: Ints
    """Of the record each digest belongs to."""

    def __len__(self) -> int:
        return len(self.digests)


class DuplicateFilter:
    """The identities accepted lately from one stream."""

    def __init__(self, window: int) -> None:
        self.window = window
        """Offsets: identities accepted further back than this are forgotten."""
        self._runs: list[_Run] = []

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def suspects(self, digests: Ints) -> Ints:
        """For each digest the offset of a record accepted with it, or -1."""
        found = np.full(len(digests), -1, np.int64)
        if not len(digests):
            return found
        order = np.argsort(digests)  # sorted look-ups walk the runs in memory order
        wanted = digests[order]
        for run in self._runs:
            at = np.searchsorted(run.digests, wanted)
            at[at == len(run)] = 0
            hits = run.digests[at] == wanted
            found[order[hits]] = run.offsets[at[hits]]
        return found

    def extend(self, digests: Ints, offsets: Ints) -> None:
        """Adds accepted records, in offset order; call it after their commit only."""
        if not len(digests):
            return
        order = np.argsort(digests, kind="stable")
        self._runs.append(_Run(digests[order], offsets[order]))
        while len(self._runs) > 1 and 2 * len(self._runs[-1]) >= len(self._runs[-2]):
            newer, older = self._runs.pop(), self._runs.pop()
            self._runs.append(self._merged(older, newer, horizon=int(offsets[-1]) - self.window))

    @staticmethod
    def _merged(older: _Run, newer: _Run, *, horizon: int) -> _Run:
        digests = np.concatenate([older.digests, newer.digests])
        offsets = np.concatenate([older.offsets, newer.offsets])
        kept = offsets > horizon
        digests, offsets = digests[kept], offsets[kept]
        order = np.argsort(digests, kind="stable")
        return _Run(digests[order], offsets[order])


def repeats(digests: Ints) -> Ints:
    """For each digest the index of its first appearance in the array (its own index, if it is the first)."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], np.int64)
