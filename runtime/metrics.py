"""All metrics, by name, unit and labels: the one list that dashboards and alerts are checked against.

A metric is written as a function: its signature is the labels, its docstring the help. So a misspelt
metric or label does not pass mypy:

    records_read.inc(500, topic="events.user")
    with batch_seconds.time(): ...

Never a user, item or event id as a label: labels are few and known beforehand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Generic, Literal, ParamSpec

import prometheus_client
from prometheus_client import CollectorRegistry

Labels = ParamSpec("Labels")
Kind = Literal["counter", "gauge", "histogram"]

REGISTRY = CollectorRegistry()
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metric(Generic[Labels]):
    """Name, help and labels of a metric; the base of the three kinds."""

    kind: Kind

    def __init__(self, name: str, labels: Callable[Labels, None]) -> None:
        self.name = name
        self.help = inspect.getdoc(labels) or ""
        self.labels = tuple(inspect.signature(labels).parameters)
        ALL.append(self)


ALL: list[Metric[...]] = []
"""Every metric of every process."""


class Counter(Metric[Labels]):
    """Only grows."""

    kind: Kind = "counter"

    def __init__(self, name: str, labels: Callable[Labels, None]) -> None:
        super().__init__(name, labels)
        self._metric = prometheus_client.Counter(name, self.help, self.labels, registry=REGISTRY)

    def inc(self, amount: float, /, *args: Labels.args, **labels: Labels.kwargs) -> None:
        """Adds `amount` (at least 0)."""
        (self._metric.labels(*args, **labels) if self.labels else self._metric).inc(amount)


class Gauge(Metric[Labels]):
    """The newest value."""

    kind: Kind = "gauge"

    def __init__(self, name: str, labels: Callable[Labels, None]) -> None:
        super().__init__(name, labels)
        self._metric = prometheus_client.Gauge(name, self.help, self.labels, registry=REGISTRY)

    def set(self, value: float, /, *args: Labels.args, **labels: Labels.kwargs) -> None:
        """Replaces the value."""
        (self._metric.labels(*args, **labels) if self.labels else self._metric).set(value)

    def follow(self, value: Callable[[], float]) -> None:
        """Asks for the value at each scrape, from now on (of a metric without labels)."""
        self._metric.set_function(value)

    def remove(self, *args: Labels.args, **labels: Labels.kwargs) -> None:
        """Forgets one set of labels, e.g. of a partition that went to another process."""
        named: dict[str, object] = dict(zip(self.labels, args, strict=False)) | labels
        self._metric.remove(*(str(named[label]) for label in self.labels))


class Histogram(Metric[Labels]):
    """A distribution."""

    kind: Kind = "histogram"

    def __init__(self, name: str, labels: Callable[Labels, None], buckets: tuple[float, ...]) -> None:
        super().__init__(name, labels)
        self._metric = prometheus_client.Histogram(name, self.help, self.labels, registry=REGISTRY, buckets=buckets)

    def observe(self, value: float, /, *args: Labels.args, **labels: Labels.kwargs) -> None:
        """Adds one value."""
        (self._metric.labels(*args, **labels) if self.labels else self._metric).observe(value)

    @contextmanager
    def time(self, *args: Labels.args, **labels: Labels.kwargs) -> Iterator[None]:
        """Adds the seconds the block took, however it ended."""
        start = perf_counter()
        try:
            yield
        finally:
            self.observe(perf_counter() - start, *args, **labels)


def _counter(name: str) -> Callable[[Callable[Labels, None]], Counter[Labels]]:
    return lambda labels: Counter(name, labels)


def _gauge(name: str) -> Callable[[Callable[Labels, None]], Gauge[Labels]]:
    return lambda labels: Gauge(name, labels)


def _histogram(
    name: str, buckets: tuple[float, ...] = SECONDS
) -> Callable[[Callable[Labels, None]], Histogram[Labels]]:
    return lambda labels: Histogram(name, labels, buckets)


# -- ingest --


@_counter("driftline_ingest_records_read_total")
def records_read(topic: str) -> None:
    """Records of committed batches."""


@_counter("driftline_ingest_records_accepted_total")
def records_accepted(topic: str) -> None:
    """Records accepted: valid, not a duplicate, not of a suppressed user."""


@_counter("driftline_ingest_dead_letters_total")
def dead_letters(topic: str, reason: str) -> None:
    """Records refused, by `contracts.codec.Reason`."""


@_counter("driftline_ingest_duplicates_total")
def duplicates(topic: str) -> None:
    """Records whose identity was already accepted."""


@_counter("driftline_ingest_suppressed_total")
def suppressed(topic: str) -> None:
    """Records of erased users, not kept."""


@_counter("driftline_ingest_unknown_fields_total")
def unknown_fields(topic: str) -> None:
    """Accepted records with fields this version does not know."""


@_counter("driftline_ingest_ignored_origins_total")
def ignored_origins(topic: str) -> None:
    """Valid records whose `driftline-origin` header proves no replay: copied on, or anybody's. Judged without it."""


@_counter("driftline_ingest_unreadable_headers_total")
def unreadable_headers(topic: str) -> None:
    """Valid records with a header name that is not UTF-8: judged without their headers."""


@_counter("driftline_ingest_read_bytes_total")
def read_bytes(topic: str) -> None:
    """Bytes of record values of committed batches."""


@_counter("driftline_ingest_batches_total")
def batches(outcome: Literal["committed", "rolled_back", "fenced", "unknown"]) -> None:
    """Batches by how their transaction ended; "unknown" = the connection broke during COMMIT."""


@_histogram("driftline_ingest_batch_seconds")
def batch_seconds() -> None:
    """Seconds from a batch's last record to its commit."""


@_gauge("driftline_ingest_lag_records")
def ingest_lag(topic: str, partition: str) -> None:
    """Offsets between the broker's end and the committed position."""


@_gauge("driftline_ingest_event_delay_seconds")
def event_delay(topic: str, partition: str) -> None:
    """Seconds between the newest committed record's time and its commit; one far ahead of the others is passed over."""


@_counter("driftline_ingest_far_records_total")
def far_records(topic: str) -> None:
    """Records accepted though their time lies more than a day ahead of their partition's last ones."""


@_gauge("driftline_ingest_duplicate_filter_entries")
def filter_entries(topic: str, partition: str) -> None:
    """Event identities held in memory to recognise duplicates."""


@_counter("driftline_ingest_rejoins_total")
def rejoins(reason: Literal["commit_error", "database_away", "kafka_error"]) -> None:
    """Times the process left its group and joined again."""


@_gauge("driftline_ingest_topic_danger")
def topic_danger(topic: str) -> None:
    """Whether the topic may remove what is not read: 0 no, 1 unread records are older than half of its retention (or go
    by size), 2 older than all of it, or events are compacted."""


@_counter("driftline_ingest_sessions_ended_total")
def sessions_ended() -> None:
    """Database sessions of other processes ended at a claim, as they still held the stream: frozen or cut off."""


# -- train --


@_counter("driftline_train_steps_total")
def train_steps(learner: str) -> None:
    """Learning steps run, repeated ones included."""


@_counter("driftline_train_repeated_steps_total")
def repeated_steps(learner: str) -> None:
    """Journalled steps run again after a restart."""


@_counter("driftline_train_rows_total")
def train_rows(learner: str) -> None:
    """Rows learnt."""


@_counter("driftline_train_late_rows_total")
def late_rows(learner: str) -> None:
    """Rows behind the merge front: learnt, and counted here."""


@_counter("driftline_train_labels_total")
def train_labels(
    learner: str,
    outcome: Literal[
        "learnt",
        "corrected",
        "confirmed_silence",
        "after_horizon",
        "repeated",
        "contradicting",
        "too_late",
        "context_gone",
        "subject_skipped",
        "other_task",
        "no_subject",
    ],
) -> None:
    """Labels by what came of them, each once (docs/learning.md); those that still wait are a gauge."""


@_gauge("driftline_train_waiting_rows")
def waiting_labels(learner: str, age: Literal["day", "week", "month", "older"]) -> None:
    """Labels whose subject was not handled yet, by how far the task's payments have gone on since they became known:
    at most so far; as of the newest snapshot."""


@_counter("driftline_train_label_timeouts_total")
def train_label_timeouts(learner: str) -> None:
    """Silences that reached the task's horizon and were learnt as negative labels."""


@_gauge("driftline_train_open_rows")
def open_subjects(learner: str) -> None:
    """Events whose outcome was predicted and is not known yet, as of the newest snapshot."""


@_gauge("driftline_train_unlabelled_rows")
def unlabelled_rows(learner: str) -> None:
    """Events that wait for an outcome while silences are due and count for nothing, because no label of the task was
    ever read; 0 once one was, or `driftline labels assume-complete` said that there may be none."""


@_gauge("driftline_train_label_age_seconds")
def label_age(learner: str) -> None:
    """How far the task's payments have gone on, in event time, since the newest outcomes that were read became
    known."""


@_gauge("driftline_train_horizon_seconds")
def train_horizon(learner: str) -> None:
    """Event time after which silence counts as an outcome."""


@_gauge("driftline_train_loss")
def train_loss(learner: str, arm: str, loss: str) -> None:
    """Mean prequential loss over the rows of the newest step that had any."""


@_gauge("driftline_train_loss_excess")
def train_loss_excess(learner: str, loss: str) -> None:
    """Nats that the learner's mean loss of the last 32 steps lies above that of its best reference; below 0 = it beats
    them all."""


@_histogram("driftline_train_step_seconds")
def step_seconds(learner: str) -> None:
    """Seconds of one step, journal and publishing included."""


@_gauge("driftline_train_step")
def train_step(learner: str) -> None:
    """Number of the newest step."""


@_gauge("driftline_train_lag_rows")
def train_lag(learner: str) -> None:
    """Committed rows of the log above the learner's cursor."""


@_gauge("driftline_train_event_time_watermark_timestamp_seconds")
def train_event_time_watermark(learner: str) -> None:
    """Record time the merge has reached, unix seconds: the event-time watermark."""


@_counter("driftline_train_snapshots_total")
def snapshots(learner: str) -> None:
    """Snapshots made live."""


@_histogram("driftline_train_snapshot_seconds")
def snapshot_seconds(learner: str) -> None:
    """Seconds to write a snapshot and make it live."""


@_gauge("driftline_train_snapshot_bytes")
def snapshot_bytes(learner: str) -> None:
    """Size of the newest snapshot file."""


# -- score --


@_counter("driftline_score_requests_total")
def score_requests(
    outcome: Literal["answered", "invalid", "unauthorized", "overloaded", "not_ready", "expired", "failed"],
    way: Literal["http", "kafka"],
) -> None:
    """Requests by how they ended and how they came."""


@_histogram("driftline_score_request_seconds")
def request_seconds() -> None:
    """Seconds from a request's arrival over HTTP to its answer."""


@_histogram("driftline_score_kafka_batch_seconds")
def score_kafka_seconds() -> None:
    """Seconds from taking requests off Kafka to the acknowledgement of their answers."""


@_gauge("driftline_score_kafka_up")
def score_kafka_up() -> None:
    """1 while requests are read from Kafka, 0 while Kafka is out of reach; HTTP does not depend on it."""


@_histogram("driftline_score_batch_rows", ROWS)
def score_batch_rows() -> None:
    """Requests answered in one pass."""


@_counter("driftline_score_swaps_total")
def swaps(learner: str) -> None:
    """Times a newer snapshot took over."""


@_counter("driftline_score_snapshots_refused_total")
def snapshots_refused(
    learner: str, reason: Literal["missing", "unreadable", "schema", "hash", "foreign", "unfit"]
) -> None:
    """Live snapshots that `score` does not answer from: the file is missing or unreadable, of another schema version,
    of other bytes than registered, of another learner or version, or its weights give no numbers."""


@_gauge("driftline_score_staleness_seconds")
def staleness() -> None:
    """Now minus the arrival of the newest log segment the last answer has seen."""


@_gauge("driftline_score_snapshot_step")
def snapshot_step(learner: str) -> None:
    """Step of the snapshot that answers."""


@_gauge("driftline_score_queue_requests")
def score_queue() -> None:
    """Requests waiting."""


@_counter("driftline_score_user_states_total")
def score_user_states(
    state: Literal["cache_hit", "cache_updated", "cache_rebuilt", "from_history", "no_history"],
) -> None:
    """Users' pasts behind rankings, by how they were come by: the stored signature table as it was, or with the few
    events since, or built anew from the sequence; the sequence itself, where a learner keeps no tables; or no past."""


@_histogram("driftline_score_cache_updated_events", ROWS)
def score_cache_updated() -> None:
    """Events added to a stored signature table, where any were."""


# -- drift --


@_counter("driftline_drift_records_total")
def drift_records(topic: str) -> None:
    """Records looked at."""


@_counter("driftline_drift_repeated_total")
def drift_repeated(topic: str) -> None:
    """Records of a step seen before: they change nothing."""


@_counter("driftline_drift_unreadable_total")
def drift_unreadable(topic: str) -> None:
    """Records that are not of the topic's schema, passed over."""


@_counter("driftline_drift_unreadable_headers_total")
def drift_unreadable_headers(topic: str) -> None:
    """Records with a header name that is not UTF-8: looked at like all others."""


@_counter("driftline_drift_alarms_total")
def drift_alarms(subject: str, series: str, detector: str) -> None:
    """Alarms sent, repeated ones included."""


@_gauge("driftline_drift_input")
def drift_input(subject: str, series: str) -> None:
    """Newest value of a series, over a block of 128 rows; what it measures is in docs/drift.md."""


@_gauge("driftline_drift_step")
def drift_step(subject: str, branch: str) -> None:
    """Newest step seen."""


@_histogram("driftline_drift_block_seconds")
def drift_block_seconds() -> None:
    """Seconds to judge all series of a subject once a block is full."""


# -- maintain --


@_counter("driftline_maintain_compacted_rows_total")
def compacted_rows() -> None:
    """Rows of sequences replaced by compacted ones, compacted rows taken again included."""


@_counter("driftline_maintain_compacted_events_total")
def compacted_events() -> None:
    """Events rewritten by that; against the accepted ones: how often an event is rewritten."""


@_gauge("driftline_maintain_due_users")
def due_users() -> None:
    """Users whose sequences were due to be compacted when the newest pass began."""


@_counter("driftline_maintain_log_segments_removed_total")
def log_segments_removed() -> None:
    """Log segments removed by retention."""


@_counter("driftline_maintain_log_events_removed_total")
def log_events_removed() -> None:
    """Accepted records in these."""


@_counter("driftline_maintain_sequence_events_removed_total")
def sequence_events_removed() -> None:
    """Events removed from users' sequences by retention."""


@_counter("driftline_maintain_snapshots_collected_total")
def snapshots_collected() -> None:
    """Snapshots collected: files and registry row."""


@_counter("driftline_maintain_stray_files_total")
def stray_files() -> None:
    """Snapshot files removed that are not those registered: left by a fenced `train`."""


@_histogram("driftline_maintain_pass_seconds", (*SECONDS, 300.0, 1800.0))
def maintain_pass_seconds(part: Literal["compact", "collect", "trim"]) -> None:
    """Seconds of a pass, part by part."""


@_gauge("driftline_maintain_pass_timestamp_seconds")
def maintain_pass() -> None:
    """When the newest pass ended, unix seconds."""


# -- export --


@_counter("driftline_export_bundles_total")
def bundles_published(learner: str) -> None:
    """Times latest.json was written: a new bundle, or one that was there already when the process began."""


@_counter("driftline_export_bundles_removed_total")
def bundles_removed(learner: str) -> None:
    """Bundles removed by retention."""


@_counter("driftline_export_troubles_total")
def export_troubles(part: Literal["target", "postgres", "snapshot"]) -> None:
    """Passes that could not be finished, tries included: the target or Postgres out of reach, or a learner none of
    whose newest snapshots can be read."""


@_histogram("driftline_export_bundle_seconds", (*SECONDS, 300.0))
def bundle_seconds(learner: str) -> None:
    """Seconds from reading a snapshot to latest.json, the answer asked of the target's copy included."""


@_gauge("driftline_export_bundle_bytes")
def bundle_bytes(learner: str) -> None:
    """Size of the newest bundle."""


@_gauge("driftline_export_snapshot_step")
def exported_step(learner: str) -> None:
    """Step of the snapshot in the newest bundle."""


@_gauge("driftline_export_pass_timestamp_seconds")
def export_pass() -> None:
    """When the newest pass ended well, unix seconds."""


# -- every process --


@_gauge("driftline_ready")
def ready() -> None:
    """1 while the process does its work, else 0; /readyz says why."""


@_counter("driftline_kafka_errors_total")
def kafka_errors(client: Literal["consumer", "producer", "admin"]) -> None:
    """Errors reported by Kafka clients, those that mend themselves included."""
