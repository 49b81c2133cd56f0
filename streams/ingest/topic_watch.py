"""Whether the settings of the claimed topics let `ingest` keep its promise: asked at each claim, and now and then.

A topic that removes records before they are read breaks it without a trace: retention by age or size, compaction.
`ingest` reads on all the same, since each record it takes is one fewer that can be lost, and is not ready.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

import structlog
from confluent_kafka.admin import AdminClient

from contracts import topics
from runtime import kafka, metrics
from runtime.kafka import BrokerAway, BrokerRefused, KafkaConfig, TopicDescription, TopicMissing
from runtime.topic_settings import TopicSettings, span
from storage.log.offsets import Claim
from streams.ingest.collector import TopicPlace

LOOK_EVERY_S: Final = 30.0
"""Seconds between two looks during a claim: settings are mended, and a lag grows, while a process runs."""
TIMEOUT_S: Final = 2.0

_log = structlog.get_logger(__name__)


class TopicWatch:
    """Of one stay in the group."""

    def __init__(
        self, config: KafkaConfig, client: AdminClient, *, now_ms: Callable[[], float] = lambda: time.time() * 1000
    ) -> None:
        """:param now_ms: milliseconds since 1970; by this clock, or one like it, the brokers delete."""
        self._config, self._client, self._now_ms = config, client, now_ms
        self._epochs: dict[int, int] = {}
        self._look_at = 0.0
        self._reasons: list[str] = []
        self._said: set[str] = set()
        self._danger: dict[str, int] = {}
        """Topic -> 1 or 2, as the metric says it."""

    def why_unsafe(self, claims: Mapping[TopicPlace, Claim], described: Mapping[str, TopicDescription]) -> str:
        """Why the topics may lose what is not read yet; "" = they do not, or nobody can tell."""
        epochs = {claim.stream_id: claim.epoch for claim in claims.values()}
        if epochs != self._epochs:
            self._tell_beginnings([claim for claim in claims.values() if claim.stream_id not in self._epochs])
            self._epochs, self._look_at = epochs, 0.0
        if time.monotonic() >= self._look_at:
            self._look(list(claims.values()), described)
            self._look_at = time.monotonic() + LOOK_EVERY_S
        return "; ".join(self._reasons)

    def _tell_beginnings(self, claims: list[Claim]) -> None:
        """Of streams that nobody claimed before: what their topic had deleted by then is in no count of ours."""
        for claim in claims:
            if claim.epoch == 1 and claim.next_offset > 0:
                _log.warning(
                    "ingest.begins_above_0",
                    topic=claim.stream.topic,
                    partition=claim.stream.partition,
                    offset=claim.next_offset,
                    reason="the topic had deleted all before it when Driftline first read it",
                )

    def _look(self, claims: list[Claim], described: Mapping[str, TopicDescription]) -> None:
        # Tansu keeps no settings: nothing is deleted or compacted there.
        self._danger = {}
        names = sorted({claim.stream.topic for claim in claims if described[claim.stream.topic].full_kafka})
        try:
            found = kafka.topic_configs(self._config, names, client=self._client, timeout_s=TIMEOUT_S)
            settings = {topic: TopicSettings.of(values) for topic, values in found.items()}
            reasons = [
                *(self._of_settings(topic, settings[topic]) for topic in names),
                *self._of_lag([claim for claim in claims if claim.stream.topic in settings], settings),
            ]
        except (BrokerAway, TopicMissing) as error:  # the process notices by itself
            _log.info("ingest.topic_settings_not_read", reason=str(error))
            return
        except BrokerRefused as error:
            self._say_once("ingest.topic_settings_unknown", reason=str(error))
            return
        self._reasons = [reason for reason in reasons if reason]
        for topic in topics.INPUTS:
            metrics.topic_danger.set(self._danger.get(topic, 0), topic)

    def _of_settings(self, topic: str, settings: TopicSettings) -> str:
        self._say_once(
            "ingest.topic_settings",
            topic=topic,
            loud=False,
            compacts=settings.compacts,
            keeps_ms=settings.keeps_ms,
            record_time="arrival" if settings.by_arrival else "producer",
            ahead_ms=settings.ahead_ms,
            behind_ms=settings.behind_ms,
        )
        if settings.deletes and settings.retention_bytes >= 0:
            self._danger[topic] = 1
            self._say_once(
                "ingest.topic_deletes_by_size",
                topic=topic,
                retention_bytes=settings.retention_bytes,
                reason="records beyond it go, read or not; set retention.bytes=-1",
            )
        if not settings.compacts or topic == topics.ITEMS:
            return ""
        reason = (
            f"{self._config.physical(topic)} is compacted: of one key's events all but the newest may go, read or not; "
            "set its cleanup.policy to delete"
        )
        self._danger[topic] = 2
        self._say_once("ingest.topic_compacts_events", topic=topic, reason=reason)
        return reason

    def _of_lag(self, claims: list[Claim], settings: Mapping[str, TopicSettings]) -> list[str]:
        """Unread records older than what their topic keeps (not ready), or than half of it (said)."""
        kept = {_place(claim): claim for claim in claims if settings[claim.stream.topic].keeps_ms is not None}
        if not kept:
            return []
        now_ms = self._now_ms()
        ends = self._offsets(dict.fromkeys(kept))
        over, half = (
            self._offsets(
                {place: round(now_ms - share * (settings[place[0]].keeps_ms or 0)) for place in kept}, instead=ends
            )
            for share in (1.0, 0.5)
        )
        reasons = []
        for place, claim in kept.items():
            where = f"{self._config.physical(place[0])}[{place[1]}]"
            keeps_ms = settings[place[0]].keeps_ms or 0
            if claim.next_offset < over[place]:
                reason = (
                    f"{where}: unread offsets {claim.next_offset} to {over[place]} are older than the {span(keeps_ms)} "
                    f"that the topic keeps (retention.ms={keeps_ms}) and may go any moment; set retention.ms=-1"
                )
                self._say_once("ingest.lag_beyond_retention", place=where, reason=reason)
                self._danger[place[0]] = 2
                reasons.append(reason)
            elif claim.next_offset < half[place]:
                self._danger[place[0]] = max(1, self._danger.get(place[0], 0))
                self._say_once(
                    "ingest.lag_near_retention",
                    place=where,
                    reason=f"unread records are older than half of the {span(keeps_ms)} that the topic keeps "
                    f"(retention.ms={keeps_ms})",
                )
            else:
                self._said -= {f"ingest.lag_beyond_retention {where}", f"ingest.lag_near_retention {where}"}
        return reasons

    def _offsets(
        self, moments: Mapping[tuple[str, int], int | None], *, instead: Mapping[tuple[str, int], int] | None = None
    ) -> dict[tuple[str, int], int]:
        found = kafka.offsets_at(self._config, moments, client=self._client, timeout_s=TIMEOUT_S)
        return {place: (instead or {}).get(place, 0) if at is None else at for place, at in found.items()}

    def _say_once(self, event: str, *, loud: bool = True, **told: object) -> None:
        """Until it is over."""
        key = f"{event} {told.get('place', told.get('topic', ''))}"
        if key not in self._said:
            self._said.add(key)
            (_log.warning if loud else _log.info)(event, **told)


def _place(claim: Claim) -> tuple[str, int]:
    return claim.stream.topic, claim.stream.partition
