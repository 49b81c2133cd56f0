"""`driftline maintain`: what keeps a database fit for years: compaction, retention, collection of snapshots.

A pass compacts the sequences of users whose rows have become many, collects snapshots that nobody needs, removes the
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
from runtime.admin_app import Health
from runtime.failpoints import failpoint
from runtime.lifecycle import Stop, attempts
from runtime.redaction import said
from runtime.settings import MaintainSettings
from storage.engine import Unavailable, mapped_errors, open_engine
from storage.learning import snapshot_files, snapshot_gc
from storage.log import log_retention
from storage.sequences import compaction, sequence_retention

ROWS_AT_ONCE = 2_000
"""Rows that are not compacted, in one transaction of compaction."""
SEGMENTS_AT_ONCE = 100
"""Log segments of a stream removed in one transaction."""
USERS_AT_ONCE = 200
"""Users whose sequences are trimmed in one transaction."""

OVERDUE_S = 60.0
"""Seconds without an answer after which it is not ready: its statements over large tables take long."""

_log = structlog.get_logger(__name__)


@dataclass
class MaintainTotals:
    """What a run did."""

    passes: int = 0
    compacted_users: int = 0
    rows_before: int = 0
    rows_after: int = 0
    compacted_events: int = 0
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
        self._policy = log_retention.Policy(
            keep={topic: timedelta(days=days) for topic, days in settings.log_days.items()},
            duplicate_window=duplicate_window,
        )
        self._sequence_policy = sequence_retention.SequencePolicy(
            keep={topic: timedelta(days=days) for topic, days in settings.state_days.items()},
            events=settings.state_events,
        )
        self._health = health
        self._stop = stop
        self.totals = MaintainTotals()

    def run(self, *, once: bool = False) -> MaintainTotals:
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
        with metrics.maintain_pass_seconds.time("compact"):
            self._compact()
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
        from streams.maintain import (
            history_requirements,  # torch with it, which a process that trims no sequences can do without
        )

        with self._engine.begin() as connection:
            askers = sequence_retention.askers(connection)
        history_requirements.check(askers, events=self._sequence_policy.events)

    # -- compaction --

    def _compact(self) -> None:
        settings = self._settings
        with self._engine.begin() as connection:
            due = compaction.due(connection, rows=settings.compact_rows, limit=settings.compact_users)
        metrics.due_users.set(len(due))
        for users in compaction.batches(due, rows=ROWS_AT_ONCE):
            if self._stop.is_set():
                return
            with self._engine.begin() as connection:
                compacted = compaction.compact(connection, users)
                failpoint("maintain.before_compact_commit")
            failpoint("maintain.after_compact_commit")
            metrics.compacted_rows.inc(compacted.rows_before)
            metrics.compacted_events.inc(compacted.events)
            self.totals.compacted_users += len(users)
            self.totals.rows_before += compacted.rows_before
            self.totals.rows_after += compacted.rows_after
            self.totals.compacted_events += compacted.events

    # -- collection --

    def _collect(self) -> None:
        with self._engine.begin() as connection:
            snapshot_gc.mark(connection, keep=self._settings.keep_snapshots)
        failpoint("maintain.after_mark")
        with self._engine.begin() as connection:
            ids = snapshot_gc.marked(connection)
            live = snapshot_gc.live_digests(connection)
        for snapshot_id in ids:
            snapshot_files.remove(self._folder, snapshot_id)
        for stray in snapshot_files.strays(self._folder, live):
            stray.unlink(missing_ok=True)
            metrics.stray_files.inc(1)
            self.totals.stray_files += 1
            _log.warning("maintain.stray", file=stray.name)
        failpoint("maintain.after_unlink")
        if ids:
            with self._engine.begin() as connection:
                snapshot_gc.forget(connection, ids)
            metrics.snapshots_collected.inc(len(ids))
            self.totals.snapshots += len(ids)
            _log.info("maintain.collected", snapshots=len(ids), newest=ids[-1])

    # -- retention --

    def _trim(self) -> None:
        while not self._stop.is_set():
            with self._engine.begin() as connection:
                removed = log_retention.trim(connection, self._policy, limit=SEGMENTS_AT_ONCE)
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
                    removed = sequence_retention.trim(connection, self._sequence_policy, limit=USERS_AT_ONCE)
                    failpoint("maintain.before_trim_commit")
            except sequence_retention.Overtaken as error:
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
