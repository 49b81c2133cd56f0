"""`driftline ingest`: topics -> event log and per-user sequences, each accepted record exactly once.

The loop is: collect a batch, write it and the next offsets in one transaction, extend what memory knows. A
second thread writes while the first collects the next batch; one batch at most is under way, and none is
handed over before the one before it has committed.
Everything in memory (positions, duplicate filters, vocabulary) belongs to one `Membership`: one stay in the
consumer group over one Postgres connection. After any error it is dropped whole and built anew from
Postgres, so there is no state to repair. See `protocol.md` of the design, rules 1 to 10.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal

import structlog
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from contracts import topics
from runtime import kafka, metrics
from runtime.failpoints import failpoint
from runtime.kafka import KafkaConfig, TopicDescription
from runtime.lifecycle import Refused, Stop, Transient, attempts
from runtime.settings import IngestSettings
from runtime.telemetry import Health
from storage import offsets, suppression
from storage.engine import Unavailable, mapped_errors, open_engine
from storage.log import Counts
from storage.offsets import Advance, Claim, Fenced
from storage.vocabulary import Vocabulary
from streams import positions
from streams.accept import Disorder, Intake, decoders
from streams.commit import BatchWriter, Part, Written
from streams.notices import Notices

TRANSACTION_TIMEOUT_S = 15
CHECK_TOPICS_EVERY_S = 2.0
BROKER_TIMEOUT_S = 4.0
"""Seconds an answer of the broker is waited for: well below the 10 s in which a process must drain."""
DRAIN_NOTICES_S = 2.0
PAUSE_S = 0.2
"""Seconds before joining again after a trouble that followed committed batches."""

LONGEST_BATCH_S = 1.0
IDLE_S = 0.2
"""How long one look for records waits when none come."""

_log = structlog.get_logger(__name__)


class Rejoin(Transient):
    """Memory and Postgres may disagree: leave the group, forget everything, join again."""


@dataclass
class Totals:
    """What a run did."""

    read: int = 0
    accepted: int = 0
    duplicates: int = 0
    dead: int = 0
    suppressed: int = 0
    batches: int = 0
    first_at: float | None = None
    """Unix seconds when the first record was there."""
    last_at: float | None = None
    """Unix seconds of the last commit."""

    def add(self, counts: Counts) -> None:
        """Adds what became of one segment's records."""
        self.read += counts.read
        self.accepted += counts.accepted
        self.duplicates += counts.duplicates
        self.dead += counts.dead
        self.suppressed += counts.suppressed


class Ingest:
    """The process. `run` returns when stopped, or with `once` when the topics' ends are reached."""

    def __init__(
        self, *, postgres_url: str, kafka_config: KafkaConfig, settings: IngestSettings, health: Health, stop: Stop
    ) -> None:
        self._url = postgres_url
        self._kafka = kafka_config
        self._settings = settings
        self._health = health
        self._stop = stop
        self.totals = Totals()

    def run(self, *, once: bool = False) -> Totals:
        """
        :param once: read up to the ends the topics had at the start, then stop.
        :raises Refused: a person must decide; exit code 3.
        """
        # Records are many small objects without cycles: the default thresholds would walk them for nothing.
        gc.set_threshold(200_000, 20, 50)
        # The writing thread often comes back from Arrow or Postgres for an instant: it must not wait 5 ms each time.
        sys.setswitchinterval(0.0005)
        while not self._stop.is_set():
            batches_before = self.totals.batches
            for attempt in attempts(self._stop):
                try:
                    self._stay(once=once)
                    return self.totals
                except (Unavailable, Transient) as error:
                    self._health.set_ready("ingest", False, f"waiting to try again (attempt {attempt}): {error}")
                    metrics.rejoins.inc(1, _reason(error))
                    _log.warning("ingest.rejoin", attempt=attempt, error=str(error))
                if self.totals.batches > batches_before:
                    break  # it worked between two troubles: the pauses grow from the shortest again
            self._stop.wait(PAUSE_S)
        return self.totals

    def _stay(self, *, once: bool) -> None:
        with mapped_errors():
            member = Membership(
                url=self._url, kafka_config=self._kafka, settings=self._settings, totals=self.totals, stop=self._stop
            )
        try:
            with mapped_errors():
                member.work(once=once, ready=lambda why: self._health.set_ready("ingest", not why, why))
        except (Fenced, Unavailable) as error:
            member.refuse_if_still_assigned(error)
            raise Rejoin(str(error)) from error
        except Disorder as error:
            raise Rejoin(str(error)) from error
        except KafkaException as error:
            raise Rejoin(f"Kafka: {error.args[0].str()}") from error
        finally:
            member.leave()


@dataclass(frozen=True, kw_only=True)
class _UnderWay:
    """A batch in the writing thread's hands."""

    outcome: Future[list[Written]]
    moves: dict[tuple[str, int], Advance]
    intakes: dict[tuple[str, int], Intake]
    started: float
    """time.perf_counter() at the hand-over."""


class Membership:
    """One stay in the consumer group."""

    def __init__(
        self, *, url: str, kafka_config: KafkaConfig, settings: IngestSettings, totals: Totals, stop: Stop
    ) -> None:
        self._config = kafka_config
        self._settings = settings
        self._totals = totals
        self._stop = stop
        self._admin = kafka.admin(kafka_config)
        self._described = self._describe()
        self._claims: dict[tuple[str, int], Claim] = {}
        """By (physical topic, partition): what the group assigns to us and Postgres agrees to; `next_offset` is
        the next to hand over for writing."""
        self._writer: BatchWriter | None = None
        """Made with the claims, dropped with them."""
        self._intakes: dict[tuple[str, int], Intake] = {}
        self._under_way: _UnderWay | None = None
        self._failed: list[Claim] = []
        """Claims of the batch whose commit failed."""
        self._failure: BaseException | None = None
        """What went wrong inside a group callback; raised outside it."""
        self._ends: dict[tuple[str, int], int] = {}
        self._decoders = decoders()
        self._chunk = 1000
        with ExitStack() as opened:
            engine = open_engine(url, application_name="driftline-ingest", transaction_timeout_s=TRANSACTION_TIMEOUT_S)
            self._connection = engine.connect()
            opened.callback(self._drop_connection)
            self._side_engine = open_engine(url, application_name="driftline-ingest-side", pooled=True)
            opened.callback(self._side_engine.dispose)
            self._vocabulary = Vocabulary(self._side_engine)
            self._notices = Notices(kafka_config, self._side_engine)
            self._pen = ThreadPoolExecutor(1, thread_name_prefix="writer")
            opened.callback(self._pen.shutdown)  # waits: a thread must not outlive its connection
            self._consumer = self._join()
            self._opened = opened.pop_all()

    def _join(self) -> Consumer:
        return kafka.consumer(
            self._config,
            group=self._settings.group,
            topics=list(topics.INPUTS),
            on_assign=self._assigned,
            on_revoke=self._revoked,
            on_lost=self._revoked,
            session_timeout_s=self._settings.session_timeout_s,
        )

    # -- the loop --

    def work(self, *, once: bool, ready: Callable[[str], None]) -> None:
        """Collects and commits batches until stopped (or, with `once`, until the ends).

        :raises Rejoin, Unavailable, Fenced, Refused: see `Ingest`.
        """
        ready("waiting for the group to assign partitions")
        checked_at = quiet_since = time.monotonic()
        while not self._stop.is_set():
            collected = self._collect()
            if self._claims:
                ready("")
            if collected:
                quiet_since = time.monotonic()
            self._hand_over()
            if not collected:
                self._settle()
            self._notices.send(self._stream_ids())
            if once and self._claims and self._at_ends() and time.monotonic() - quiet_since > self._quiet_s():
                break
            if time.monotonic() - checked_at > CHECK_TOPICS_EVERY_S:
                self._check_topics()
                checked_at = time.monotonic()
        self._hand_over()
        self._settle()
        self._notices.finish(self._stream_ids(), within_s=DRAIN_NOTICES_S)

    def leave(self) -> None:
        """Leaves the group and drops all connections."""
        if self._under_way is not None:
            wait([self._under_way.outcome])  # its outcome is no longer of interest: memory is dropped
            self._under_way = None
        self._claims.clear()
        self._intakes.clear()
        try:
            self._consumer.close()
        except (KafkaException, RuntimeError) as error:
            _log.warning("ingest.close", error=str(error))
        self._opened.close()

    def _drop_connection(self) -> None:
        self._connection.invalidate()  # and not back to a pool: the claims were its backend's
        self._connection.close()

    def refuse_if_still_assigned(self, error: Exception) -> None:
        """After a failed commit: was the stream claimed by somebody while the group says it is ours?

        A process that slept is told by the group, within a session timeout, that its partitions went to
        another: it may come back as anybody. One that still holds them has met an owner outside the group.

        :raises Refused: somebody outside the group claims these streams.
        """
        held = dict(self._claims)
        self._tell_if_fenced(error)
        deadline = time.monotonic() + self._settings.session_timeout_s
        self._intakes.clear()
        while held and time.monotonic() < deadline and not self._stop.is_set():
            self._consumer.pause(self._consumer.assignment())
            self._consumer.consume(1, 0.2)
            held = {place: claim for place, claim in held.items() if self._claims.get(place) is claim}
        if not held:
            return
        try:
            with mapped_errors(), self._side_engine.connect() as connection:
                taken = offsets.outdated(connection, list(held.values()))
        except Unavailable:
            return
        if taken:
            metrics.batches.inc(1, "fenced")
            raise Refused(
                f"another process outside consumer group {self._settings.group!r} owns this stream now",
                where=str(taken[0].stream),
                todo="let all ingest processes of one database use one consumer group; then start this one again",
            ) from error

    def _tell_if_fenced(self, error: Exception) -> None:
        """Says whether the failed batch was another owner's doing: the proof that fencing bites."""
        try:
            with mapped_errors(), self._side_engine.connect() as connection:
                taken = offsets.outdated(connection, self._failed)
        except Unavailable:
            return
        if taken:
            _log.warning("ingest.fenced", streams=len(taken), error=str(error))

    # -- the group's callbacks: nothing may escape them --

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._revoked(consumer, [])
        try:
            wanted = [(self._config.logical(p.topic), p.partition) for p in partitions]
            described = self._describe()
            with mapped_errors(), self._connection.begin():
                claims = positions.claim(self._connection, wanted, described, self._range)
            with mapped_errors(), self._connection.begin():
                suppressed = suppression.load(self._connection)
            self._writer = BatchWriter(
                self._connection,
                self._vocabulary,
                suppressed=suppressed,
                duplicate_window=self._settings.duplicate_window,
            )
            self._described = described
            for claim in claims:
                place = (self._config.physical(claim.stream.topic), claim.stream.partition)
                self._claims[place] = claim
                self._ends.setdefault(place, self._range(claim.stream.topic, claim.stream.partition)[1])
            self._notices.due = True
            consumer.assign([TopicPartition(*place, claim.next_offset) for place, claim in self._claims.items()])
            _log.info("ingest.assigned", streams=len(claims))
        except BaseException as error:  # an escape would make the wrapper assign Kafka's own offsets
            self._failure = error
            self._claims.clear()
            consumer.assign([])

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # Eager protocol: everything goes. What was collected is read again by the next owner.
        try:
            self._settle()
        except BaseException as error:  # nothing may escape a callback
            self._failure = self._failure or error
        for claim in self._claims.values():
            metrics.ingest_lag.set(0, claim.stream.topic, str(claim.stream.partition))
        if self._intakes:
            metrics.batches.inc(1, "rolled_back")
        self._claims.clear()
        self._intakes.clear()
        self._writer = None

    def _range(self, topic: str, partition: int) -> tuple[int, int]:
        physical = self._config.physical(topic)
        return kafka.low_high(self._consumer, physical, partition, timeout_s=BROKER_TIMEOUT_S)

    def _describe(self) -> dict[str, TopicDescription]:
        names = list(topics.INPUTS)
        return kafka.describe(self._config, names, client=self._admin, timeout_s=BROKER_TIMEOUT_S)

    def _stream_ids(self) -> list[int]:
        return [claim.stream_id for claim in self._claims.values()]

    # -- collecting --

    def _collect(self) -> int:
        """Fills the intakes until a batch is full, or what was there is taken and `linger_s` has passed.

        While the broker has more, waiting costs nothing and larger batches cost less: then only
        `LONGEST_BATCH_S` ends it.
        """
        records = size = 0
        started = time.monotonic()
        caught_up = True
        while records < self._settings.batch_records and size < self._settings.batch_bytes:
            age_s = time.monotonic() - started
            if records and age_s >= (self._settings.linger_s if caught_up else LONGEST_BATCH_S):
                break
            wait_s = max(0.0, self._settings.linger_s - age_s) if records else IDLE_S
            wanted = min(self._chunk, self._settings.batch_records - records)
            messages = self._consumer.consume(wanted, wait_s)
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            caught_up = len(messages) < wanted
            if not messages:
                if not records:
                    break
                continue
            if not records:
                started = time.monotonic()
                self._totals.first_at = self._totals.first_at or time.time()
            taken = self._take(messages)
            records += len(messages)
            size += taken
            # Small chunks for large records: a chunk is in memory before its size is known.
            self._chunk = max(1, min(5000, 8 * 2**20 // (taken // len(messages) + 1)))
            if self._stop.is_set():
                break
        return records

    def _take(self, messages: Sequence[Message]) -> int:
        groups: dict[tuple[str, int], list[Message]] = {}
        for message in messages:
            place = (message.topic() or "", message.partition() or 0)
            if (error := message.error()) is not None:
                raise Rejoin(f"Kafka: {error.str()}", where=f"{place[0]}[{place[1]}]")
            group = groups.get(place)
            if group is None:
                group = groups[place] = []
            group.append(message)
        for place, group in groups.items():
            if place in self._claims:  # else fetched before a rebalance took the partition away
                self._intake(place).take(*group)
        return sum(map(len, messages))

    def _intake(self, place: tuple[str, int]) -> Intake:
        if place not in self._intakes:
            claim = self._claims[place]
            topic = claim.stream.topic
            self._intakes[place] = Intake(topic, self._decoders[topic], next=claim.next_offset)
        return self._intakes[place]

    def _at_ends(self) -> bool:
        handed_over = all(claim.next_offset >= self._ends[place] for place, claim in self._claims.items())
        return handed_over and self._under_way is None

    def _quiet_s(self) -> float:
        """Seconds without a record before `once` believes an end (Tansu's may be too low)."""
        full = all(topic.trusts_high_watermark for topic in self._described.values())
        return 0.0 if full else 1.0

    def _check_topics(self) -> None:
        """A topic recreated under a running process must stop it before its records are taken for old ones."""
        described = self._describe()
        with self._side_engine.connect() as connection:
            rows = offsets.streams(connection)
        for topic, description in described.items():
            current = [row for row in rows if row.stream.topic == topic and not row.retired]
            if current:  # none before the first assignment
                positions.check_identity(current, description)

    # -- committing --

    def _hand_over(self) -> None:
        """Gives the batch to the writing thread, once that has committed the one before.

        :raises Fenced, Unavailable: of the batch before: nothing of it counts, or the outcome is unknown.
        """
        moves = self._moves()
        if not moves or self._writer is None:
            return
        self._settle()
        parts = [self._part(place, move) for place, move in moves.items()]
        self._under_way = _UnderWay(
            outcome=self._pen.submit(self._write, self._writer, parts),
            moves=moves,
            intakes=self._intakes,
            started=time.perf_counter(),
        )
        self._intakes = {}
        for place, move in moves.items():
            self._claims[place] = replace(move.claim, next_offset=move.next)

    def _settle(self) -> None:
        """Waits for the batch under way, if there is one, and tells what became of it.

        :raises Fenced, Unavailable: nothing of it counts, or the outcome is unknown.
        """
        if self._under_way is None:
            return
        batch, self._under_way = self._under_way, None
        try:
            written = batch.outcome.result()
        except (Fenced, Unavailable) as error:
            metrics.batches.inc(1, "fenced" if isinstance(error, Fenced) else "unknown")
            self._failed = [move.claim for move in batch.moves.values()]
            raise
        metrics.batch_seconds.observe(time.perf_counter() - batch.started)
        self._count(written, batch)
        # Advisory: for tools that watch the group's lag. Positions come from Postgres.
        at = [TopicPartition(*place, move.next) for place, move in batch.moves.items()]
        self._consumer.commit(offsets=at, asynchronous=True)

    def _write(self, writer: BatchWriter, parts: list[Part]) -> list[Written]:
        """In the writing thread.

        A topic may be deleted and created again between two fetches, and offsets alone do not show it. The ids
        are asked for after the last fetch and before the commit: if they are still the claimed ones, every
        record of the batch came from the claimed topics.
        """
        claimed = {part.move.claim.stream.topic: part.move.claim.stream.topic_id for part in parts}
        found = kafka.topic_ids(self._config, list(claimed), client=self._admin, timeout_s=BROKER_TIMEOUT_S)
        if found != claimed:
            raise Rejoin("a topic was created again under a running process")  # the next claim refuses it by name
        with mapped_errors():
            written = writer.write(parts)
        failpoint("ingest.after_commit")
        return written

    def _part(self, place: tuple[str, int], move: Advance) -> Part:
        topic = move.claim.stream.topic
        return Part(move=move, intake=self._intakes.get(place) or Intake(topic, self._decoders[topic]))

    def _moves(self) -> dict[tuple[str, int], Advance]:
        if not self._claims:
            return {}
        at = self._consumer.position([TopicPartition(*place) for place in self._claims])
        moves = {}
        for partition in at:
            place = (partition.topic, partition.partition)
            claim = self._claims[place]
            # position() is negative until something was polled; then the stored offset stands.
            next_offset = max(partition.offset, claim.next_offset)
            if (intake := self._intakes.get(place)) is not None and intake.next > next_offset:
                raise Disorder(f"{claim.stream}: offset {intake.next - 1} was taken, but the position is {next_offset}")
            if next_offset > claim.next_offset:
                moves[place] = Advance(claim=claim, first=claim.next_offset, next=next_offset)
        return moves

    def _count(self, written: list[Written], batch: _UnderWay) -> None:
        self._totals.batches += 1
        self._totals.last_at = time.time()
        metrics.batches.inc(1, "committed")
        for part in written:
            self._totals.add(part.counts)
            topic, counts = part.claim.stream.topic, part.counts
            self._notices.due = self._notices.due or counts.dead > 0
            metrics.records_read.inc(counts.read, topic)
            metrics.records_accepted.inc(counts.accepted, topic)
            metrics.duplicates.inc(counts.duplicates, topic)
            metrics.suppressed.inc(counts.suppressed, topic)
            metrics.unknown_fields.inc(counts.unknown_fields, topic)
        for intake in batch.intakes.values():
            metrics.read_bytes.inc(intake.value_bytes, intake.topic)
            for refusal in intake.refused:
                metrics.dead_letters.inc(1, intake.topic, refusal.reason)
        for place, move in batch.moves.items():
            claim = move.claim
            topic, partition = claim.stream.topic, str(claim.stream.partition)
            entries = self._writer.filter_entries(claim) if self._writer else 0
            metrics.filter_entries.set(entries, topic, partition)
            if (newest := batch.intakes.get(place)) is not None and newest.record_ms:
                metrics.event_delay.set(max(0.0, time.time() - newest.record_ms[-1] / 1000), topic, partition)
            high = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)[1]
            metrics.ingest_lag.set(max(0, high - move.next), topic, partition)


def _reason(error: Exception) -> Literal["commit_error", "database_away", "kafka_error"]:
    cause = error if isinstance(error, Unavailable) else error.__cause__
    if isinstance(cause, Unavailable):
        return "database_away"
    return "commit_error" if isinstance(cause, Fenced) else "kafka_error"
