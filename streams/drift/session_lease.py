"""How long a process that nobody fences may write."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from runtime.lifecycle import Transient


class AppEnded(Transient):
    """Faust gave up, or must not go on, for the reason named: the state is in Kafka, so it is built anew."""


class Lease:
    """Whether this process may still hold its partitions: it never stood still for as long as its session lasts.

    Faust fences nobody: a process that was frozen would write its old state over that of its successor.
    """

    def __init__(self, lasts_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._lasts_s = lasts_s
        self._clock = clock
        self._renewed_at = clock()

    def renew(self) -> None:
        """To be called before each write; once it has raised, it always does.

        :raises AppEnded: the last call is too long ago.
        """
        still_s = self._clock() - self._renewed_at
        if still_s >= self._lasts_s:
            raise AppEnded(f"it stood still for {still_s:.0f} s and may have a successor", where="this process")
        self._renewed_at += still_s

    async def keep(self) -> None:
        """Renews it until it is lost."""
        with suppress(AppEnded):
            while True:
                self.renew()
                await asyncio.sleep(self._lasts_s / 20)
