"""`driftline maintain`: what keeps a database fit for years: sealing, retention, collection of snapshots.

A pass seals the sequences of users whose rows have become many, collects snapshots that nobody needs, removes the
log that nobody reads and then what no history reaches of users' sequences. Each is one statement or transaction in
which nothing is lost half-way, so a killed process leaves nothing to repair; two processes do each other no harm.
See `protocol.md` of the design, rules 11, 12 and 15.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import structlog
from sqlalchemy import Engine

from runtime import metrics
from runtime.failpoints import failpoint
from runtime.lifecycle import Stop, attempts
from runtime.redaction import said
from runtime.settings import MaintainSettings
from runtime.telemetry import Health
from storage import collection, retention, sealing, snapshots, trimming
from storage.engine import Unavailable, mapped_errors, open_engine

ROWS_AT_ONCE = 2_000
"""Rows that are not sealed, in one transaction of sealing."""
SEGMENTS_AT_ONCE = 100
"""Log segments of a stream removed in one transaction."""
USERS_AT_ONCE = 200
"""Users whose sequences are trimmed in one transaction."""

OVERDUE_S = 60.0
"""Seconds without an answer after which it is not ready: its statements over large tables take long."""

_log = structlog.get_logger(__name__)


@dataclass
class Totals:
    """What a run did."""

    passes: int = 0
    sealed_users: int = 0
    rows_before: int = 0
    rows_after: int = 0
    sealed_events: int = 0
    snapshots: int = 0
    stray_files: int = 0
    log_segments: int = 0
    log_events: int = 0
    trimmed_users: int = 0
    trimmed_events: int = 0


class Maintain:
    """The process. `run` returns when stopped, or with `once` after one pass."""

    def __init__(
        self,
        *,
        postgres_url: str,
        snapshots: Path,
        settings: MaintainSettings,
        duplicate_window: int,
        health: Health,
        stop: Stop,
    ) -> None:
        """
        :param snapshots: folder of snapshot files.
        :param duplicate_window: offsets a partition, as `ingest` is set: retention leaves them in the log.
        """
        self._engine: Engine = open_engine(
            postgres_url, application_name="driftline-maintain", pooled=True, overdue_s=OVERDUE_S
        )
        self._folder = snapshots
        self._settings = settings
        self._policy = retention.Policy(
            keep={topic: timedelta(days=days) for topic, days in settings.log_days.items()},
            duplicate_window=duplicate_window,
        )
        self._sequence_policy = trimming.SequencePolicy(
            keep={topic: timedelta(days=days) for topic, days in settings.state_days.items()},
            events=settings.state_events,
        )
        self._health = health
        self._stop = stop
        self.totals = Totals()

    def run(self, *, once: bool = False) -> Totals:
        """
        :param once: one pass, then stop.
        :raises Refused: sequences would be trimmed below what a learner asks for; nothing was done in this pass.
        """
        try:
            while not self._stop.is_set():
                for attempt in attempts(self._stop):
                    try:
                        with mapped_errors():
                            self._pass()
                        break
                    except Unavailable as error:
                        self._not_ready(f"waiting to try again (attempt {attempt}): {said(error)}")
                    except OSError as error:
                        self._not_ready(f"snapshot files cannot be removed: {said(error)}")
                if once:
                    break
                self._stop.wait(self._settings.every_s)
        finally:
            self._engine.dispose()
        return self.totals

    def _pass(self) -> None:
        self._check_reach()
        with metrics.maintain_pass_seconds.time("seal"):
            self._seal()
        with metrics.maintain_pass_seconds.time("collect"):
            self._collect()
        with metrics.maintain_pass_seconds.time("trim"):
            self._trim()
            self._trim_sequences()
        if not self._stop.is_set():
            self.totals.passes += 1
            metrics.maintain_pass.set(time.time())
            self._health.set_ready("maintain", True)

    def _check_reach(self) -> None:
        """In each pass: a learner may have been born since the last one."""
        if not self._sequence_policy.keep:
            return
        from streams import reach  # torch with it, which a process that trims no sequences can do without

        with self._engine.begin() as connection:
            askers = trimming.askers(connection)
        reach.check(askers, events=self._sequence_policy.events)

    # -- sealing --

    def _seal(self) -> None:
        settings = self._settings
        with self._engine.begin() as connection:
            due = sealing.due(connection, rows=settings.seal_rows, limit=settings.seal_users)
        metrics.due_users.set(len(due))
        for users in sealing.batches(due, rows=ROWS_AT_ONCE):
            if self._stop.is_set():
                return
            with self._engine.begin() as connection:
                sealed = sealing.seal(connection, users)
                failpoint("maintain.before_seal_commit")
            failpoint("maintain.after_seal_commit")
            metrics.sealed_rows.inc(sealed.rows_before)
            metrics.sealed_events.inc(sealed.events)
            self.totals.sealed_users += len(users)
            self.totals.rows_before += sealed.rows_before
            self.totals.rows_after += sealed.rows_after
            self.totals.sealed_events += sealed.events

    # -- collection --

    def _collect(self) -> None:
        with self._engine.begin() as connection:
            collection.mark(connection, keep=self._settings.keep_snapshots)
        failpoint("maintain.after_mark")
        with self._engine.begin() as connection:
            ids = collection.marked(connection)
            live = collection.live_digests(connection)
        for snapshot_id in ids:
            snapshots.remove(self._folder, snapshot_id)
        for stray in snapshots.strays(self._folder, live):
            stray.unlink(missing_ok=True)
            metrics.stray_files.inc(1)
            self.totals.stray_files += 1
            _log.warning("maintain.stray", file=stray.name)
        failpoint("maintain.after_unlink")
        if ids:
            with self._engine.begin() as connection:
                collection.forget(connection, ids)
            metrics.snapshots_collected.inc(len(ids))
            self.totals.snapshots += len(ids)
            _log.info("maintain.collected", snapshots=len(ids), newest=ids[-1])

    # -- retention --

    def _trim(self) -> None:
        while not self._stop.is_set():
            with self._engine.begin() as connection:
                removed = retention.trim(connection, self._policy, limit=SEGMENTS_AT_ONCE)
                failpoint("maintain.before_trim_commit")
            if not removed.segments:
                return
            metrics.log_segments_removed.inc(removed.segments)
            metrics.log_events_removed.inc(removed.events)
            self.totals.log_segments += removed.segments
            self.totals.log_events += removed.events
            _log.info("maintain.trimmed", segments=removed.segments, events=removed.events)

    def _trim_sequences(self) -> None:
        while not self._stop.is_set():
            try:
                with self._engine.begin() as connection:
                    removed = trimming.trim(connection, self._sequence_policy, limit=USERS_AT_ONCE)
                    failpoint("maintain.before_trim_commit")
            except trimming.Overtaken as error:
                _log.info("maintain.overtaken", why=error)
                return  # the next pass asks again
            if not removed.users:
                return
            metrics.sequence_events_removed.inc(removed.events)
            self.totals.trimmed_users += removed.users
            self.totals.trimmed_events += removed.events
            _log.info("maintain.trimmed_sequences", users=removed.users, events=removed.events)

    def _not_ready(self, why: str) -> None:
        self._health.set_ready("maintain", False, why)
        _log.warning("maintain.again", why=why)
