"""`driftline ingest`: topics -> event log and per-user sequences, each accepted record exactly once.

The way of a record: `collect` takes it from Kafka, `accept` reads and judges it, `columns` makes it an Arrow
row, `commit` writes it with everything else of its batch and the next offsets in one transaction.
Everything in memory (positions, duplicate filters, vocabulary) belongs to one `membership`: one stay in the
consumer group over one Postgres connection. After any error it is dropped whole and built anew from
Postgres, so there is no state to repair. See `protocol.md` of the design, rules 1 to 10.
"""

from __future__ import annotations

import gc
import sys
from typing import Literal

import structlog
from confluent_kafka import KafkaException

from runtime import metrics
from runtime.admin_app import Health
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Stop, Transient, attempts
from runtime.redaction import said
from runtime.settings import IngestSettings
from storage.engine import Unavailable, mapped_errors
from storage.log.offsets import Fenced
from streams.ingest.collector import Rejoin
from streams.ingest.consumer_session import ConsumerSession
from streams.ingest.counters import IngestTotals
from streams.ingest.validation import Disorder

PAUSE_S = 0.2
"""Seconds before joining again after a trouble that followed committed batches."""

_log = structlog.get_logger(__name__)


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
        self._slot = 0
        """The slot of the last stay: the group may still know this process there."""
        self.totals = IngestTotals()

    def run(self, *, once: bool = False) -> IngestTotals:
        """
        :param once: read up to the ends the topics had at the start, then stop.
        :raises Refused: a person must decide; exit code 3.
        """
        # Records are many small objects without cycles: the default thresholds would walk them for nothing.
        gc.set_threshold(200_000, 20, 50)
        # The writing thread often comes back from Arrow or Postgres for an instant: it must not wait 5 ms each time.
        sys.setswitchinterval(0.0001)
        while not self._stop.is_set():
            batches_before = self.totals.batches
            for attempt in attempts(self._stop):
                try:
                    self._stay(once=once)
                    return self.totals
                except (Unavailable, Transient) as error:
                    self._health.set_ready("ingest", False, f"waiting to try again (attempt {attempt}): {said(error)}")
                    metrics.rejoins.inc(1, _reason(error))
                    _log.warning("ingest.rejoin", attempt=attempt, error=error)
                if self.totals.batches > batches_before:
                    break  # it worked between two troubles: the pauses grow from the shortest again
            self._stop.wait(PAUSE_S)
        return self.totals

    def _stay(self, *, once: bool) -> None:
        with mapped_errors():
            member = ConsumerSession(
                url=self._url,
                kafka_config=self._kafka,
                settings=self._settings,
                totals=self.totals,
                stop=self._stop,
                slot=self._slot,
            )
        self._slot = member.slot
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


def _reason(error: Exception) -> Literal["commit_error", "database_away", "kafka_error"]:
    cause = error if isinstance(error, Unavailable) else error.__cause__
    if isinstance(cause, Unavailable):
        return "database_away"
    return "commit_error" if isinstance(cause, Fenced) else "kafka_error"
