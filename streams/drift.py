"""`driftline drift`: progress, labels and answers -> alarms. It observes, and steers nothing.

A Faust app, the only one: few records, state by key, alarms. The state of each subject (`streams/watch.py`) stands in
a Faust table, as does the position in each partition, which is written last. Tables are kept in memory, since the
state is bounded (some 20 KB a learner), and restored from their changelog topics, so nothing on a disk must fit them.

Kafka's committed offsets are advisory, as for `ingest`: once the tables are restored the group is told where they
stand, and reads on from there. So a changelog that lost its end (Tansu reports ends that are too low) costs records
read again, and no step is left out. A repeated step changes nothing, and an alarm is acknowledged before the state
that follows from it is written: it is sent at least once, with the same id.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import faust
import msgspec
import structlog
from confluent_kafka.admin import AdminClient
from faust.exceptions import FaustError

from contracts import topics
from contracts.codec import encode
from contracts.records import DriftAlarm, Label, Progress
from contracts.scoring import ScoreFailure, ScoreResult
from runtime import kafka, metrics
from runtime.kafka import BrokerAway, KafkaConfig, TopicDescription
from runtime.lifecycle import Stop, Transient, Usage, attempts
from runtime.settings import DriftSettings
from runtime.telemetry import Health
from streams import changelogs, signals
from streams.signals import Signals, Subject
from streams.watch import OpenBlock, Watch, added, closed, emptied

SOURCES: Final = (topics.PROGRESS, topics.LABELS, topics.RESULTS)
LOOK_S: Final = 0.1
PROBE_S: Final = 5.0
"""Seconds between two looks whether Kafka answers."""
RESTORE_S: Final = 120.0
"""Seconds until the app must have its partitions and its tables."""
Value = TypeVar("Value")

_LOUD: Final = {
    "faust": logging.WARNING,  # tells of each rebalance in tables
    "mode": logging.WARNING,
    "mode.timers": logging.ERROR,  # warns of each commit, advisory here, that waits its turn
    "faust.transport.producer": logging.ERROR,  # warns of each full buffer
    "aiokafka": logging.CRITICAL,  # tells of a broker that is away twenty times a second; `_away` does it once
}

_log = structlog.get_logger(__name__)


class AppEnded(Transient):
    """Faust gave up, for the reason named: the state is in Kafka, so it is built anew."""


@dataclass
class Totals:
    """What a run did."""

    records: int = 0
    repeated: int = 0
    unreadable: int = 0
    blocks: int = 0
    alarms: int = 0


def read(topic: str, value: bytes, partition: int, offset: int) -> Signals | None:
    """What a record says; None = nothing, as a refusal of `score` does.

    :raises msgspec.MsgspecError: it is not of the topic's schema.
    """
    if topic == topics.PROGRESS:
        return signals.of_progress(msgspec.json.decode(value, type=Progress))
    if topic == topics.LABELS:
        return signals.of_label(msgspec.json.decode(value, type=Label), partition=partition, offset=offset)
    found = msgspec.json.decode(value, type=ScoreResult | ScoreFailure)
    return signals.of_result(found, partition=partition, offset=offset) if isinstance(found, ScoreResult) else None


def application(config: KafkaConfig, settings: DriftSettings, folder: str) -> Any:
    """The app, which makes no topics and serves no pages."""
    return faust.App(
        config.physical(settings.group),
        broker=[f"kafka://{address}" for address in config.bootstrap.split(",")],
        broker_credentials=credentials(config.options),
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=settings.session_timeout_s / 4,
        consumer_auto_offset_reset="earliest",
        producer_acks=-1,
        producer_compression_type="lz4",
        stream_recovery_delay=0.0,
        store="memory://",
        datadir=folder,
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
    )


def credentials(options: Mapping[str, str]) -> Any:
    """librdkafka's names for Faust; None = plain text.

    :raises Usage: a way to prove who we are that this process does not know.
    """
    protocol = options.get("security.protocol", "plaintext").upper()
    mechanism = options.get("sasl.mechanism", options.get("sasl.mechanisms", "PLAIN")).upper()
    if protocol == "PLAINTEXT":
        return None
    unknown = {name for name in options if name.startswith(("ssl.", "sasl."))} - _KNOWN_OPTIONS
    if unknown or mechanism not in _MECHANISMS:
        raise Usage(
            f"`drift` does not know {', '.join(sorted(unknown)) or f'sasl.mechanism={mechanism}'}",
            where="setting DRIFTLINE_KAFKA_OPTIONS",
            todo=f"use {', '.join(sorted(_KNOWN_OPTIONS))} with {', '.join(_MECHANISMS)}",
        )
    context = None
    if protocol in ("SSL", "SASL_SSL"):
        context = ssl.create_default_context(cafile=options.get("ssl.ca.location"))
        if certificate := options.get("ssl.certificate.location"):
            context.load_cert_chain(certificate, options.get("ssl.key.location"), options.get("ssl.key.password"))
    if protocol == "SSL":
        return faust.SSLCredentials(context)
    name, password = options.get("sasl.username"), options.get("sasl.password")
    return faust.SASLCredentials(username=name, password=password, ssl_context=context, mechanism=mechanism)


_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_KNOWN_OPTIONS = frozenset(
    {
        "ssl.ca.location", "ssl.certificate.location", "ssl.key.location", "ssl.key.password",
        "sasl.mechanism", "sasl.mechanisms", "sasl.username", "sasl.password",
    }
)  # fmt: skip


class Drift:
    """The process. `run` returns when stopped."""

    def __init__(self, *, kafka_config: KafkaConfig, settings: DriftSettings, health: Health, stop: Stop) -> None:
        self._kafka = kafka_config
        self._settings = settings
        self._health = health
        self._stop = stop
        self._gaps: set[tuple[int, int]] = set()
        """(partition, offset) of progress where nothing stands: believed once met again after a fresh start."""
        self.totals = Totals()

    def run(self) -> Totals:
        """:raises Refused: a person must decide; exit code 3."""
        for name, level in _LOUD.items():
            logging.getLogger(name).setLevel(level)
        for attempt in attempts(self._stop):
            try:
                with tempfile.TemporaryDirectory(prefix="driftline-drift-") as folder:
                    asyncio.run(self._stay(folder))
                break
            except Transient as error:
                self._health.set_ready("drift", False, f"waiting to try again (attempt {attempt}): {error}")
                _log.warning("drift.again", attempt=attempt, error=str(error))
        return self.totals

    async def _stay(self, folder: str) -> None:
        """One stay in the group, until stopped.

        :raises Transient, Refused: see `run`.
        """
        sources = changelogs.prepared(self._kafka, self._settings.group, SOURCES)
        app = application(self._kafka, self._settings, folder)
        readers = [Reader(app, source, self._kafka, self._gaps, self.totals) for source in sources.values()]

        async def go_on_from_the_tables(*_: Any, **__: Any) -> None:
            for reader in readers:
                await reader.go_to_positions()

        app.on_rebalance_complete.connect(go_on_from_the_tables)
        now = asyncio.get_running_loop().time
        restored_at = looked_at = now()
        away = ""
        client = kafka.admin(self._kafka)
        try:
            await app.start()
            while not self._stop.is_set():
                if trouble := next((reader.trouble for reader in readers if reader.trouble), None):
                    raise trouble
                if app.should_stop:
                    raise AppEnded(str(app.crash_reason or "stopped"), where="Kafka")
                if now() - looked_at > PROBE_S:
                    away, looked_at = await asyncio.to_thread(self._away, client), now()
                if self._tell_readiness(app, away) or away:
                    restored_at = now()
                elif now() - restored_at > RESTORE_S:
                    raise AppEnded(f"no partitions and tables within {RESTORE_S:.0f} s", where="Kafka")
                await asyncio.sleep(LOOK_S)
        except (OSError, RuntimeError, TimeoutError, FaustError) as error:
            raise AppEnded(f"{type(error).__name__}: {error}", where="Kafka") from error
        finally:
            await app.stop()

    def _away(self, client: AdminClient) -> str:
        """Why Kafka cannot be reached; "" = it can. Faust itself waits in silence, and goes on by itself."""
        try:
            kafka.cluster_id(self._kafka, client=client, timeout_s=PROBE_S / 2)
        except BrokerAway as error:
            return str(error)
        return ""

    def _tell_readiness(self, app: Any, away: str) -> bool:
        restored = bool(app.tables.recovery.completed.is_set() and not app.rebalancing)
        why = away or ("" if restored else "joining its group and restoring its tables")
        self._health.set_ready("drift", not why, why)
        return not why


class Reader:
    """Reads one topic into its table."""

    def __init__(
        self,
        app: Any,
        source: TopicDescription,
        config: KafkaConfig,
        gaps: set[tuple[int, int]],
        totals: Totals,
    ) -> None:
        raw = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
        self.trouble: Exception | None = None
        """What stopped it; Faust alone would pass the record over."""
        self._app = app
        self._source = source
        self._topic = source.topic
        self._physical = config.physical(source.topic)
        self._gaps = gaps
        self._totals = totals
        self._table = app.Table(source.topic, partitions=source.partitions, key_type=bytes, value_type=bytes)
        self._alarms = app.topic(config.physical(topics.ALARMS), **raw)
        app.agent(app.topic(self._physical, **raw), name=f"drift-{source.topic}")(self.take_all)

    async def go_to_positions(self) -> None:
        """Reads on from where the table stands.

        Called while the partitions are paused. Faust lets them go before it seeks to the group's offsets, and until
        then would read from wherever those were: so the consumer is moved here, and the group's offsets too.
        """
        consumer = self._app.consumer
        places = {tp: self._position(tp.partition) for tp in consumer.assignment() if tp.topic == self._physical}
        if places:
            await consumer.seek_wait(places)
            # The public one commits what this process acknowledged: nothing yet.
            if not await consumer._commit(places):
                self.trouble = AppEnded("the group's offsets could not be set", where=self._topic)

    async def take_all(self, stream: Any) -> None:
        """The agent."""
        async for event in stream.events():
            if self.trouble is not None:
                continue
            try:
                await self._take(event.message)
            except Exception as error:
                self.trouble = error

    async def _take(self, message: Any) -> None:
        offset, partition = message.offset, message.partition
        due = self._position(partition)
        if offset < due:
            return
        if offset > due and self._topic == topics.PROGRESS and (gap := (partition, due)) not in self._gaps:
            # `train` leaves none; in the others every transaction does, and a record more or less is no matter.
            self._gaps.add(gap)
            raise AppEnded(f"offset {offset} came where {due} was due", where=f"{self._topic}/{partition}")
        metrics.drift_records.inc(1, self._topic)
        self._totals.records += 1
        try:
            seen = read(self._topic, message.value or b"", partition, offset)
        except msgspec.MsgspecError as error:
            metrics.drift_unreadable.inc(1, self._topic)
            self._totals.unreadable += 1
            _log.warning("drift.unreadable", topic=self._topic, partition=partition, offset=offset, error=str(error))
        else:
            if seen is not None:
                await self._look(seen, partition, offset)
        self._set(self._place(partition), offset + 1)

    async def _look(self, seen: Signals, partition: int, offset: int) -> None:
        before = self._get(f"open/{seen.subject}", OpenBlock)
        after = added(before, seen, offset)
        if after is before:
            metrics.drift_repeated.inc(1, self._topic)
            self._totals.repeated += 1
            return
        if after.full:
            await self._close(seen.subject, partition, after)
            after = emptied(after)
        metrics.drift_step.set(seen.step, seen.subject.name, str(seen.subject.branch))
        self._set(f"open/{seen.subject}", after)

    async def _close(self, subject: Subject, partition: int, block: OpenBlock) -> None:
        """Judges a full block; the state is written once the brokers have its alarms."""
        key = f"watch/{subject}"
        with metrics.drift_block_seconds.time():
            watch, alarms = closed(self._get(key, Watch), block, subject, partition=partition)
        self._totals.blocks += 1
        for alarm in alarms:
            await self._send(alarm)
        for name, series in watch.series.items():
            if series.inputs and (newest := series.inputs[-1]) is not None:
                metrics.drift_input.set(newest, subject.name, name)
        self._set(key, watch)

    async def _send(self, alarm: DriftAlarm) -> None:
        await (await self._alarms.send(key=alarm.id.encode(), value=encode(alarm)))
        metrics.drift_alarms.inc(1, alarm.subject, alarm.series, alarm.detector)
        self._totals.alarms += 1
        _log.warning("drift.alarm", alarm=alarm.id, z=alarm.z, since_step=alarm.after.first_step)

    # The table: one partition holds what came of one partition of the topic, in the order written.

    def _place(self, partition: int) -> str:
        return f"position/{self._source.topic_id}/{partition}"  # a recreated topic is read from its start

    def _position(self, partition: int) -> int:
        return self._get(self._place(partition), int)

    def _get(self, key: str, kind: type[Value]) -> Value:
        found = self._table.get(key.encode())
        return kind() if found is None else msgspec.json.decode(found, type=kind)

    def _set(self, key: str, value: object) -> None:
        self._table[key.encode()] = msgspec.json.encode(value)
