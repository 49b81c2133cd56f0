"""Keeps child processes running: one log, restarts at once or with a growing pause, an end within a known time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from driftline.output import note
from runtime.lifecycle import Exit, Stop
from runtime.logs import LINE_BYTES
from runtime.redaction import Secrets, cut, escaped

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
STEADY_S = 10.0
"""A child that ran for so long was at work: it is restarted at once. One that keeps failing sooner has to wait."""
DRAIN_S = 11.0
"""Seconds the children have, all together, to end by themselves."""
_LOOK_EVERY_S = 0.1
_FINAL = frozenset({Exit.USAGE, Exit.REFUSED})


@dataclass(frozen=True)
class Ended:
    """A child that will not be started again, and ended everything."""

    name: str
    code: int


class Child:
    """One process: `driftline VERB ...` of this very installation."""

    def __init__(
        self, name: str, arguments: Sequence[str], *, before: Sequence[str], secrets: Secrets | None = None
    ) -> None:
        """:param secrets: what no line of its log may hold."""
        self.name = name
        self._secrets = secrets or Secrets()
        self._command = [sys.executable, "-m", "driftline", *before, "--parent", str(os.getpid()), name, *arguments]
        self._process: subprocess.Popen[str] | None = None
        self._log: threading.Thread | None = None
        self._started_at = 0.0
        self._pause_s = 0.0
        self._restart_at = 0.0

    @property
    def pid(self) -> int | None:
        """Of the process that runs now, if one does."""
        return self._process.pid if self._process is not None else None

    @property
    def age_s(self) -> float:
        """Seconds since it was started last."""
        return time.monotonic() - self._started_at

    def start(self) -> None:
        """In a session of its own: a Ctrl-C of the terminal is the supervisor's alone."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._started_at = time.monotonic()
        self._log = threading.Thread(target=self._forward, args=(self._process,), name=f"log-{self.name}", daemon=True)
        self._log.start()

    def look(self) -> int | None:
        """The exit code, if it has just ended for good; one that may be started again is."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._restart_at:
                self.start()
            return None
        code = self._process.poll()
        if code is None:
            return None
        self._finish_log()
        if code in _FINAL:
            return code
        if now - self._started_at > STEADY_S:
            self._pause_s = 0.0
        when = f"in {self._pause_s:.1f} s" if self._pause_s else "at once"
        note(f"{self.name:<7}| ended with {_told(code)}; starting again {when}")
        self._restart_at, self._process = now + self._pause_s, None
        if not self._pause_s:
            self.start()
        self._pause_s = min(2 * self._pause_s or FIRST_PAUSE_S, LONGEST_PAUSE_S)
        return None

    def ask_to_end(self) -> None:
        """It drains."""
        if self._process is not None:
            self._process.terminate()

    def end(self, until: float) -> bool:
        """Waits, then kills; True = it ended by itself."""
        if self._process is None:
            return True
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            note(f"{self.name:<7}| did not drain in time and was killed; nothing is lost, it repeats its last step")
            return False
        finally:
            self._finish_log()
        return True

    def _forward(self, process: subprocess.Popen[str]) -> None:
        """What it says, also past its log (a library in C, say), in lines that fit."""
        assert process.stdout is not None
        while line := process.stdout.readline(LINE_BYTES):
            end = line
            while not end.endswith("\n") and (end := process.stdout.readline(LINE_BYTES)):
                pass  # the rest of a line that is too long is left out
            said = cut(escaped(self._secrets.hide(line.rstrip())), LINE_BYTES - 1)
            note(f"{self.name:<7}| {said}")

    def _finish_log(self) -> None:
        if self._log is not None:
            self._log.join(1.0)
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()


def supervise(children: Sequence[Child], stop: Stop) -> Ended | None:
    """Runs them until somebody asks to stop, or one refuses to go on; then drains all.

    :returns: who refused, if somebody did.
    """
    try:
        for child in children:
            child.start()
        while not stop.wait(_LOOK_EVERY_S):
            for child in children:
                if (code := child.look()) is not None:
                    return Ended(child.name, code)
        return None
    finally:
        until = time.monotonic() + DRAIN_S
        for child in children:
            child.ask_to_end()
        for child in children:
            child.end(until)


def _told(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
