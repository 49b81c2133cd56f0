"""Processes of Driftline's under somebody's thumb."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.chaos.plan import Ends

REPOSITORY = Path(__file__).parents[2]
DRAIN_S = 30.0
"""Seconds a process may take to end when asked to: three times its promise, on a machine that is full."""

DEATH_S = 120.0
"""Seconds the system may take to clear away one that was killed."""


class Victim:
    """`driftline VERB`, started again and again; its log lines pile up in one file."""

    def __init__(self, verb: list[str], environment: dict[str, str], log: Path) -> None:
        self._verb = verb
        self._environment = {**os.environ, **environment}
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.kills = 0
        log.touch()
        self.frozen = False

    def start(self, failpoint: str = "") -> None:
        """A new life, to be ended (or frozen) at a fail point."""
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "driftline", *self._verb],
                env={**self._environment, "DRIFTLINE_FAILPOINT": failpoint},
                cwd=REPOSITORY,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
            )
        self.frozen = False

    def ended(self) -> int | None:
        """Exit status of the life that is over; None while it lives (or was never started)."""
        return None if self._process is None else self._process.poll()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stopped_itself(self) -> bool:
        """Whether a fail point froze it."""
        if not self.alive or self.frozen or self._process is None:
            return False
        state = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "T"

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)
        self.frozen = False

    def kill(self) -> None:
        """Kills the life that is on, if there is one, and counts it."""
        if self.alive:
            self._signal(signal.SIGKILL)
            self.wait(DEATH_S)
            self.kills += 1

    def drain(self) -> int:
        """SIGTERM; returns the exit status. A fail point that freezes it meanwhile is thawed.

        :raises subprocess.TimeoutExpired: it was not gone within `DRAIN_S`.
        """
        self._signal(signal.SIGTERM)
        for _ in range(int(DRAIN_S * 10)):
            try:
                return self.wait(0.1)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGCONT)
        return self.wait(0.1)

    def wait(self, seconds: float) -> int:
        assert self._process is not None
        return self._process.wait(seconds)

    def count(self, words: str) -> int:
        """Log lines that hold these words."""
        return sum(words in line for line in self.log.read_text(errors="replace").splitlines())

    def _signal(self, number: signal.Signals) -> None:
        if self.alive and self._process is not None:
            self._process.send_signal(number)


class Doomed(Victim):
    """One whose lives end as planned, each followed by the next."""

    def __init__(self, verb: list[str], environment: dict[str, str], log: Path, ends: Ends) -> None:
        super().__init__(verb, environment, log)
        self._ends = list(ends)
        self._end: str | float = ""
        self._since = 0.0
        self.points: Counter[str] = Counter()
        """Deaths at fail points."""

    def live(self) -> None:
        """The next life begins."""
        self._end = self._ends.pop(0) if self._ends else ""
        self.start(self._end if isinstance(self._end, str) else "")
        self._since = time.monotonic()

    @property
    def doomed(self) -> bool:
        """Whether it is to be killed from outside now."""
        return self.alive and isinstance(self._end, float) and time.monotonic() - self._since >= self._end

    def look(self) -> bool:
        """Kills it if its time has come, and starts it again if it was killed; True: it has ended well.

        :raises AssertionError: it ended in any other way.
        """
        if self.doomed:
            self._signal(signal.SIGKILL)
            self.wait(DEATH_S)
        status = self.ended()
        if status == -signal.SIGKILL:
            self.kills += 1
            if isinstance(self._end, str):
                self.points[self._end.partition(":")[0]] += 1
            self.live()
        elif status is not None and status != 0:
            raise AssertionError(f"{self.log.stem} ended by itself with {status}; see {self.log}")
        return status == 0
