"""`driftline train`: event log -> one learner and its references, journal ahead, snapshots behind.

The order is: plan a step, commit it to the journal, run it, tell `learning.progress`. A restart loads the
newest live snapshot and repeats the journalled steps verbatim, so it neither skips nor differs. After any
error memory is dropped whole and the same way is taken. See `protocol.md` of the design, rules 13 to 16.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy import Connection

from learners import registry
from learners.arms.group import ArmGroupReport
from learners.contract.protocol import ForeignState
from learners.learner_config import LearnerConfig
from runtime import metrics
from runtime.admin_app import Health
from runtime.failpoints import failpoint
from runtime.kafka import KafkaConfig
from runtime.lifecycle import ConfigurationError, OperatorActionRequired, Stop, Transient, attempts
from runtime.redaction import said
from runtime.settings import TrainSettings
from storage.engine import Unavailable, mapped_errors, open_engine
from storage.learning import journal, snapshot_files, snapshot_registry
from storage.learning.journal import Step, WriterLease
from storage.learning.label_resolutions import Resolution
from storage.learning.snapshot_files import BadSnapshot
from storage.log import event_log
from storage.log.offsets import Fenced
from storage.privacy import suppression
from streams.train.end_offsets import Ends, LatestEnds
from streams.train.label_counts import LabelWatch, tell_handled
from streams.train.merge import Row, runs_of
from streams.train.progress import ProgressLedger
from streams.train.signature_writer import writer_for
from streams.train.silences import Silences, SilenceWatch
from streams.train.snapshot_writer import LiveSnapshot, actions_before, restore, write_snapshot
from streams.train.step_runner import StepRunner, check_actions, journalled, make_deterministic

TRANSACTION_TIMEOUT_S = 15
"""A process frozen with the learner's row in its hands keeps its successor waiting no longer than this."""
POLL_S = 0.05
FIRST_SNAPSHOT_S = 5.0
"""A learner without a snapshot takes its first one sooner, so that scoring can begin."""
DRAIN_S = 5.0
"""So long, at most, a process that ends writes signature tables that are still due."""

_log = structlog.get_logger(__name__)


@dataclass
class TrainTotals:
    """What a run did."""

    steps: int = 0
    rows: int = 0
    late: int = 0
    repeated_steps: int = 0
    snapshots: int = 0
    snapshot_id: str | None = None
    """The newest one."""
    sha256: str | None = None
    forgotten: int = 0
    """Users forgotten because an erasure asked for it; one may be told twice, at its beginning and its end."""
    signatures: int = 0
    """Users' signature tables written for scoring."""
    labels: int = 0
    """Learnt as the first outcome of their subject."""
    corrections: int = 0
    """Labels learnt after the silence of their subject."""
    ticks: int = 0
    """Silences learnt as negative labels."""
    held: int = 0
    """Subjects that wait at the end of the run, of a task of which no label was ever read: no silence counts."""
    learn_s: float = 0.0
    """Seconds spent building batches and learning."""


class Train:
    """The process: one learner. `run` returns when stopped, or with `once` when the topics' ends are learnt."""

    def __init__(
        self,
        *,
        postgres_url: str,
        kafka_config: KafkaConfig,
        snapshots: Path,
        settings: TrainSettings,
        health: Health,
        stop: Stop,
    ) -> None:
        self._engine = open_engine(
            postgres_url,
            application_name=f"driftline-train-{settings.learner}",
            transaction_timeout_s=TRANSACTION_TIMEOUT_S,
        )
        self._kafka = kafka_config
        self._folder = snapshots
        self._settings = settings
        self._health = health
        self._stop = stop
        self.totals = TrainTotals()

    def run(self, *, once: bool = False) -> TrainTotals:
        """
        :param once: learn up to the ends the topics have now, in full steps, take a snapshot, stop. Waits
            for `ingest` to bring what is missing.
        :raises Refused: a person must decide; exit code 3.
        """
        make_deterministic(self._settings.threads)
        for attempt in attempts(self._stop):
            try:
                with mapped_errors(), self._engine.connect() as connection:
                    TrainSession(
                        connection,
                        kafka_config=self._kafka,
                        folder=self._folder,
                        settings=self._settings,
                        health=self._health,
                        stop=self._stop,
                        totals=self.totals,
                    ).work(once=once)
                return self.totals
            except (Unavailable, Transient) as error:
                self._health.set_ready("train", False, f"waiting to try again (attempt {attempt}): {said(error)}")
                _log.warning("train.again", attempt=attempt, error=error)
            except Fenced as error:
                raise OperatorActionRequired(
                    str(error), where=self._settings.learner, hint="run one `train` a learner"
                ) from error
            except event_log.BrokenChain as error:
                raise OperatorActionRequired(
                    str(error), where="event log", hint="restore the log from a backup; `driftline verify` says more"
                ) from error
        return self.totals


class TrainSession:
    """One stay in the learner's lease: over one connection, from the newest snapshot on."""

    def __init__(
        self,
        connection: Connection,
        *,
        kafka_config: KafkaConfig,
        folder: Path,
        settings: TrainSettings,
        health: Health,
        stop: Stop,
        totals: TrainTotals,
    ) -> None:
        self._connection = connection
        self._folder = folder
        self._settings = settings
        self._health = health
        self._stop = stop
        self._totals = totals
        self._ledger = ProgressLedger(kafka_config)
        self._kafka = kafka_config
        self._plan = learner_config_of(settings)
        self._lease = self._acquire_lease()
        self._parent: str | None = None
        self._next = 0
        """The next step to run."""
        self._actions: tuple[str, ...] = ()
        """What the learner reported of the step before."""
        self._thinned = False
        """Steps were repeated without rows that were erased: what the learner says of them may differ."""
        self._erasure_due = False
        self._silences = Silences()
        """What the next step takes of silence."""
        self._runner = self._restore()
        outcomes = self._runner.outcomes
        self._watch = None if outcomes is None else SilenceWatch(self._runner, asked=LatestEnds(kafka_config).ask)
        self._labels = None if outcomes is None else LabelWatch(self._lease.learner, outcomes)
        self._signatures = writer_for(self._lease, self._runner.arm_group)
        if self._signatures and self._parent is not None:
            self._signatures.serves()
        self._snapshot_at = time.monotonic()
        self._unsaved_steps = 0

    # -- sitting down --

    def _acquire_lease(self) -> WriterLease:
        config, version = self._plan.as_json(), self._plan.fresh().version
        with self._connection.begin():
            suppression.share(self._connection)  # an erasure either finds the learner, or is found by it
            lease, born = journal.acquire_lease(
                self._connection, learner=self._plan.learner, version=version, config=config
            )
        if born != version:
            raise OperatorActionRequired(
                f"its journal and snapshots were made by version {born}; this is {version}",
                where=f"learner {lease.learner}",
                hint=f"run the version that made them, or let it start anew: `driftline retire {lease.learner}`",
            )
        if lease.config != config:
            raise OperatorActionRequired(
                f"it was started with {lease.config}; the settings now say {config}",
                where=f"learner {lease.learner}",
                hint="restore the settings, since weights make sense under the configuration they were learnt with; "
                f"or let it start anew with these: `driftline retire {lease.learner}`",
            )
        return lease

    def _restore(self) -> StepRunner:
        """The newest live snapshot that can be read, or a fresh learner."""
        with self._connection.begin():
            found = snapshot_registry.newest_live(
                self._connection, self._lease.learner, branch=self._lease.branch, limit=100
            )
        for snapshot in found:
            try:
                runner = restore(self._plan, snapshot, self._folder, lease=self._lease)
            except (BadSnapshot, ForeignState) as error:
                _log.error("train.bad_snapshot", snapshot=snapshot.id, error=error)
                continue
            self._parent, self._next = snapshot.id, snapshot.step
            self._actions = actions_before(snapshot)
            return runner
        return StepRunner(self._plan, self._plan.fresh(), {}, front=None, branch=self._lease.branch, lease=self._lease)

    # -- the work --

    def work(self, *, once: bool) -> None:
        """Repeats what is journalled, then goes on.

        :raises Fenced, Unavailable, Transient, Refused: see `Train`.
        """
        self._repeat()
        if self._next < self._lease.next_step:
            return  # asked to stop on the way: the next start repeats what is left
        ends = Ends(self._kafka, labels=self._runner.outcomes is not None) if once else None
        with self._connection.begin():
            self._runner.read_clocks(self._connection)
        if ends is not None:
            with self._connection.begin():  # before any row is taken: what was read ahead is short without the ends
                self._runner.merge.refresh(self._connection)
                self._runner.merge.set_ends(ends.by_stream(self._connection))
        while not self._stop.is_set():
            rows = self._gather(ends)
            if rows or self._silences.ticks or self._erasure_due:
                self._run_new(rows)
            elif ends is not None and self._runner.merge.at_ends():
                break
        if self._labels is not None:
            with self._connection.begin():
                self._totals.held = self._labels.tell(self._connection, self._silences, self._watch)
        if self._unsaved_steps:
            self._run_new([], snapshot=True)
        self._write_last_signatures()

    def _repeat(self) -> None:
        """Runs the steps that were journalled after the snapshot, as they are written."""
        lease = self._lease
        with self._connection.begin():
            todo = journalled(self._connection, lease.learner, lease.branch, self._next, lease.next_step)
            self._runner.exclude_erased(self._connection)
        if todo:
            _log.info("train.repeating", steps=len(todo), first=todo[0].number)
        self._tell_readiness()
        for step in todo:
            if self._stop.is_set():
                return
            if not self._thinned:
                check_actions(step, self._actions)
            self._thinned |= step.rows_erased
            started = time.perf_counter()
            with self._connection.begin():
                rows, report = self._runner.repeat(self._connection, step)
            metrics.repeated_steps.inc(1, lease.learner)
            self._totals.repeated_steps += 1
            self._finish(step, rows, report, started)
            self._tell_readiness()

    def _gather(self, ends: Ends | None) -> list[Row]:
        """The rows of the next step, in merge order; as many as there are when time is up."""
        merge = self._runner.merge
        rows: list[Row] = []
        self._look_for_silences(ends)
        self._write_signatures()
        began = blocked = time.monotonic()
        while len(rows) < self._settings.step_rows:
            if (row := merge.pop()) is not None:
                blocked = time.monotonic()
                began = began if rows else blocked
                rows.append(row)
                continue
            if self._stop.is_set():
                self._silences = self._silences.passed
                return []  # not journalled, so never taken
            with self._connection.begin():
                news = merge.refresh(self._connection)
                self._erasure_due = bool(journal.erased(self._connection, self._lease, self._next))
                if ends is not None:
                    merge.set_ends(ends.by_stream(self._connection))
            now = time.monotonic()
            if news:
                continue
            if self._erasure_due:
                break
            if ends is not None:
                if merge.at_ends():
                    break
            elif self._may_go(rows) and now - began >= self._settings.step_linger_s:
                break  # silence is learnt with the next rows, or by itself where none come
            elif merge.has_rows() and now - blocked >= self._settings.merge_wait_s:
                merge.mark_idle(merge.behind())
                continue
            metrics.train_lag.set(merge.rows_behind(), self._lease.learner)
            if ends is None and not self._silences.ticks:
                self._look_for_silences(None)  # what the broker says may change though no row comes
            self._write_signatures()
            self._ledger.poll()
            self._stop.wait(POLL_S)
        return rows

    def _may_go(self, rows: list[Row]) -> bool:
        """Whether there is something to learn: rows, or silences while there are none to come with them."""
        return bool(rows) or (bool(self._silences.ticks) and not self._runner.merge.has_rows())

    def _look_for_silences(self, ends: Ends | None) -> None:
        """Those that the next step takes. A bounded run first waits until it is certain how far each stream was taken:
        then two runs decide alike."""
        if self._watch is None:
            return
        merge = self._runner.merge
        while ends is not None and not self._stop.is_set():
            with self._connection.begin():
                known = ends.by_stream(self._connection)
                merge.refresh(self._connection)
                merge.set_ends(known)
                if known and merge.settled():
                    self._silences = self._watch.bounded(self._connection, known)
                    return
                self._erasure_due = bool(journal.erased(self._connection, self._lease, self._next))
            if self._erasure_due:
                break
            self._ledger.poll()
            self._stop.wait(POLL_S)
        if ends is None:
            with self._connection.begin():
                self._silences = self._watch.live(self._connection, self._next)
                assert self._labels is not None
                self._labels.tell_if_due(self._connection, self._silences, self._watch)

    def _run_new(self, rows: list[Row], *, snapshot: bool = False) -> None:
        """Journals a step, then runs it."""
        runner, self._erasure_due = self._runner, False
        silences, self._silences = self._silences, self._silences.passed
        with self._connection.begin():
            suppression.share(self._connection)  # whoever is erased from now on is so before the next step
            runner.exclude_erased(self._connection)
            erased, rows = journal.erased(self._connection, self._lease, self._next), runner.present(rows)
            front = runner.front_after(rows)
            step = Step(
                number=self._next,
                rows=runs_of(rows),
                front=None if front is None else event_log.time_of(front),
                idle=tuple(sorted(runner.merge.idle)),
                late=runner.late(rows),
                # Older snapshots know the erased: a young one lets them be collected.
                snapshot=snapshot or bool(erased) or self._snapshot_due(),
                actions=self._actions,
                erased=erased,
                ticks=silences.ticks,
                cursor=None if runner.outcomes is None else dict(runner.cursor),
                task_clock=None if silences.clock is None else event_log.time_of(silences.clock),
                drained=silences.drained,
            )
            journal.append(self._connection, self._lease, step)
        failpoint("train.after_journal")
        started = time.perf_counter()
        failpoint("train.before_step")
        with self._connection.begin():
            report = runner.learn(
                self._connection,
                rows,
                erased=erased,
                number=step.number,
                ticks=step.ticks,
                task_clock=step.task_clock,
            )
        failpoint("train.after_step")
        self._finish(step, rows, report, started)

    def _snapshot_due(self) -> bool:
        every = self._settings.snapshot_every_s
        since = time.monotonic() - self._snapshot_at
        return since >= (every if self._parent else min(every, FIRST_SNAPSHOT_S))

    def _finish(self, step: Step, rows: list[Row], report: ArmGroupReport | None, started: float) -> None:
        """What follows a step, new or repeated."""
        learner, seconds = self._lease.learner, time.perf_counter() - started
        self._next = step.number + 1
        self._unsaved_steps += 1
        self._actions = report.actions if report is not None else ()
        self._totals.steps += 1
        self._totals.rows += len(rows)
        self._totals.late += step.late
        self._totals.learn_s += seconds
        metrics.train_steps.inc(1, learner)
        metrics.train_rows.inc(len(rows), learner)
        metrics.late_rows.inc(step.late, learner)
        metrics.step_seconds.observe(seconds, learner)
        metrics.train_step.set(step.number, learner)
        if self._runner.front is not None:
            metrics.train_event_time_watermark.set(self._runner.front / 1e6, learner)
        if step.erased:
            self._forgot(step)
        if self._runner.outcomes is not None:
            handled = self._runner.outcomes.handled
            self._totals.labels += handled.learnt
            self._totals.corrections += handled.labels[Resolution.CORRECTED]
            self._totals.ticks += handled.silent
            tell_handled(learner, handled)
        if report is not None:
            self._ledger.tell(self._lease, step, rows, report, idle=self._named(step.drained))
            if self._signatures:
                self._signatures.learnt(self._runner.cursor)
        if step.snapshot:
            self._take_snapshot()

    def _named(self, stream_ids: Sequence[int]) -> list[str]:
        """Streams as people know them."""
        reached = self._runner.merge.reached()
        return [f"{reached[n].topic}[{reached[n].partition}]" if n in reached else f"stream {n}" for n in stream_ids]

    def _forgot(self, step: Step) -> None:
        """The arms forgot users ahead of the step."""
        self._totals.forgotten += len(step.erased)
        if self._signatures:
            self._signatures.forget(self._runner.among(step.erased))
        _log.info("train.forgot", users=len(step.erased), step=step.number)

    def _take_snapshot(self) -> None:
        """Tries until it stands: without its file the learner must not go on as if it were saved."""
        done = self._publish()
        for attempt in attempts(self._stop):
            if done is not None:
                break
            _log.info("train.snapshot_again", attempt=attempt)
            done = self._publish()
        if done is None:
            return  # asked to stop; the journal repeats these steps
        self._tell_readiness()
        if self._signatures:
            self._signatures.serves()
        self._parent, self._unsaved_steps, self._snapshot_at = done.id, 0, time.monotonic()
        self._ledger.start_over()
        self._totals.snapshots += 1
        self._totals.snapshot_id, self._totals.sha256 = done.id, done.sha256
        metrics.snapshots.inc(1, self._lease.learner)
        metrics.snapshot_bytes.set(done.size, self._lease.learner)
        if self._labels is not None:
            with self._connection.begin():
                self._labels.tell(self._connection, self._silences, self._watch)
        _log.info("train.snapshot", snapshot=done.id, sha256=done.sha256)

    def _publish(self) -> LiveSnapshot | None:
        """None: the files could not be written (disk full?)."""
        try:
            with metrics.snapshot_seconds.time(self._lease.learner):
                return write_snapshot(
                    self._connection,
                    self._lease,
                    self._runner,
                    self._plan,
                    step=self._next,
                    parent=self._parent,
                    folder=self._folder,
                    losses=self._ledger.means(),
                    actions=self._actions,
                    delivered=lambda: self._ledger.flush(self._stop, waiting=self._tell_unacknowledged),
                )
        except snapshot_files.Unwritable as error:
            self._health.set_ready("train", False, str(error))
            _log.error("train.snapshot_unwritable", error=error)
            return None

    # -- the serving cache --

    def _write_signatures(self) -> None:
        if self._signatures:
            self._totals.signatures += self._signatures.write_if_due(
                self._connection, self._runner.cursor, now=time.monotonic()
            )

    def _write_last_signatures(self) -> None:
        """What is left after `DRAIN_S` stays unwritten: readers make do with older rows."""
        until = time.monotonic() + DRAIN_S
        while self._signatures and time.monotonic() < until:
            written = self._signatures.write(self._connection, self._runner.cursor)
            self._totals.signatures += written
            if not written:
                return

    # -- what it says of itself --

    def _tell_readiness(self) -> None:
        """Ready means: what an earlier process journalled is repeated, and new rows are learnt."""
        left = max(self._lease.next_step - self._next, 0)
        self._health.set_ready("train", not left, f"repeating {left} journalled steps" if left else "")

    def _tell_unacknowledged(self, records: int) -> None:
        cause = self._kafka.causes.refusal() or self._kafka.causes.trouble()
        self._health.set_ready(
            "train",
            False,
            f"waiting for Kafka to acknowledge {records} progress records; then a snapshot goes live"
            + (f" ({cause})" if cause else ""),
        )


def learner_config_of(settings: TrainSettings) -> LearnerConfig:
    """What the settings make of a learner.

    :raises ConfigurationError: there is no such learner, or it has no such option.
    """
    name, options = settings.learner, settings.options.get(settings.learner, {})
    try:
        for named in (name, *settings.options):
            registry.spec_of(named)
        tasks = registry.tasks_of(name, settings.seed, **options)
        kinds: set[str] = {task.kind for task in tasks}
        asked = {kind: given for kind, given in settings.tasks.items() if kind in kinds}
        registry.check_tasks(settings.tasks)
        label = next((task.label for task in tasks if task.kind == "outcome"), None)
        days = None if label is None else settings.horizon_days.get(label)
        made = LearnerConfig(
            learner=name,
            seed=settings.seed,
            options=options,
            tasks=asked,
            resolution_us=round(settings.clock_resolution_s * 1_000_000),
            horizon_us=None if days is None else _days_us(days),
            correction_us=None if days is None else _days_us(settings.correction_days),
        )
        made.fresh()
    except registry.BadOption as error:
        where = f"settings train.options.{name} and train.tasks"
        raise ConfigurationError(str(error), where=where, hint=f"see `driftline learners {name}`") from None
    except (registry.UnknownLearner, registry.BrokenLearner) as error:
        where = "settings train.learner and train.options"
        raise ConfigurationError(str(error), where=where, hint="see `driftline learners`") from None
    return made


def _days_us(days: float) -> int:
    return round(days * 86_400_000_000)
