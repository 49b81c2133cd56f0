"""How a process stops, what its exit code says, and which errors call for what.

Trouble
├── Usage       the call was wrong (a setting, an option): correct it                     exit code 2
├── Refused     going on could lose or double something: a person decides                  exit code 3
└── Transient   the other side is away or busy: the process waits and tries again itself   exit code 1
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from queue import Empty, SimpleQueue
from types import FrameType


class Exit(IntEnum):
    """Exit codes of every verb."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3


class DriftlineError(Exception):
    """Something a person reads: what happened, where, and what to do about it."""

    code = Exit.FAILED

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(what + (f" [{where}]" if where else "") + (f"\n  -> {hint}" if hint else ""))


class ConfigurationError(DriftlineError):
    """The call or a setting was wrong; nothing was done."""

    code = Exit.USAGE


class OperatorActionRequired(DriftlineError):
    """Going on could lose, double or misread something, so the process stops until a person has decided."""

    code = Exit.REFUSED


class Transient(DriftlineError):
    """The other side is away or busy. The same call may succeed later; nothing was half done."""


def exit_code(error: BaseException) -> Exit:
    """The exit code an error leads to."""
    return error.code if isinstance(error, DriftlineError) else Exit.FAILED


class Stop:
    """A request to stop, made once and seen by all threads.

    `threading.Event.set` may deadlock inside a signal handler (its lock is not reentrant);
    `SimpleQueue.put` is reentrant, so the request travels as a token in one.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        """Who asked; None = nobody yet."""
        self._token: SimpleQueue[None] = SimpleQueue()

    def set(self, reason: str = "asked") -> None:
        """Asks to stop. The first reason is kept."""
        if self.reason is None:
            self.reason = reason
            self._token.put(None)

    def is_set(self) -> bool:
        """Whether somebody asked."""
        return self.reason is not None

    def wait(self, seconds: float) -> bool:
        """Waits at most so long; True as soon as somebody asks."""
        if self.is_set():
            return True
        try:
            self._token.get(timeout=max(seconds, 0.0))
        except Empty:
            return self.is_set()
        self._token.put(None)  # for the other waiters
        return True

    @contextmanager
    def on_signals(self, *signals: signal.Signals) -> Iterator[Stop]:
        """Sets itself on SIGTERM and SIGINT (main thread only). A second signal acts at once, as before."""
        before = {number: signal.getsignal(number) for number in signals or (signal.SIGTERM, signal.SIGINT)}

        def ask(number: int, frame: FrameType | None) -> None:
            self.set(signal.Signals(number).name)
            restore()

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        for number in before:
            signal.signal(number, ask)
        try:
            yield self
        finally:
            restore()


def attempts(stop: Stop, *, first_s: float = 0.2, longest_s: float = 10.0) -> Iterator[int]:
    """Numbers 1, 2, 3, ... with a growing pause between them; ends once `stop` is set.

    The pause doubles from `first_s` to `longest_s` seconds and is shortened at random to between half and
    the whole, so that restarted processes do not come back in step. (stamina's sleeps cannot be interrupted
    by `Stop`.)

        for attempt in attempts(stop):
            try:
                return connect()
            except Transient as error:
                log.warning("postgres.away", attempt=attempt, error=error.what)
    """
    number, pause_s = 1, first_s
    while not stop.is_set():
        yield number
        if stop.wait(pause_s * random.uniform(0.5, 1.0)):
            return
        number, pause_s = number + 1, min(2 * pause_s, longest_s)
