"""Whether the topics would keep what is about to be sent: looked at before the first record goes.

Kafka deletes by record time. Events of years ago, sent to a topic with the usual seven days, are gone in seconds,
acknowledged and unread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Final

from contracts import topics
from contracts.codec import MAX_BEHIND
from runtime import kafka
from runtime.kafka import KafkaConfig
from runtime.kafka_errors import NoPermission
from runtime.lifecycle import ConfigurationError
from runtime.topic_settings import TopicSettings, span

_MS: Final = timedelta(milliseconds=1)


def check_topics(
    config: KafkaConfig,
    names: Collection[str],
    *,
    first_at: datetime,
    last_at: datetime,
    unless: str,
    tell: Callable[[str], None] = lambda text: None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """
    :param names: logical topics; :param first_at: record times lie between this :param last_at: and this.
    :param unless: what a person does who wants it all the same.
    :param tell: gets what is no reason to refuse.
    :raises Usage: a topic would delete or refuse such records: which, its setting, and what to do about it.
    :raises TopicMissing, BrokerAway, BrokerRefused: as `kafka.describe`.
    """
    client = kafka.admin(config)
    described = kafka.describe(config, sorted(names), client=client)
    try:
        found = kafka.topic_configs(
            config, [name for name, topic in described.items() if topic.full_kafka], client=client
        )
    except NoPermission as error:
        tell(f"the topics' retention could not be looked at: {error.what}")
        return
    for name, values in found.items():
        settings = TopicSettings.of(values)
        if (reason := _unfit(name, settings, first_at, last_at, now())) is not None:
            what, setting = reason
            physical = config.physical(name)
            raise ConfigurationError(
                f"{what}; nothing was sent",
                where=f"topic {physical}",
                hint=f"kafka-configs.sh --bootstrap-server {config.bootstrap} --alter --entity-type topics "
                f"--entity-name {physical} --add-config {setting}; or {unless}",
            )
        if settings.by_arrival:
            tell(f"{name} takes the time of arrival as record time: events are learnt in the order they arrive")


def _unfit(
    topic: str, settings: TopicSettings, first_at: datetime, last_at: datetime, now: datetime
) -> tuple[str, str] | None:
    """(what would happen, the setting that helps); None = it fits."""
    age_ms, ahead_ms = (now - first_at) / _MS, (last_at - now) / _MS
    if settings.compacts and topic != topics.ITEMS:
        return (
            "the topic is compacted: of each key's events all but the newest would go, read or not",
            "cleanup.policy=delete",
        )
    if settings.by_arrival:
        if now - first_at > MAX_BEHIND:
            return (
                f"the first event is {span(age_ms)} old, and the topic dates records with their arrival: events more "
                f"than {span(MAX_BEHIND / _MS)} before their record's time are refused",
                "message.timestamp.type=CreateTime",
            )
        return None
    if settings.keeps_ms is not None and age_ms > settings.keeps_ms:
        return (
            f"the first event is of {first_at:%Y-%m-%d}, {span(age_ms)} ago, and the topic keeps "
            f"{span(settings.keeps_ms)} (retention.ms={settings.keeps_ms}): Kafka would delete it, read or not",
            "retention.ms=-1",
        )
    if settings.behind_ms is not None and age_ms > settings.behind_ms:
        return (
            f"the first event is of {first_at:%Y-%m-%d}, {span(age_ms)} ago, and the topic takes none older than "
            f"{span(settings.behind_ms)} (message.timestamp.before.max.ms)",
            "message.timestamp.before.max.ms=9223372036854775807",
        )
    if settings.ahead_ms is not None and ahead_ms > settings.ahead_ms:
        return (
            f"the last event is of {last_at:%Y-%m-%d}, {span(ahead_ms)} from now (a slip?), and the topic takes none "
            f"further ahead than {span(settings.ahead_ms)} (message.timestamp.after.max.ms)",
            f"message.timestamp.after.max.ms={round(2 * ahead_ms)}",
        )
    return None
