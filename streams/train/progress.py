"""What `train` tells the world after each step, on `learning.progress` (protocol, rule 16)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from confluent_kafka import KafkaError, Message

from contracts import topics
from contracts.codec import encode
from contracts.records import LossSum, Progress
from learners.arms.group import LEARNER, ArmGroupReport, LossTotal
from runtime import kafka, metrics
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Stop, Transient
from storage.learning.journal import Step, WriterLease
from storage.learning.snapshot_registry import snapshot_id
from storage.log import event_log
from streams.train.baseline_excess import Excess
from streams.train.merge import LogRow, Row

WAIT_S = 1.0
"""`flush` waits so long in silence."""


class Undelivered(Transient):
    """A progress record was given up by the producer: go back to the snapshot and repeat the steps since."""


def confidence_of(report: ArmGroupReport) -> LossSum | None:
    """Probability the learner gave to the type it held most probable; None where it names no types.

    Over the rows whose type was scored, so that it can be held against the loss "error".
    """
    log_probs = report.prediction.type_log_probs
    error = report.losses[LEARNER].get("error", LossTotal())
    if not log_probs.numel() or error.count != len(log_probs):
        return None
    return LossSum(sum=float(log_probs.amax(dim=1).double().exp().sum()), rows=error.count)


class ProgressLedger:
    """Sends one record a step and adds the losses up until the next snapshot."""

    def __init__(self, config: KafkaConfig) -> None:
        self._topic = config.physical(topics.PROGRESS)
        self._producer = kafka.producer(config)
        self._given_up: KafkaError | None = None
        self._sums: dict[tuple[str, str], LossTotal] = {}
        self._excess = Excess()

    def tell(
        self, lease: WriterLease, step: Step, rows: Sequence[Row], report: ArmGroupReport, *, idle: Sequence[str] = ()
    ) -> None:
        """Queues the record of a step; a repeated step repeats its id.

        :param idle: streams that had been read to the broker's end when silences ended with the step.
        """
        for arm, losses in report.losses.items():
            for loss, tally in losses.items():
                self._sums[arm, loss] = self._sums.get((arm, loss), LossTotal()) + tally
                if tally.count:
                    metrics.train_loss.set(tally.mean, lease.learner, arm, loss)
        for loss, nats in self._excess.add(report.losses).items():
            metrics.train_loss_excess.set(nats, lease.learner, loss)
        events = [row.event for row in rows if isinstance(row, LogRow)]
        front = step.front or event_log.time_of(0)
        times = [event_log.time_of(event.at) for event in events] or [front]
        record = Progress(
            learner=lease.learner,
            branch=lease.branch,
            step=step.number,
            rows=len(rows),
            late=step.late,
            first_event_at=min(times),
            last_event_at=max(times),
            front=front,
            losses={
                arm: {loss: LossSum(sum=tally.sum, rows=tally.count) for loss, tally in losses.items()}
                for arm, losses in report.losses.items()
            },
            actions=list(report.actions),
            snapshot=snapshot_id(lease.learner, lease.branch, step.number + 1) if step.snapshot else None,
            types=dict(Counter(event.type for event in events)),
            confidence=confidence_of(report),
            prompts=dict(report.retrieved),
            idle=list(idle),
        )
        while True:
            try:
                self._producer.produce(
                    self._topic, key=lease.learner, value=encode(record), on_delivery=self._delivered
                )
                break
            except BufferError:
                self.poll(1.0)
        self.poll()

    def poll(self, seconds: float = 0.0) -> None:
        """Lets the producer report.

        :raises Undelivered: it gave a record up.
        """
        self._producer.poll(seconds)
        if self._given_up is not None:
            raise Undelivered(f"learning.progress: {self._given_up.str()}", where="Kafka")

    def flush(self, stop: Stop, *, waiting: Callable[[int], None] = lambda records: None) -> None:
        """Returns once everything is acknowledged.

        :param waiting: told every `WAIT_S` seconds how many records are not.
        :raises Undelivered: the producer gave a record up, or the process is asked to stop meanwhile.
        """
        while left := self._producer.flush(WAIT_S):
            waiting(left)
            self.poll()
            if stop.is_set():
                raise Undelivered("asked to stop while progress was not acknowledged", where="Kafka")
        self.poll()

    def means(self) -> dict[str, dict[str, float]]:
        """arm -> loss -> mean over the rows since `start_over`."""
        found: dict[str, dict[str, float]] = {}
        for (arm, loss), tally in self._sums.items():
            if tally.count:
                found.setdefault(arm, {})[loss] = tally.mean
        return found

    def start_over(self) -> None:
        """Forgets the sums."""
        self._sums.clear()

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._given_up = error
