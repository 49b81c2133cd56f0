"""The processes of the demo: real ones, each a verb of this very installation, and none that outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from runtime.lifecycle import DriftlineError

_LOOK_EVERY_S = 0.1
_DRAIN_S = 20.0


class Broken(DriftlineError):
    """The story did not go on as told."""


class Actor:
    """One process."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._output = folder / f"{name}.json"
        with self.log.open("wb") as log, self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=log, env=dict(environment), cwd=folder
            )

    @property
    def code(self) -> int | None:
        """Exit code; None = it runs. Minus 9 = killed with -9."""
        return self._process.poll()

    def wait(self, seconds: float) -> int:
        """Its exit code.

        :raises Broken: it does not end.
        """
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise self._broken(f"does not end within {seconds:.0f} s") from None

    def done(self, seconds: float) -> Any:
        """What it printed, once it has ended well.

        :raises Broken: it failed.
        """
        if (code := self.wait(seconds)) != 0:
            raise self._broken(f"ended with exit code {code}")
        return msgspec.json.decode(self._output.read_bytes())

    def drained(self) -> Any:
        """Asks it to end; what it printed."""
        self._process.send_signal(signal.SIGTERM)
        return self.done(_DRAIN_S)

    def kill(self) -> None:
        """-9, if it still runs."""
        self._process.kill()
        self._process.wait()

    def _broken(self, what: str) -> Broken:
        lines = self.log.read_text(errors="replace").splitlines()[-6:]
        return Broken("\n  ".join([f"{self.name} {what}", *lines]), where=str(self.log))


class Cast:
    """Starts processes, all with the same settings; what still runs at the end is killed."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        """:param settings: by their environment names; of the caller's environment nothing is passed on."""
        self._environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", **settings}
        self._folder = folder
        self._actors: list[Actor] = []

    def start(self, verb: str, *arguments: str, name: str = "", failpoint: str = "") -> Actor:
        """One that runs for long. `failpoint`: where it kills itself with -9."""
        environment = {**self._environment, **({"DRIFTLINE_FAILPOINT": failpoint} if failpoint else {})}
        command = [sys.executable, "-m", "driftline", "--parent", str(os.getpid()), *verb.split(), *arguments]
        self._actors.append(Actor(name or verb.replace(" ", "-"), command, environment, self._folder))
        return self._actors[-1]

    def ask(self, verb: str, *arguments: str, seconds: float = 180.0) -> Any:
        """The JSON that a verb prints."""
        return self.start(verb, *arguments, "--json").done(seconds)

    def until(self, what: str, true: Callable[[], bool], *, seconds: float) -> None:
        """:raises Broken: it does not come true, or a process ends badly meanwhile."""
        until = time.monotonic() + seconds
        while not true():
            for actor in self._actors:
                if actor.code not in (None, 0, -signal.SIGKILL):
                    actor.done(0)
            if time.monotonic() > until:
                raise Broken(f"waited {seconds:.0f} s in vain until {what}", where=str(self._folder))
            time.sleep(_LOOK_EVERY_S)

    def end(self) -> None:
        """Nobody stays."""
        for actor in self._actors:
            actor.kill()


@contextmanager
def cast(folder: Path, settings: Mapping[str, str]) -> Iterator[Cast]:
    """Processes that all end with the block."""
    players = Cast(folder, settings)
    try:
        yield players
    finally:
        players.end()


Known = dict[tuple[int, int], str]
"""(process id, when it started in clock ticks) -> name: ids are used again, pairs are not."""


def descendants() -> Known:
    """Processes that this one started, and theirs; empty where there is no /proc."""
    everyone = _everyone()
    found: Known = {}
    wave = {os.getpid()}
    while wave := {pid for (pid, _), (parent, _) in everyone.items() if parent in wave}:
        found |= {key: name for key, (_, name) in everyone.items() if key[0] in wave}
    return found


def alive(known: Known) -> list[str]:
    """Those that still run, as "pid name", whoever has become their parent."""
    everyone = _everyone()
    return [f"{pid} {name}" for (pid, started), name in sorted(known.items()) if (pid, started) in everyone]


def _everyone() -> dict[tuple[int, int], tuple[int, str]]:
    """(pid, start) -> (parent, name) of all processes."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = status.read_text().split(" (", 1)
        except (OSError, ValueError):
            continue  # it ended meanwhile
        name, _, fields = rest.rpartition(") ")
        values = fields.split()
        if values[0] not in "ZX":  # ended, and not yet asked for its exit code
            found[int(pid), int(values[19])] = int(values[1]), name
    return found
