"""Which model answers, and the thread that puts a newer one in its place.

The newest live snapshot that can be read wins. It is read, built and warmed up beside the one that answers;
the change itself is one assignment, which the engine sees between two batches.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy import Engine

from runtime import metrics
from runtime.redaction import said
from scoring.errors import NotReady
from scoring.serve.live_model import Model, load
from storage.engine import Unavailable, mapped_errors
from storage.learning import snapshot_registry
from storage.learning.snapshot_files import BadSnapshot
from storage.learning.snapshot_registry import Snapshot

_CANDIDATES = 8
"""So many of the newest snapshots are tried."""
_RETRY_FIRST_S, _RETRY_LONGEST_S = 5.0, 300.0
"""A refused file is looked at again, more and more seldom: a shared folder may show it late."""

_log = structlog.get_logger(__name__)


@dataclass
class _Refused:
    why: str
    pause_s: float
    again_at: float


class Shelf:
    """Holds the model that answers (`current`)."""

    def __init__(
        self,
        *,
        postgres: Engine,
        folder: Path,
        learner: str,
        device: str,
        poll_s: float,
        changed: Callable[[Model | None, str], None] = lambda model, why: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        :param poll_s: seconds between looks at the registry.
        :param changed: told after each look which model answers, or why none does.
        """
        self.current: Model | None = None
        self._postgres = postgres
        self._folder = folder
        self._learner = learner
        self._device = device
        self._poll_s = poll_s
        self._changed = changed
        self._clock = clock
        self.absence = self._absent("the registry was not looked at yet")
        """What a request is told while no model answers."""
        self._refused: dict[str, _Refused] = {}
        self._trouble = ""
        self._newest_live: str | None = None
        """As of the last look."""
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="shelf", daemon=True)

    def start(self) -> None:
        """Looks from now on."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Stops looking; waits at most so long for a model being built."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s)

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def nudge(self, newest_live: str | None) -> None:
        """Somebody saw this snapshot in the registry: look at once if it is news."""
        if newest_live != self._newest_live:
            self._wake.set()

    def look(self) -> None:
        """One look at the registry, and what follows from it.

        :raises Unavailable: Postgres is out of reach; the model that answers goes on.
        """
        with mapped_errors(), self._postgres.connect() as connection:
            found = snapshot_registry.newest_live(connection, self._learner, limit=_CANDIDATES)
        self._newest_live = found[0].id if found else None
        for snapshot in found:
            if self.current is not None and (snapshot.branch, snapshot.step) <= self.current.place:
                break
            if self._may_try(snapshot) and self._try(snapshot):
                break
        self._refused = {s.id: self._refused[s.id] for s in found if s.id in self._refused}
        self._report(found)

    def _run(self) -> None:
        while not self._closing:
            try:
                self.look()
                self._trouble = ""
            except Unavailable as error:
                self._say("waiting for Postgres", error)
            except Exception as error:  # whatever it is, the model that answers must go on
                self._say("cannot look for a newer snapshot", error)
            self._wake.wait(self._poll_s)
            self._wake.clear()

    def _say(self, what: str, error: Exception) -> None:
        """Once per kind of trouble, not at each look."""
        if self._trouble != what:
            self._trouble = what
            _log.warning("score.look", trouble=what, error=error)
        if self.current is None:
            self.absence = self._absent(f"{what}: {said(error)}")
            self._changed(None, self.absence.what)

    def _may_try(self, snapshot: Snapshot) -> bool:
        refused = self._refused.get(snapshot.id)
        return refused is None or self._clock() >= refused.again_at

    def _try(self, snapshot: Snapshot) -> bool:
        try:
            model = load(self._folder, snapshot, device=self._device)
        except BadSnapshot as error:
            self._refuse(snapshot, error)
            return False
        before, self.current = self.current, model
        metrics.snapshot_step.set(snapshot.step, self._learner)
        if before is not None:
            metrics.swaps.inc(1, self._learner)
        _log.info(
            "score.model",
            snapshot=snapshot.id,
            before=before and before.snapshot.id,
            device=model.info.device,
        )
        return True

    def _refuse(self, snapshot: Snapshot, error: BadSnapshot) -> None:
        """Says and counts it once, not at each look."""
        known, why = self._refused.get(snapshot.id), said(error)
        pause_s = _RETRY_FIRST_S if known is None else min(2 * known.pause_s, _RETRY_LONGEST_S)
        self._refused[snapshot.id] = _Refused(why, pause_s, self._clock() + pause_s)
        if known is None or known.why != why:
            metrics.snapshots_refused.inc(1, self._learner, error.fault)
            serving = self.current and self.current.snapshot.id
            _log.error("score.snapshot_refused", snapshot=snapshot.id, why=why, fault=error.fault, serving=serving)

    def _report(self, found: list[Snapshot]) -> None:
        """Says which model answers, or why none does."""
        if self.current is None:
            self.absence = self._absent_among(found)
        self._changed(self.current, "" if self.current else self.absence.what)

    def _absent_among(self, found: list[Snapshot]) -> NotReady:
        if not found:
            why = f"learner {self._learner!r} has no live snapshot yet"
            return self._absent(why, hint=f"let `driftline train --learner {self._learner}` take one, and ask again")
        why = "; ".join(self._refused[s.id].why for s in found if s.id in self._refused)
        return self._absent(why, hint="restore these files, or let `driftline train` write newer ones, and ask again")

    def _absent(self, why: str, *, hint: str = "ask again: it looks again by itself") -> NotReady:
        return NotReady(why, where=f"learner {self._learner}", hint=hint)
