"""Calls to Postgres that are under way, so that a process whose server hangs can say so.

A server whose backends are stopped keeps its connections open: nothing breaks, and nothing answers. Each wait for
an answer is noted here, by the connections of `storage.postgres.sessions`; readiness asks `overdue`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Calls:
    """Of one process; thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[int, tuple[float, float, str]] = {}

    @contextmanager
    def waiting(self, key: int, *, limit_s: float, name: str) -> Iterator[None]:
        """Around a wait.

        :param key: what waits, e.g. a connection's id: one wait at a time.
        :param limit_s: after so many seconds it is overdue.
        :param name: for people: whose connection it is.
        """
        self._open[key] = (self._clock(), limit_s, name)
        try:
            yield
        finally:
            self._open.pop(key, None)

    def overdue(self) -> str:
        """Which wait has taken longer than its limit, for people; "" = none."""
        now = self._clock()
        late = [(now - began, name) for began, limit_s, name in list(self._open.values()) if now - began >= limit_s]
        if not late:
            return ""
        longest_s, name = max(late)
        return f"Postgres has not answered {name} for {longest_s:.0f} s: it hangs, or a lock or a slow disk holds it up"


CALLS = Calls()
"""Those of this process."""
