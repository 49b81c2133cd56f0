"""`driftline drift`: progress, labels and answers -> alarms. It observes, and steers nothing.

A Faust app, the only one: few records, state by key, alarms. The state of each subject (`subject_state.py`) stands in
a Faust table, as does the position in each partition, which is written last. Tables are kept in memory, since the
state is bounded (some 20 KB a learner), and restored from their changelog topics, so nothing on a disk must fit them.

Kafka's committed offsets are advisory, as for `ingest`: once the tables are restored the group is told where they
stand, and reads on from there. So a changelog that lost its end (Tansu reports ends that are too low) costs records
read again, and no step is left out. A repeated step changes nothing, and an alarm is acknowledged before the state
that follows from it is written: it is sent at least once, with the same id. A process that stood still for longer
than its session lasts may have a successor, and starts anew (`streams/drift/session_lease.py`).
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Final

import faust
import structlog
from confluent_kafka.admin import AdminClient
from faust.exceptions import FaustError

from contracts import topics
from runtime import kafka
from runtime.admin_app import Health
from runtime.kafka import BrokerAway, KafkaConfig, TopicDescription, TopicMissing
from runtime.kafka_options import addresses
from runtime.kafka_security import Security, ignored, security
from runtime.lifecycle import Stop, Transient, attempts
from runtime.redaction import said
from runtime.settings import DriftSettings
from streams.drift import changelogs, header_names
from streams.drift.session_lease import AppEnded, Lease
from streams.drift.topic_agent import Agent, DriftTotals

SOURCES: Final = (topics.PROGRESS, topics.LABELS, topics.RESULTS)
LOOK_S: Final = 0.1
PROBE_S: Final = 5.0
"""Seconds between two looks whether Kafka answers."""
RESTORE_S: Final = 120.0
"""Seconds until the app must have its partitions and its tables."""

_LOUD: Final = {
    "faust": logging.WARNING,  # tells of each rebalance in tables
    "mode": logging.WARNING,
    "mode.timers": logging.ERROR,  # warns of each commit, advisory here, that waits its turn
    "faust.transport.producer": logging.ERROR,  # warns of each full buffer
    "aiokafka": logging.CRITICAL,  # tells of a broker that is away twenty times a second; `_away` does it once
}

_log = structlog.get_logger(__name__)


def application(config: KafkaConfig, settings: DriftSettings, folder: str) -> Any:
    """The app, which makes no topics and serves no pages."""
    proof = security(config.options, process="drift")
    header_names.tolerate()
    return faust.App(
        config.physical(settings.group),
        broker=[f"kafka://{address}" for address in addresses(config.bootstrap)],
        broker_client_id=proof.client_id,
        broker_credentials=credentials(proof),
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


def credentials(proof: Security) -> Any:
    """Faust's form of it; None = plain text, and nobody asks who we are."""
    if proof.mechanism is not None:
        return faust.SASLCredentials(
            username=proof.username, password=proof.password, ssl_context=proof.tls, mechanism=proof.mechanism
        )
    return None if proof.tls is None else faust.SSLCredentials(proof.tls)


class DriftProcess:
    """The process. `run` returns when stopped."""

    def __init__(self, *, kafka_config: KafkaConfig, settings: DriftSettings, health: Health, stop: Stop) -> None:
        self._kafka = kafka_config
        self._settings = settings
        self._health = health
        self._stop = stop
        self._gaps: set[tuple[int, int]] = set()
        """(partition, offset) of progress where nothing stands: believed once met again after a fresh start."""
        self.totals = DriftTotals()

    def run(self) -> DriftTotals:
        """:raises Refused: a person must decide; exit code 3. :raises Usage: an option that `drift` cannot honour."""
        for name, level in _LOUD.items():
            logging.getLogger(name).setLevel(level)
        security(self._kafka.options, process="drift")  # before anything else: it will not change by itself
        if unused := ignored(self._kafka.options):
            _log.info("drift.options_ignored", options=unused, reason="they tune librdkafka; drift uses aiokafka")
        for attempt in attempts(self._stop):
            try:
                with tempfile.TemporaryDirectory(prefix="driftline-drift-") as folder:
                    asyncio.run(self._stay(folder))
                break
            except Transient as error:
                self._health.set_ready("drift", False, f"waiting to try again (attempt {attempt}): {said(error)}")
                _log.warning("drift.again", attempt=attempt, error=error)
        return self.totals

    async def _stay(self, folder: str) -> None:
        """One stay in the group, until stopped.

        :raises Transient, Refused: see `run`.
        """
        sources = changelogs.prepared(self._kafka, self._settings.group, SOURCES)
        app = application(self._kafka, self._settings, folder)
        lease = Lease(self._settings.session_timeout_s)
        agents = [Agent(app, source, self._kafka, lease, self._gaps, self.totals) for source in sources.values()]

        async def go_on_from_the_tables(*_: Any, **__: Any) -> None:
            for agent in agents:
                await agent.go_to_positions()

        app.on_rebalance_complete.connect(go_on_from_the_tables)
        keeping = asyncio.create_task(lease.keep())
        try:
            await app.start()
            await self._watch_over(app, agents, lease, sources)
        except (OSError, RuntimeError, TimeoutError, FaustError) as error:
            raise AppEnded(said(error), where="Kafka") from error
        finally:
            keeping.cancel()
            await app.stop()

    async def _watch_over(
        self, app: Any, agents: Sequence[Agent], lease: Lease, sources: Mapping[str, TopicDescription]
    ) -> None:
        """Tells how it stands, until stopped.

        :raises AppEnded, Refused: what ended the stay.
        """
        now = asyncio.get_running_loop().time
        restored_at = looked_at = now()
        away = ""
        client = kafka.admin(self._kafka)
        while not self._stop.is_set():
            lease.renew()
            if trouble := next((agent.trouble for agent in agents if agent.trouble), None):
                raise trouble
            if app.should_stop:
                raise AppEnded(said(app.crash_reason) if app.crash_reason else "stopped", where="Kafka")
            if now() - looked_at > PROBE_S:
                away, looked_at = await asyncio.to_thread(self._away, client, sources), now()
            if self._tell_readiness(app, away) or away:
                restored_at = now()
            elif now() - restored_at > RESTORE_S:
                raise AppEnded(f"no partitions and tables within {RESTORE_S:.0f} s", where="Kafka")
            await asyncio.sleep(LOOK_S)

    def _away(self, client: AdminClient, sources: Mapping[str, TopicDescription]) -> str:
        """Why Kafka cannot be reached; "" = it can. Faust itself waits in silence, and goes on by itself.

        :raises AppEnded: a topic is not the one that is read: Faust would not notice.
        """
        try:
            ids = kafka.topic_ids(self._kafka, list(sources), client=client, timeout_s=PROBE_S / 2)
        except (BrokerAway, TopicMissing) as error:
            return str(error)
        if recreated := [name for name, source in sources.items() if ids[name] != source.topic_id]:
            raise AppEnded(f"{', '.join(recreated)} was deleted and created again", where="Kafka")
        return ""

    def _tell_readiness(self, app: Any, away: str) -> bool:
        restored = bool(app.tables.recovery.completed.is_set() and not app.rebalancing)
        why = away or ("" if restored else "joining its group and restoring its tables")
        self._health.set_ready("drift", not why, why)
        return not why
