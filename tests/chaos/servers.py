"""The servers as victims: sessions of Postgres are ended, the broker is killed and comes back on the same files."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import psycopg

from tests.chaos.plan import Phase, Plan

_SESSIONS = """
SELECT pid, application_name FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'driftline-%' ORDER BY application_name, pid
"""


class Broker:
    """A real Kafka in a folder of its own."""

    def __init__(self, script: Path, folder: Path) -> None:
        self._script, self._folder = script, folder
        self.bootstrap = self.start()

    def start(self) -> str:
        """Starts it, anew or again on its files; returns its address once it answers."""
        command = [str(self._script), "start", str(self._folder)]
        return str(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())

    def kill(self) -> None:
        """-9, if it runs."""
        subprocess.run([self._script, "kill", self._folder], check=False)

    def bounce(self) -> None:
        """Kills it and starts it again."""
        self.kill()
        self.start()


class Strikes:
    """Strikes the servers when the plan says so."""

    def __init__(self, plan: Plan, broker: Broker, database: str) -> None:
        self._plan, self._broker, self._database = plan, broker, database
        self._rng = random.Random(plan.seed)
        self._bouncing: threading.Thread | None = None
        self.ended: Counter[str] = Counter()
        """Sessions of Postgres that were terminated, by whose they were."""
        self.bounces = 0
        self.enter("ingest")

    def enter(self, phase: Phase) -> None:
        """A phase begins."""
        self._began = time.monotonic()
        self._backends, self._brokers = list(self._plan.backends.get(phase, ())), list(self._plan.broker.get(phase, ()))

    @property
    def over(self) -> bool:
        """Whether this phase's strikes are done, and the servers there again."""
        return not (self._backends or self._brokers or self.bouncing)

    @property
    def bouncing(self) -> bool:
        """Whether the broker is away."""
        return self._bouncing is not None and self._bouncing.is_alive()

    def look(self) -> None:
        """Strikes if it is time."""
        now = time.monotonic() - self._began
        if self._backends and now >= self._backends[0] and self._end_some_session():
            self._backends.pop(0)
        if self._brokers and now >= self._brokers[0]:
            self._brokers.pop(0)
            self.bounces += 1
            self._bouncing = threading.Thread(target=self._broker.bounce, name="bouncing")
            self._bouncing.start()

    def finish(self) -> None:
        """Waits until the broker is there."""
        if self._bouncing is not None:
            self._bouncing.join()

    def _end_some_session(self) -> bool:
        with psycopg.connect(self._database, autocommit=True) as connection:
            sessions = connection.execute(_SESSIONS).fetchall()
            if not sessions:
                return False
            pid, whose = self._rng.choice(sessions)
            row = connection.execute("SELECT pg_terminate_backend(%s)", [pid]).fetchone()
        if row is not None and row[0]:
            self.ended[whose] += 1
            return True
        return False
