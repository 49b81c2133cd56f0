"""Everything that makes Kafka clients. Synchronous `confluent_kafka`, tuned for batches.

*Logical* topic names are those of `contracts.topics`; *physical* ones carry the prefix and are what the
broker knows. Works with Apache Kafka >= 2.8 and with Tansu 0.6, the embedded broker. What the two do not
share, as seen:

- Tansu's latest offset may be too low (protocol, rule 3), it ignores `isolation.level` and echoes topic
  configs without acting on them. `TopicDescription.full_kafka` is False there.
- A topic's id: both give one, fresh for a recreated topic.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported, as its documentation says
    AdminClient,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from contracts.topics import Topic
from runtime import kafka_options, metrics
from runtime.kafka_errors import NOT_THERE_YET, UNKNOWN_TOPIC, Causes, ClientLog, NoPermission, trouble
from runtime.kafka_errors import BrokerAway as BrokerAway
from runtime.kafka_errors import BrokerRefused as BrokerRefused
from runtime.kafka_errors import NotLetIn as NotLetIn
from runtime.kafka_errors import TopicMissing as TopicMissing
from runtime.kafka_options import Kind
from runtime.lifecycle import ConfigurationError

Assigned = Callable[[Consumer, list[TopicPartition]], None]
NO_TOPIC_ID = "AAAAAAAAAAAAAAAAAAAAAA"  # 16 zero bytes: brokers before 2.8
TIMEOUT_S = 10.0
_ALWAYS_NAMED = "max.message.bytes"  # a topic config that a real Kafka names though we never set it
_MIB = 2**20
_FIRST_TRY_S = 1.5
_AGAIN = "call it again: what is there stays as it is"
_LATEST = OffsetSpec.latest()  # type: ignore[no-untyped-call]
_client_log = logging.getLogger("librdkafka")


@dataclass(frozen=True)
class KafkaConfig:
    """How to reach a cluster."""

    bootstrap: str
    """host:port[,host:port...]"""
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """More librdkafka options; they win over those of ours that no promise stands on. May hold secrets."""
    prefix: str = ""
    """Stands before each topic's name."""
    causes: Causes = field(default_factory=Causes, init=False, repr=False, compare=False)
    """What its clients were told of a Kafka that cannot be reached."""

    def physical(self, logical: str) -> str:
        """The name the broker knows."""
        return self.prefix + logical

    def logical(self, physical: str) -> str:
        """The name of `contracts.topics`."""
        return physical.removeprefix(self.prefix)


@dataclass(frozen=True, order=True)
class PartitionOfTopic:
    """A partition of one particular topic: a recreated topic is another stream."""

    cluster_id: str
    topic_id: str
    topic: str
    """Logical name."""
    partition: int


@dataclass(frozen=True, kw_only=True)
class TopicDescription:
    """What the broker says of a topic."""

    cluster_id: str
    topic_id: str
    """22 characters of base64; other for a topic that was deleted and created again."""
    topic: str
    """Logical name."""
    partitions: int
    full_kafka: bool
    """False on Tansu: the high watermark may be too low, topic configs have no effect."""

    @property
    def trusts_high_watermark(self) -> bool:
        """Whether an offset beyond the high watermark means lost records (protocol, rule 3)."""
        return self.full_kafka

    @property
    def streams(self) -> tuple[PartitionOfTopic, ...]:
        """All partitions, in order."""
        return tuple(PartitionOfTopic(self.cluster_id, self.topic_id, self.topic, n) for n in range(self.partitions))


@dataclass(frozen=True, kw_only=True)
class TopicsCreated:
    """What `create_topics` found and did, by logical name."""

    created: tuple[str, ...]
    existing: tuple[str, ...]
    different: Mapping[str, Mapping[str, tuple[str, str | None]]]
    """Existing topic -> setting ("partitions" too) -> (wanted, found). Nothing is changed."""
    configs_effective: bool
    """False on Tansu, which keeps no topic configs: retention and compaction do not happen there."""


def consumer(
    config: KafkaConfig,
    *,
    group: str,
    topics: Sequence[str] = (),
    on_assign: Assigned | None = None,
    on_revoke: Assigned | None = None,
    on_lost: Assigned | None = None,
    session_timeout_s: float = 6.0,
    instance_id: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Consumer:
    """A consumer that never commits or resets by itself: positions are the caller's business.

    Eager (range) assignment under the classic protocol. Without `topics` (logical names) nothing is
    subscribed. Callbacks run inside `consume`/`poll`/`close` and get physical names; nothing may escape them.
    A position outside the topic's range arrives as a message with the error `_AUTO_OFFSET_RESET`.

    :param extra: of the caller's own; the only ones that may change what the promise stands on.
    :raises Usage: the client does not take the options.
    :param instance_id: no two living members of a group may have the same. Who comes back under the id of one that
        died gets its partitions at once; who leaves keeps them until the session times out.
    """
    options: dict[str, Any] = {
        **_common(config, "consumer"),
        "heartbeat.interval.ms": int(min(session_timeout_s / 4, 2.0) * 1000),
        "max.poll.interval.ms": max(120_000, int(session_timeout_s * 1000)),
        "fetch.wait.max.ms": 100,
        "fetch.max.bytes": 8 * _MIB,
        "max.partition.fetch.bytes": 4 * _MIB,
        "queued.max.messages.kbytes": 16 * 1024,  # KiB: what one process may hold unread
        "fetch.queue.backoff.ms": 10,  # ms; the default, a second, starves a fast reader
        **kafka_options.for_client(config.options, "consumer"),
        # What follows carries the promise: no option wins over it, however it came here.
        "group.id": group,
        "group.protocol": "classic",
        "partition.assignment.strategy": "range",
        "session.timeout.ms": int(session_timeout_s * 1000),
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "check.crcs": True,
        "enable.partition.eof": False,
        "isolation.level": "read_committed",
        **(extra or {}),
    }
    if instance_id is not None:
        options["group.instance.id"] = instance_id
    made = _made(Consumer, options, config)
    if topics:
        callbacks = {"on_assign": on_assign, "on_revoke": on_revoke, "on_lost": on_lost}
        made.subscribe(
            [config.physical(topic) for topic in topics],
            **{name: callback for name, callback in callbacks.items() if callback is not None},
        )
    return made


def producer(config: KafkaConfig, *, extra: Mapping[str, Any] | None = None) -> Producer:
    """An idempotent producer: acknowledged by all replicas, in order, without repeats of its own making.

    :raises Usage: the client does not take the options.
    """
    options: dict[str, Any] = {
        **_common(config, "producer"),
        "compression.type": "lz4",
        "linger.ms": 10,
        "batch.size": _MIB,
        "queue.buffering.max.messages": 200_000,
        "queue.buffering.max.kbytes": 256 * 1024,  # KiB
        "message.timeout.ms": 120_000,
        **kafka_options.for_client(config.options, "producer"),
        "enable.idempotence": True,
        **(extra or {}),
    }
    return _made(Producer, options, config)


def admin(config: KafkaConfig) -> AdminClient:
    """A client for topics and cluster.

    :raises Usage: the client does not take the options.
    """
    options = {**_common(config, "admin"), **kafka_options.for_client(config.options, "admin")}
    return _made(AdminClient, options, config)


def check(config: KafkaConfig) -> KafkaConfig:
    """Looks at what a user set before anything runs; no broker is asked.

    :returns: the same, its addresses written out.
    :raises Usage: an address that is none; an option that is unknown, that no user may set, or whose value
        the client does not take, with the client's reason (`runtime/kafka_options.py`).
    """
    checked = replace(config, bootstrap=",".join(kafka_options.addresses(config.bootstrap)))
    kafka_options.check(config.options)
    nowhere = replace(config, bootstrap="")
    # What the client warns of is said by the clients that run, in the log, which may not be set up yet.
    before, _client_log.disabled = _client_log.disabled, True
    try:
        consumer(nowhere, group="driftline-check").close()
        producer(nowhere)
    finally:
        _client_log.disabled = before
    return checked


def cluster_id(config: KafkaConfig, *, client: AdminClient | None = None, timeout_s: float = TIMEOUT_S) -> str:
    """Identity of the cluster.

    :raises BrokerAway: nobody answers in time. :raises BrokerRefused: no permission.
    """
    client = client or admin(config)  # kept in a variable: its answers die with it
    doing = "asking for the cluster id"
    # A first, short try: who is not let in is told so at once, and need not wait for the whole time.
    for patience_s in (min(_FIRST_TRY_S, timeout_s / 2), timeout_s):
        try:
            # Not `describe_cluster`: while a broker that came back knows of nobody yet, itself included, librdkafka
            # takes its answer for a bug of its own and ends the process (2.16: "Assertion `rko_result' failed").
            found = str(client.list_topics(timeout=patience_s).cluster_id)
        except KafkaException as error:
            why = _trouble(error, config, doing, client)
            if patience_s == timeout_s or not isinstance(why, BrokerAway) or isinstance(why, NotLetIn):
                raise why from error
        else:
            config.causes.forget()
            return found
    raise AssertionError("the last try returns or raises")


def describe(
    config: KafkaConfig,
    topics: Sequence[str],
    *,
    client: AdminClient | None = None,
    timeout_s: float = TIMEOUT_S,
) -> dict[str, TopicDescription]:
    """Identity and size of topics, by logical name.

    :raises TopicMissing: one does not exist. :raises BrokerAway: nobody answers in time.
    :raises BrokerRefused: no permission, or a broker too old to have topic ids.
    """
    client = client or admin(config)
    cluster = cluster_id(config, client=client, timeout_s=timeout_s)
    names = [config.physical(topic) for topic in topics]
    found = _described(config, client, names, timeout_s)
    full = not names or _is_full_kafka(config, client, names[0], timeout_s)
    described = {}
    for name, topic in found.items():
        if str(topic.topic_id) == NO_TOPIC_ID:
            raise BrokerRefused(
                f"topic {name} has no id, so its recreation would go unnoticed",
                where=f"Kafka at {config.bootstrap}",
                hint="use Apache Kafka 2.8 or later",
            )
        described[config.logical(name)] = TopicDescription(
            cluster_id=cluster,
            topic_id=str(topic.topic_id),
            topic=config.logical(name),
            partitions=len(topic.partitions),
            full_kafka=full,
        )
    return {topic: described[topic] for topic in topics}


def topic_ids(config: KafkaConfig, topics: Sequence[str], *, client: AdminClient, timeout_s: float) -> dict[str, str]:
    """The ids that topics have now, by logical name: one request, for whoever must ask often.

    :raises TopicMissing, BrokerAway, BrokerRefused: as `describe`.
    """
    found = _described(config, client, [config.physical(topic) for topic in topics], timeout_s)
    return {config.logical(name): str(topic.topic_id) for name, topic in found.items()}


def latest_offsets(
    config: KafkaConfig, topics: Sequence[str], *, client: AdminClient, timeout_s: float
) -> dict[tuple[str, str, int], int]:
    """(topic id, logical topic, partition) -> the offset after the last record there now, open transactions included:
    two requests, for whoever must ask often. Believe it only where `trusts_high_watermark`.

    :raises TopicMissing, BrokerAway, BrokerRefused: as `describe`.
    """
    found = _described(config, client, [config.physical(topic) for topic in topics], timeout_s)
    asked = {TopicPartition(name, n): _LATEST for name, topic in found.items() for n in range(len(topic.partitions))}
    ends = {}
    for partition, answer in client.list_offsets(asked, request_timeout=timeout_s).items():
        try:
            offset = answer.result().offset
        except KafkaException as error:
            raise _trouble(
                error, config, f"asking where {partition.topic}/{partition.partition} ends", client
            ) from error
        topic_id = str(found[partition.topic].topic_id)
        ends[topic_id, config.logical(partition.topic), partition.partition] = offset
    return ends


def low_high(
    consumer: Consumer, physical_topic: str, partition: int, *, timeout_s: float = TIMEOUT_S
) -> tuple[int, int]:
    """First offset still there, and the one after the last (a `read_committed` consumer gets the stable end).

    Believe `high` only where `trusts_high_watermark`.

    :raises TopicMissing: there is no such partition. :raises BrokerAway: nobody answers in time.
    """
    try:
        low, high = consumer.get_watermark_offsets(
            TopicPartition(physical_topic, partition), timeout=timeout_s, cached=False
        )
    except KafkaException as error:
        where = f"Kafka, offsets of {physical_topic}/{partition}"
        if error.args[0].code() in UNKNOWN_TOPIC:
            raise TopicMissing("no such partition", where=where, hint="was the topic deleted?") from error
        raise BrokerAway(f"no answer: {error.args[0].str()}", where=where) from error
    return low, high


def topic_configs(
    config: KafkaConfig, topics: Sequence[str], *, client: AdminClient | None = None, timeout_s: float = TIMEOUT_S
) -> dict[str, dict[str, str | None]]:
    """Topic (logical) -> setting -> value. A real Kafka names all settings, Tansu only those given at creation.

    :raises TopicMissing: one does not exist. :raises NoPermission: no right to see them.
    :raises BrokerAway, BrokerRefused: as `describe`.
    """
    client = client or admin(config)
    found = _topic_configs(config, client, [config.physical(topic) for topic in topics], timeout_s)
    return {config.logical(name): values for name, values in found.items()}


def offsets_at(
    config: KafkaConfig,
    moments: Mapping[tuple[str, int], int | None],
    *,
    client: AdminClient,
    timeout_s: float = TIMEOUT_S,
) -> dict[tuple[str, int], int | None]:
    """(topic, partition) -> offset of the first record whose time is not before the moment; None = there is none.

    :param moments: (logical topic, partition) -> milliseconds since 1970; None = the offset after the last record.
    :raises BrokerAway, BrokerRefused: as `describe`.
    """
    asked = {
        TopicPartition(config.physical(topic), partition): _LATEST if ms is None else OffsetSpec.for_timestamp(ms)
        for (topic, partition), ms in moments.items()
    }
    found: dict[tuple[str, int], int | None] = {}
    try:
        answers = client.list_offsets(asked, request_timeout=timeout_s) if asked else {}
        for place, answer in answers.items():
            offset = answer.result().offset
            found[config.logical(place.topic), place.partition] = offset if offset >= 0 else None
    except KafkaException as error:
        raise _trouble(error, config, "asking for offsets by time", client) from error
    return found


def create_topics(
    config: KafkaConfig,
    specs: Sequence[Topic],
    *,
    replication: int = -1,
    client: AdminClient | None = None,
    timeout_s: float = 30.0,
) -> TopicsCreated:
    """Creates the topics that are not there; those that are stay as they are and are compared.

    :param replication: copies of each partition; -1 = the broker's default.
    :raises BrokerAway: nobody answers in time, or the new topics have no leaders yet: calling again is safe.
    :raises BrokerRefused: the broker says no (`Unfit`: to what was asked for; `NoPermission`).
    """
    client = client or admin(config)
    cluster_id(config, client=client, timeout_s=timeout_s)  # who is not let in is told so, and not after 30 s
    wanted = {config.physical(spec.name): spec for spec in specs}
    new = [NewTopic(name, spec.partitions, replication, config=dict(spec.config)) for name, spec in wanted.items()]
    created, existing = [], []
    for name, answer in client.create_topics(new, request_timeout=timeout_s).items():
        try:
            answer.result()
            created.append(name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise _trouble(error, config, f"creating topic {name}", client) from error
            existing.append(name)
    partitions = _await_topics(config, client, list(wanted), timeout_s)
    found = _settled_configs(config, client, list(wanted), timeout_s)
    effective = all(_ALWAYS_NAMED in values for values in found.values())
    different = {}
    for name in existing:
        spec = wanted[name]
        pairs: dict[str, tuple[str, str | None]] = {"partitions": (str(spec.partitions), str(partitions[name]))}
        if effective:
            pairs |= {key: (value, found[name].get(key)) for key, value in spec.config.items()}
        if unequal := {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}:
            different[spec.name] = unequal
    return TopicsCreated(
        created=tuple(config.logical(name) for name in created),
        existing=tuple(config.logical(name) for name in existing),
        different=different,
        configs_effective=effective,
    )


Client = TypeVar("Client", Consumer, Producer, AdminClient)


def _made(kind: type[Client], options: Mapping[str, Any], config: KafkaConfig) -> Client:
    """:raises Usage: the client does not take the options."""
    try:
        return kind(dict(options), logger=ClientLog(_client_log, config.causes))
    except KafkaException as error:
        said = error.args[0].str().strip()
    except (TypeError, ValueError, AttributeError) as error:
        said = str(error)
    raise ConfigurationError(
        f"the Kafka client does not take its options: {said}", where=kafka_options.SETTING, hint="correct it"
    )


def _common(config: KafkaConfig, kind: Kind) -> dict[str, Any]:
    def on_error(error: KafkaError) -> None:
        metrics.kafka_errors.inc(1, client=kind)
        if config.causes.tell(error):
            # What an admin client meets is raised by the call that met it.
            _client_log.log(logging.DEBUG if kind == "admin" else logging.WARNING, "%s: %s", kind, error.str())

    return {
        "bootstrap.servers": config.bootstrap,
        "client.id": f"driftline-{kind}",
        "error_cb": on_error,
        "log.connection.close": True,  # `ClientLog` keeps what it says
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 5_000,
        "socket.keepalive.enable": True,
    }


def _await_topics(config: KafkaConfig, client: AdminClient, names: Sequence[str], timeout_s: float) -> dict[str, int]:
    """Topic -> partitions, once the leader of each takes records: the controller answers first, and a producer gives
    up at once what it sends to a partition that its leader has not heard of."""
    until = time.monotonic() + timeout_s
    while True:
        answers = client.describe_topics(TopicCollection(list(names)), request_timeout=timeout_s) if names else {}
        try:
            partitions = {name: len(answer.result().partitions) for name, answer in answers.items()}
            asked = {TopicPartition(name, n): _LATEST for name in names for n in range(partitions[name])}
            for answer in client.list_offsets(asked, request_timeout=timeout_s).values() if asked else ():
                answer.result()
            return partitions
        except KafkaException as error:
            if error.args[0].code() not in NOT_THERE_YET:
                raise _trouble(error, config, "waiting for the new topics", client) from error
            if time.monotonic() > until:
                raise _not_yet(error, config) from error
            time.sleep(0.02)


def _settled_configs(
    config: KafkaConfig, client: AdminClient, names: Sequence[str], timeout_s: float
) -> dict[str, dict[str, str | None]]:
    """As `_topic_configs`, of topics that may just have been made: another broker may not have heard of them."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            return _topic_configs(config, client, names, timeout_s)
        except TopicMissing as error:
            if time.monotonic() > until:
                raise BrokerAway(error.what, where=error.where, hint=_AGAIN) from error
            time.sleep(0.05)


def _not_yet(error: KafkaException, config: KafkaConfig) -> BrokerAway:
    what = f"the new topics have no leaders yet: {error.args[0].str()}"
    return BrokerAway(what, where=f"Kafka at {config.bootstrap}", hint=_AGAIN)


def _described(config: KafkaConfig, client: AdminClient, names: Sequence[str], timeout_s: float) -> dict[str, Any]:
    """confluent_kafka's descriptions, by physical name."""
    found, missing = {}, []
    answers = client.describe_topics(TopicCollection(list(names)), request_timeout=timeout_s) if names else {}
    for name, answer in answers.items():
        try:
            found[name] = answer.result()
        except KafkaException as error:
            if error.args[0].code() not in UNKNOWN_TOPIC:
                raise _trouble(error, config, f"describing topic {name}", client) from error
            missing.append(name)
    if missing:
        raise TopicMissing(
            f"no topic {', '.join(missing)}",
            where=f"Kafka at {config.bootstrap}",
            hint="`driftline topics create`, or correct the setting topic_prefix",
        )
    config.causes.forget()
    return found


def _topic_configs(
    config: KafkaConfig, client: AdminClient, names: Sequence[str], timeout_s: float
) -> dict[str, dict[str, str | None]]:
    """By physical name."""
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    try:
        answers = client.describe_configs(resources, request_timeout=timeout_s) if resources else {}
        return {
            resource.name: {key: entry.value for key, entry in answer.result().items()}
            for resource, answer in answers.items()
        }
    except KafkaException as error:
        doing = "reading topic settings"
        if error.args[0].code() in UNKNOWN_TOPIC:
            raise TopicMissing(error.args[0].str(), where=f"Kafka at {config.bootstrap}, {doing}") from error
        raise _trouble(error, config, doing, client) from error


def _is_full_kafka(config: KafkaConfig, client: AdminClient, name: str, timeout_s: float) -> bool:
    try:
        return _ALWAYS_NAMED in _topic_configs(config, client, [name], timeout_s)[name]
    except NoPermission:  # only a broker with ACLs refuses to show a topic's configs
        return True


def _trouble(error: KafkaException, config: KafkaConfig, doing: str, client: AdminClient) -> BrokerAway | BrokerRefused:
    """The error that says what the caller should do."""
    client.poll(0)  # the causes wait there
    return trouble(error, config.causes, where=f"Kafka at {config.bootstrap}, {doing}")
