"""`driftline export`: each learner's newest weights as a bundle, for machines that have neither Kafka nor Postgres.

Each pass looks at the registry. A newer snapshot is read while its row is held (collection waits), packed with an
example, written to the target and read back; when the copy there has answered the example as it should, latest.json
is moved to it. Killed anywhere, it leaves at most files that nobody sees, and the next pass finishes; see
`protocol.md` of the design, rules 15 and 20. Between passes it waits by APScheduler's clock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from apscheduler.executors.base import BaseExecutor, run_job
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import Engine

from runtime import metrics
from runtime.admin_app import Health
from runtime.failpoints import failpoint
from runtime.lifecycle import DriftlineError, Stop, attempts
from runtime.redaction import said
from runtime.settings import ExportSettings
from scoring.export.bundle import BadBundle, Bundle, parse
from scoring.export.bundle_check import check
from scoring.export.bundle_snapshot import bundle_of
from scoring.export.bundle_target import Away, BundleTarget
from scoring.weights import is_served
from storage.engine import Unavailable, mapped_errors, open_engine
from storage.learning import snapshot_files, snapshot_registry
from storage.learning.snapshot_files import BadSnapshot
from storage.learning.snapshot_registry import Snapshot

TRANSACTION_TIMEOUT_S = 30.0
"""A snapshot's row is held for no longer: a process frozen while it reads keeps nobody waiting for ever."""
DRAIN_S = 5.0
"""At a stop, seconds left to what is being written; then it is left as a kill would leave it."""
_CANDIDATES = 8
"""So many of a learner's newest snapshots are tried."""
_LOOK_EVERY_S = 0.2

_log = structlog.get_logger(__name__)


@dataclass
class ExportTotals:
    """What a run did."""

    passes: int = 0
    bundles: int = 0
    """Times latest.json was written."""
    removed: int = 0
    refused: int = 0
    """Snapshots that could not be exported."""


class Export:
    """The process. `run` returns when stopped, or with `once` after one pass."""

    def __init__(
        self,
        *,
        postgres_url: str,
        snapshots: Path,
        target: str,
        settings: ExportSettings,
        health: Health,
        stop: Stop,
    ) -> None:
        """
        :param snapshots: folder of snapshot files.
        :param target: where bundles go, a path or any fsspec URI.
        """
        self._engine: Engine = open_engine(
            postgres_url,
            application_name="driftline-export",
            transaction_timeout_s=TRANSACTION_TIMEOUT_S,
            pooled=True,
        )
        self._folder = snapshots
        self._target = target
        self._settings = settings
        self._health = health
        self._stop = stop
        self._done: dict[str, tuple[str, str]] = {}
        """Learner -> the snapshot exported last, and its bundle."""
        self._refused: dict[str, dict[str, str]] = {}
        """Learner -> snapshots that could not be exported at the last look, and why."""
        self._trouble = ""
        self._failure: BaseException | None = None
        self._idle = threading.Event()
        self._idle.set()
        self.totals = ExportTotals()

    def run(self, *, once: bool = False) -> ExportTotals:
        """
        :param once: one pass, then stop.
        :raises Away, Unavailable: with `once`, the target or Postgres is out of reach.
        :raises Trouble: with `once`, a learner has no snapshot that can be exported.
        :raises Usage: fsspec knows no such target.
        """
        try:
            if once:
                self._pass()
                if not self._stop.is_set() and not self._health.is_ready():
                    raise DriftlineError(
                        str(self._health.report()["export"]["why"]), hint="see `driftline snapshots verify`"
                    )
            else:
                self._run()
        finally:
            self._engine.dispose()
        return self.totals

    def _run(self) -> None:
        logging.getLogger("apscheduler").setLevel(logging.ERROR)  # it tells of each job
        scheduler = BackgroundScheduler(timezone=UTC, executors={"default": _OneThread()})
        scheduler.add_job(
            self._work,
            trigger="interval",
            seconds=self._settings.every_s,
            next_run_time=datetime.now(UTC),
            coalesce=True,
            max_instances=1,
            misfire_grace_time=None,  # late is better than not
        )
        scheduler.start()
        try:
            while self._failure is None and not self._stop.wait(_LOOK_EVERY_S):
                pass
        finally:
            self._health.set_ready("export", False, "stopping")
            scheduler.pause()
            if not self._idle.wait(DRAIN_S):
                _log.warning("export.left", why=f"a pass did not end within {DRAIN_S:.0f} s; the next one finishes it")
            scheduler.shutdown(wait=False)
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        """One pass, tried until it is done or somebody asks to stop."""
        self._idle.clear()
        try:
            for _ in attempts(self._stop, first_s=1.0, longest_s=60.0):
                try:
                    self._pass()
                    break
                except Unavailable as error:
                    self._again("postgres", f"Postgres is away: {said(error)}")
                except Away as error:
                    self._again("target", said(error))
        except BaseException as error:
            self._failure = error  # the main thread ends the process with it
        finally:
            self._idle.set()

    # -- a pass --

    def _pass(self) -> None:
        target = BundleTarget(self._target, self._settings.options)
        target.prepare()
        with mapped_errors(), self._engine.connect() as connection:
            learners = snapshot_registry.live_learners(connection)
        stuck = {}
        for learner in filter(is_served, learners):
            if self._stop.is_set():
                return
            if not self._export(target, learner):
                stuck[learner] = "; ".join(self._refused[learner].values())
        self._tell(learners, stuck)

    def _tell(self, learners: Sequence[str], stuck: Mapping[str, str]) -> None:
        self.totals.passes += 1
        self._trouble = ""
        if stuck:
            metrics.export_troubles.inc(1, "snapshot")
            why = "; ".join(f"no snapshot of {learner} can be exported: {why}" for learner, why in stuck.items())
            self._health.set_ready("export", False, why)
            return
        metrics.export_pass.set(time.time())
        passed_over = [learner for learner in sorted(learners) if not is_served(learner)]
        self._health.set_ready("export", True, f"not exported: {', '.join(passed_over)}" if passed_over else "")

    def _export(self, target: BundleTarget, learner: str) -> bool:
        """Exports the newest snapshot that can be; False: there is none."""
        with mapped_errors(), self._engine.connect() as connection:
            candidates = snapshot_registry.newest_live(connection, learner, limit=_CANDIDATES)
        before, refused = self._refused.get(learner, {}), dict[str, str]()
        self._refused[learner] = refused
        for snapshot in candidates:
            if self._is_done(target, snapshot, newest=snapshot is candidates[0]):
                return True
            try:
                self._publish(target, snapshot)
            except BadSnapshot as error:
                refused[snapshot.id] = why = said(error)
                self._refuse(snapshot, why, known=before.get(snapshot.id) == why)
                continue
            return True
        return False

    def _is_done(self, target: BundleTarget, snapshot: Snapshot, *, newest: bool) -> bool:
        """Whether the target has this snapshot, or one after it while newer ones cannot be read."""
        latest = target.latest(snapshot.learner)
        if latest is None or not target.holds(snapshot.learner, latest["bundle"]):
            return False
        if not newest and (latest.get("branch", 0), latest.get("step", 0)) >= (snapshot.branch, snapshot.step):
            return True
        return self._done.get(snapshot.learner) == (snapshot.id, latest["bundle"])

    def _packed(self, snapshot: Snapshot) -> Bundle:
        """:raises BadSnapshot: it is being collected, or its file is missing, changed or of no use."""
        with mapped_errors(), self._engine.begin() as connection:
            if snapshot.sha256 is None or not snapshot_registry.hold(connection, snapshot.id):
                raise BadSnapshot(f"{snapshot.id} is being collected", "missing")
            tensors, manifest = snapshot_files.read(self._folder, snapshot.id, sha256=snapshot.sha256)
        return bundle_of(snapshot, tensors, manifest)

    def _publish(self, target: BundleTarget, snapshot: Snapshot) -> None:
        """:raises BadSnapshot: see `_packed`; the target is as it was."""
        began, learner = time.monotonic(), snapshot.learner
        bundle = self._packed(snapshot)
        if not self._is_whole(target, learner, bundle):
            target.put(learner, bundle, moving=lambda: failpoint("export.before_move"))
            self._ask(target, learner, bundle)
        failpoint("export.before_pointer")
        target.point(learner, bundle)
        gone = target.retain(learner, self._settings.keep)
        left = target.sweep(learner, datetime.now(UTC))
        self.totals.bundles += 1
        self.totals.removed += len(gone)
        self._done[learner] = (snapshot.id, bundle.id)
        metrics.bundle_seconds.observe(time.monotonic() - began, learner)
        metrics.bundles_published.inc(1, learner)
        metrics.bundles_removed.inc(len(gone), learner)
        metrics.bundle_bytes.set(sum(map(len, bundle.files.values())), learner)
        metrics.exported_step.set(snapshot.step, learner)
        _log.info(
            "export.bundle",
            snapshot=snapshot.id,
            bundle=bundle.id,
            target=target.where,
            removed=len(gone),
            swept=len(left),
        )

    def _is_whole(self, target: BundleTarget, learner: str, bundle: Bundle) -> bool:
        """Whether the target has this very bundle already; a damaged one is written anew."""
        if not target.holds(learner, bundle.id):
            return False
        try:
            self._ask(target, learner, bundle)
        except Away as error:
            if not isinstance(error.__cause__, BadBundle):
                raise
            _log.warning("export.damaged", learner=learner, bundle=bundle.id, why=error)
            return False
        return True

    def _ask(self, target: BundleTarget, learner: str, bundle: Bundle) -> None:
        """Loads the target's copy and lets it answer.

        :raises Away: it is not what was written.
        """
        where = f"{target.where}/{learner}/{bundle.id}"
        try:
            check(parse(target.files(learner, bundle.id), where=where), where=where)
        except BadBundle as error:
            raise Away(f"the copy there is bad: {error.what}", where=error.where, hint="look at the target") from error

    # -- trouble --

    def _again(self, part: Any, why: str) -> None:
        """Once per kind of trouble, not at each try."""
        metrics.export_troubles.inc(1, part)
        self._health.set_ready("export", False, why)
        if self._trouble != why:
            self._trouble = why
            _log.warning("export.again", why=why)

    def _refuse(self, snapshot: Snapshot, why: str, *, known: bool) -> None:
        """Says and counts it once, not at each look."""
        if not known:
            self.totals.refused += 1
            _log.error("export.snapshot_refused", snapshot=snapshot.id, why=why)


class _OneThread(BaseExecutor):  # type: ignore[misc]  # the package has no types
    """Runs the job in a daemon thread: a write that hangs does not keep the process from ending."""

    def _do_submit_job(self, job: Any, run_times: list[datetime]) -> None:
        threading.Thread(target=self._job, args=(job, run_times), name="export", daemon=True).start()

    def _job(self, job: Any, run_times: list[datetime]) -> None:
        self._run_job_success(job.id, run_job(job, job._jobstore_alias, run_times, self._logger.name))
