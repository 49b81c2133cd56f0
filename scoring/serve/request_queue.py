"""Requests that wait for their batch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from contracts.scoring import Answer, ScoreRequest
from scoring.errors import Overloaded, Refusal, Stopping

Done = Callable[[Answer | Refusal], None]
"""Called in another thread; must return soon and raise nothing. Of several calls the first counts."""


Submit = Callable[[ScoreRequest, Done], None]
"""Has a request answered.

:raises Overloaded, Stopping: it was refused at once.
"""


@dataclass(frozen=True, eq=False)
class Waiting:
    """A request, and whom to tell."""

    request: ScoreRequest
    done: Done


class RequestQueue:
    """A bounded queue that is emptied batch by batch. Thread-safe."""

    def __init__(self, *, batch_size: int, batch_wait_s: float, max_queue: int) -> None:
        """
        :param batch_wait_s: seconds a batch that is not full waits for more.
        :param max_queue: requests that may wait.
        """
        self._batch_size = batch_size
        self._batch_wait_s = batch_wait_s
        self._max_queue = max_queue
        self._waiting: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        """Nothing more is taken in."""
        return self._closed

    def put(self, waiting: Waiting) -> None:
        """
        :raises Overloaded: the queue is full.
        :raises Stopping: it is closed.
        """
        with self._changed:
            if self._closed:
                raise Stopping("the process is stopping", where="score", hint="ask another one")
            if len(self._waiting) >= self._max_queue:
                raise Overloaded(
                    f"{self._max_queue} requests are waiting", where="score", hint="send fewer at a time, or later"
                )
            self._waiting.append(waiting)
            if len(self._waiting) in (1, self._batch_size):
                self._changed.notify()

    def take(self, timeout_s: float) -> list[Waiting]:
        """The next batch; [] when none came in time, or the intake is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, timeout_s)
            if self._waiting:
                self._changed.wait_for(
                    lambda: len(self._waiting) >= self._batch_size or self._closed, self._batch_wait_s
                )
            return [self._waiting.popleft() for _ in range(min(self._batch_size, len(self._waiting)))]

    def close(self) -> None:
        """Takes no more in; what waits can still be taken out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
