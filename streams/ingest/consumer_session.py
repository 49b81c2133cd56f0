"""One stay of `ingest` in the consumer group: what is claimed, collected and under way.

The loop is: collect a batch, write it and the next offsets in one transaction, extend what memory knows. A
second thread writes while the first collects the next batch; one batch at most is under way, and none is
handed over before the one before it has committed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import structlog
from confluent_kafka import Consumer, KafkaException, TopicPartition

from contracts import topics
from runtime import kafka, metrics
from runtime.failpoints import failpoint
from runtime.kafka import KafkaConfig, TopicDescription
from runtime.lifecycle import OperatorActionRequired, Stop
from runtime.settings import IngestSettings
from storage.dictionary import Dictionary
from storage.engine import SameServer, Unavailable, mapped_errors, open_engine
from storage.log import group_slots, offsets
from storage.log.group_slots import Slot
from storage.log.offsets import Advance, Claim, Fenced
from streams.ingest import start_positions
from streams.ingest.batch_writer import BatchWriter, Part, Written
from streams.ingest.collector import Collector, Rejoin, TopicPlace
from streams.ingest.counters import IngestTotals, count_written, show_position
from streams.ingest.dead_letter_notices import Notices
from streams.ingest.missed_tombstones import newest_records
from streams.ingest.topic_watch import TopicWatch
from streams.ingest.validation import Disorder, StreamBatch

TRANSACTION_TIMEOUT_S = 15
SIDE_ANSWER_S = 30.0
"""Seconds an answer to the short transactions beside the batches is waited for."""
CHECK_TOPICS_EVERY_S = 2.0
BROKER_TIMEOUT_S = 4.0
"""Seconds an answer of the broker is waited for: well below the 10 s in which a process must drain."""
DRAIN_NOTICES_S = 2.0
RELEASE_S = 1.0
"""Seconds Postgres may take to write down that a stream is given away; else its next owner ends our session."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class _UnderWay:
    """A batch in the writing thread's hands."""

    outcome: Future[list[Written]]
    moves: dict[TopicPlace, Advance]
    intakes: dict[TopicPlace, StreamBatch]
    started: float
    """time.perf_counter() at the hand-over."""


class ConsumerSession:
    """One stay in the consumer group."""

    def __init__(
        self,
        *,
        url: str,
        kafka_config: KafkaConfig,
        settings: IngestSettings,
        totals: IngestTotals,
        stop: Stop,
        slot: int = 0,
    ) -> None:
        """
        :param slot: the one that this process held in its last stay.
        """
        self._config = kafka_config
        self._settings = settings
        self._totals = totals
        self._stop = stop
        self._admin = kafka.admin(kafka_config)
        self._described = self._describe()
        self._topics = TopicWatch(kafka_config, self._admin)
        self._claims: dict[TopicPlace, Claim] = {}
        """By (physical topic, partition): what the group assigns to us and Postgres agrees to; `next_offset` is
        the next to hand over for writing."""
        self._writer: BatchWriter | None = None
        """Made with the claims, dropped with them."""
        self._under_way: _UnderWay | None = None
        self._failed: list[Claim] = []
        """Claims of the batch whose commit failed."""
        self._failure: BaseException | None = None
        """What went wrong inside a group callback; raised outside it."""
        self._ends: dict[TopicPlace, int] = {}
        with ExitStack() as opened:
            same = SameServer()
            engine = open_engine(
                url, application_name="driftline-ingest", transaction_timeout_s=TRANSACTION_TIMEOUT_S, same=same
            )
            self._connection = engine.connect()
            opened.callback(self._drop_connection)
            self._slot = self._take_slot(slot)
            self._side_engine = open_engine(
                url, application_name="driftline-ingest-side", pooled=True, answer_s=SIDE_ANSWER_S, same=same
            )
            opened.callback(self._side_engine.dispose)
            self._vocabulary = Dictionary(self._side_engine)
            self._notices = Notices(kafka_config, self._side_engine)
            self._pen = ThreadPoolExecutor(1, thread_name_prefix="writer")
            opened.callback(self._pen.shutdown)  # waits: a thread must not outlive its connection
            self._consumer = self._join()
            self._collector = Collector(self._consumer, kafka_config, settings, stop)
            self._opened = opened.pop_all()

    @property
    def slot(self) -> int:
        """The slot this process holds in its group; see `storage.log.group_slots`."""
        return self._slot.number if self._slot else 0

    def _take_slot(self, wanted: int) -> Slot | None:
        """None on Tansu, where a member with an instance id waits 6 s for each join."""
        if not all(topic.full_kafka for topic in self._described.values()):
            return None
        with mapped_errors(), self._connection.begin():
            return group_slots.take(self._connection, self._settings.group, prefer=wanted)

    def _join(self) -> Consumer:
        return kafka.consumer(
            self._config,
            group=self._settings.group,
            topics=list(topics.INPUTS),
            on_assign=self._assigned,
            on_revoke=self._revoked,
            on_lost=self._lost,
            session_timeout_s=self._settings.session_timeout_s,
            instance_id=self._slot.instance_id((each.topic_id, each.partitions) for each in self._described.values())
            if self._slot
            else None,
        )

    # -- the loop --

    def work(self, *, once: bool, ready: Callable[[str], None]) -> None:
        """Collects and commits batches until stopped (or, with `once`, until the ends).

        :raises Rejoin, Unavailable, Fenced, Refused: see `Ingest`.
        """
        ready("waiting for the group to assign partitions")
        checked_at = quiet_since = time.monotonic()
        while not self._stop.is_set():
            collected = self._collector.collect(self._claims, self._raise_failure)
            self._totals.first_at = self._totals.first_at or self._collector.first_at
            if self._claims:
                ready(self._topics.why_unsafe(self._claims, self._described))
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
        self._release()
        self._claims.clear()
        self._collector.hand_over()
        try:
            self._consumer.close()
        except (KafkaException, RuntimeError) as error:
            _log.warning("ingest.close", error=error)
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
        self._collector.hand_over()
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
            raise OperatorActionRequired(
                f"another process outside consumer group {self._settings.group!r} owns this stream now",
                where=str(taken[0].stream),
                hint="let all ingest processes of one database use one consumer group; then start this one again",
            ) from error

    def _tell_if_fenced(self, error: Exception) -> None:
        """Says whether the failed batch was another owner's doing: the proof that fencing bites."""
        try:
            with mapped_errors(), self._side_engine.connect() as connection:
                taken = offsets.outdated(connection, self._failed)
        except Unavailable:
            return
        if taken:
            _log.warning("ingest.fenced", streams=len(taken), error=error)

    # -- the group's callbacks: nothing may escape them --

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._let_go()
        try:
            if self._connection.invalidated:  # it would be replaced silently, and our slot is gone with it
                raise Unavailable("the session of Postgres broke")
            wanted = [(self._config.logical(p.topic), p.partition) for p in partitions]
            described = self._describe()
            with mapped_errors(), self._connection.begin():
                claims = start_positions.claim(self._connection, wanted, described, self._range, ended=_tell_ended)
            self._writer = BatchWriter(
                self._connection,
                self._vocabulary,
                duplicate_window=self._settings.duplicate_window,
                look=partial(newest_records, self._config, group=self._settings.group),
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
        self._settle_for_good()
        self._release()
        self._let_go()

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # Their next owner may be at work already. It ends this session if it finds us in its way.
        self._let_go()

    def _settle_for_good(self) -> None:
        try:
            self._settle()
        except BaseException as error:  # nothing may escape a callback
            self._failure = self._failure or error

    def _release(self) -> None:
        """Writes down that the claimed streams have no owner; without Postgres their next one ends this session."""
        if not self._claims or self._connection.invalidated:
            return
        try:
            with mapped_errors(), self._connection.begin():
                offsets.release(self._connection, self._claims.values(), within_s=RELEASE_S)
        except Exception as error:  # nothing may escape a callback
            _log.warning("ingest.not_released", streams=len(self._claims), error=str(error))

    def _let_go(self) -> None:
        # Eager protocol: everything goes. What was collected is read again by the next owner.
        self._settle_for_good()
        for claim in self._claims.values():
            metrics.ingest_lag.set(0, claim.stream.topic, str(claim.stream.partition))
        if self._collector.hand_over():
            metrics.batches.inc(1, "rolled_back")
        self._claims.clear()
        self._writer = None

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _range(self, topic: str, partition: int) -> tuple[int, int]:
        physical = self._config.physical(topic)
        return kafka.low_high(self._consumer, physical, partition, timeout_s=BROKER_TIMEOUT_S)

    def _describe(self) -> dict[str, TopicDescription]:
        names = list(topics.INPUTS)
        return kafka.describe(self._config, names, client=self._admin, timeout_s=BROKER_TIMEOUT_S)

    def _stream_ids(self) -> list[int]:
        return [claim.stream_id for claim in self._claims.values()]

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
                start_positions.check_identity(current, description)

    # -- committing --

    def _hand_over(self) -> None:
        """Gives the batch to the writing thread, once that has committed the one before.

        :raises Fenced, Unavailable: of the batch before: nothing of it counts, or the outcome is unknown.
        """
        moves = self._moves()
        if not moves or self._writer is None:
            return
        self._settle()
        parts = [Part(move=move, intake=self._collector.intake(place, move.claim)) for place, move in moves.items()]
        intakes = self._collector.hand_over()
        self._under_way = _UnderWay(
            outcome=self._pen.submit(self._write, self._writer, parts),
            moves=moves,
            intakes=intakes,
            started=time.perf_counter(),
        )
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
        count_written(written, batch.intakes, self._totals)
        self._notices.due = self._notices.due or any(part.counts.dead for part in written)
        self._show_positions(batch)
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

    def _moves(self) -> dict[TopicPlace, Advance]:
        if not self._claims:
            return {}
        at = self._consumer.position([TopicPartition(*place) for place in self._claims])
        moves = {}
        for partition in at:
            place = (partition.topic, partition.partition)
            claim = self._claims[place]
            # position() is negative until something was polled; then the stored offset stands.
            next_offset = max(partition.offset, claim.next_offset)
            if (intake := self._collector.intakes.get(place)) is not None and intake.next > next_offset:
                raise Disorder(f"{claim.stream}: offset {intake.next - 1} was taken, but the position is {next_offset}")
            if next_offset > claim.next_offset:
                moves[place] = Advance(claim=claim, first=claim.next_offset, next=next_offset)
        return moves

    def _show_positions(self, batch: _UnderWay) -> None:
        for place, move in batch.moves.items():
            intake = batch.intakes.get(place)
            newest_ms = intake.newest_ms if intake else None
            newest_us = (
                self._writer.newest_us(move.claim, newest_ms) if self._writer and newest_ms is not None else None
            )
            high = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)[1]
            show_position(
                move.claim,
                lag=high - move.next,
                newest_us=newest_us,
                filter_entries=self._writer.filter_entries(move.claim) if self._writer else 0,
            )


def _tell_ended(sessions: int) -> None:
    metrics.sessions_ended.inc(sessions)
    _log.warning("ingest.sessions_ended", sessions=sessions)
