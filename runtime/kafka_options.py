"""Every option of librdkafka, and what Driftline does with it when a user sets it (`DRIFTLINE_KAFKA_OPTIONS`).

Three kinds: those that reach and prove (addresses aside), those that only tune, and those that are refused, each with
its reason: because the promise stands on the value that `runtime/kafka.py` gives, or because only a program can set
them. The table is librdkafka's whole list; a test compares it with the library's own, so a new option is decided upon
before it can be set. An option that is not in it is a slip of the pen, and the nearest name is told.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Final, Literal

from runtime.lifecycle import ConfigurationError

Kind = Literal["consumer", "producer", "admin"]

SETTING: Final = "setting DRIFTLINE_KAFKA_OPTIONS"
BOOTSTRAP: Final = "setting DRIFTLINE_KAFKA_BOOTSTRAP"
DEFAULT_PORT: Final = 9092

_DELETED = "decides what happens to deleted ranges; Driftline refuses instead"
_POSITIONS = "decides which positions Kafka keeps; Driftline keeps them itself"
_ASSIGNMENT = (
    "decides how partitions are given out; a process of Driftline gets its whole assignment at once (eager, range), "
    "and a claim in Postgres goes with it"
)
_VERSIONS = "lets the client speak to brokers as if they knew no transactions: aborted records would be read"
_ACKS = "decides when a record counts as written; Driftline waits for all replicas"
_WAITING = "decides when a record is given up; the processes count on limits of their own"
_ADDRESS = "is another place for the address; it stands in DRIFTLINE_KAFKA_BOOTSTRAP, for all clients"
_PROGRAM = "can be set by a program only"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


PROMISED: Final[Mapping[str, str]] = {
    "auto.offset.reset": _DELETED,
    "isolation.level": "decides whether aborted records are read; Driftline reads committed ones only",
    "enable.auto.commit": _POSITIONS,
    "auto.commit.enable": _POSITIONS,
    "auto.commit.interval.ms": _POSITIONS,
    "enable.auto.offset.store": _POSITIONS,
    "offset.store.method": _POSITIONS,
    "offset.store.path": _POSITIONS,
    "offset.store.sync.interval.ms": _POSITIONS,
    "group.id": "would put all consumers of all processes into one group; set DRIFTLINE_INGEST__GROUP, "
    "DRIFTLINE_SCORE__GROUP or DRIFTLINE_DRIFT__GROUP",
    "group.instance.id": "would give one identity to every consumer of every process, and they would end each other in "
    "turn; static membership needs a name for each process",
    "group.protocol": _ASSIGNMENT,
    "group.protocol.type": _ASSIGNMENT,
    "group.remote.assignor": _ASSIGNMENT,
    "partition.assignment.strategy": _ASSIGNMENT,
    "session.timeout.ms": "is what a fenced process waits for; set DRIFTLINE_INGEST__SESSION_TIMEOUT_S, "
    "DRIFTLINE_SCORE__SESSION_TIMEOUT_S or DRIFTLINE_DRIFT__SESSION_TIMEOUT_S",
    "enable.partition.eof": "mixes the ends of partitions with the records",
    "api.version.request": _VERSIONS,
    "api.version.fallback.ms": _VERSIONS,
    "broker.version.fallback": _VERSIONS,
    "topic.blacklist": "hides topics: their records would be missing without a word",
    "allow.auto.create.topics": "makes missing topics, with whatever settings; `driftline topics create` makes them as "
    "they must be",
    "enable.idempotence": "decides whether a record that is sent again is written twice; Driftline's producers are "
    "idempotent",
    "acks": _ACKS,
    "request.required.acks": _ACKS,
    "queuing.strategy": "decides the order of records; Driftline keeps it",
    "transactional.id": "makes a producer wait for transactions that nobody opens, and ends the one before it",
    "message.timeout.ms": _WAITING,
    "delivery.timeout.ms": _WAITING,
    "delivery.report.only.error": "hides the acknowledgements that the processes wait for",
    "enable.gapless.guarantee": "ends a producer for good with the first record that is refused",
    "internal.termination.signal": "takes a signal of the process; Driftline ends in order by its signals",
    "plugin.library.paths": "loads other code into the client, which may change what it promises",
    "metadata.broker.list": _ADDRESS,
    "bootstrap.servers": _ADDRESS,
}
"""Name -> why no user may set it."""

PROMISED_VALUES: Final[Mapping[str, tuple[re.Pattern[str], str]]] = {
    "check.crcs": (re.compile("false|f|0", re.I), "turns off the check that records arrive as they were written"),
    "partitioner": (re.compile("random", re.I), "sends one key to many partitions: repetitions would not be known"),
}
"""Name -> (values that no user may give it, why)."""

_CALLBACKS: Final = _names("""
    background_event_cb closesocket_cb connect_cb consume_cb default.topic.config default_topic_conf dr_cb dr_msg_cb
    enabled_events error_cb interceptors log.queue log_cb logger msg_order_cmp oauth_cb oauthbearer_token_refresh_cb
    offset_commit_cb on_commit on_delivery opaque open_cb partitioner_cb rebalance_cb resolve_cb socket_cb
    ssl.certificate.verify_cb ssl_ca ssl_certificate ssl_engine_callback_data ssl_key stats_cb throttle_cb
""")

SECURITY: Final = _names("""
    client.id enable.sasl.oauthbearer.unsecure.jwt enable.ssl.certificate.verification https.ca.location https.ca.pem
    sasl.kerberos.keytab sasl.kerberos.kinit.cmd sasl.kerberos.min.time.before.relogin sasl.kerberos.principal
    sasl.kerberos.service.name sasl.mechanism sasl.mechanisms sasl.oauthbearer.assertion.algorithm
    sasl.oauthbearer.assertion.claim.aud sasl.oauthbearer.assertion.claim.exp.seconds
    sasl.oauthbearer.assertion.claim.iss sasl.oauthbearer.assertion.claim.jti.include
    sasl.oauthbearer.assertion.claim.nbf.seconds sasl.oauthbearer.assertion.claim.sub sasl.oauthbearer.assertion.file
    sasl.oauthbearer.assertion.jwt.template.file sasl.oauthbearer.assertion.private.key.file
    sasl.oauthbearer.assertion.private.key.passphrase sasl.oauthbearer.assertion.private.key.pem
    sasl.oauthbearer.client.credentials.client.id sasl.oauthbearer.client.credentials.client.secret
    sasl.oauthbearer.client.id sasl.oauthbearer.client.secret sasl.oauthbearer.config sasl.oauthbearer.extensions
    sasl.oauthbearer.grant.type sasl.oauthbearer.metadata.authentication.type sasl.oauthbearer.method
    sasl.oauthbearer.scope sasl.oauthbearer.sub.claim.name sasl.oauthbearer.token.endpoint.url sasl.password
    sasl.username security.protocol ssl.ca.certificate.stores ssl.ca.location ssl.ca.pem ssl.certificate.location
    ssl.certificate.pem ssl.cipher.suites ssl.crl.location ssl.curves.list ssl.endpoint.identification.algorithm
    ssl.engine.id ssl.engine.location ssl.key.location ssl.key.password ssl.key.pem ssl.keystore.location
    ssl.keystore.password ssl.providers ssl.sigalgs.list
""")
"""How a client says who it is and whom it trusts. `drift`, whose client is another, must know them or refuse."""

_TUNING_CONSUMER: Final = _names("""
    check.crcs consume.callback.max.messages coordinator.query.interval.ms fetch.error.backoff.ms fetch.max.bytes
    fetch.message.max.bytes fetch.min.bytes fetch.queue.backoff.ms fetch.wait.max.ms heartbeat.interval.ms
    max.partition.fetch.bytes max.poll.interval.ms max.poll.records queued.max.messages.kbytes queued.min.messages
    share.acknowledgement.mode
""")
_TUNING_PRODUCER: Final = _names("""
    batch.num.messages batch.size compression.codec compression.level compression.type linger.ms
    message.send.max.retries partitioner produce.offset.report queue.buffering.backpressure.threshold
    queue.buffering.max.kbytes queue.buffering.max.messages queue.buffering.max.ms request.timeout.ms retries
    sticky.partitioning.linger.ms transaction.timeout.ms
""")
_TUNING: Final = _names("""
    broker.address.family broker.address.ttl builtin.features client.dns.lookup client.rack connections.max.idle.ms
    debug enable.metrics.push enable.random.seed log.connection.close log.thread.name log_level max.in.flight
    max.in.flight.requests.per.connection message.copy.max.bytes message.max.bytes metadata.max.age.ms
    metadata.recovery.rebootstrap.trigger.ms metadata.recovery.strategy api.version.request.timeout.ms
    receive.message.max.bytes reconnect.backoff.jitter.ms reconnect.backoff.max.ms reconnect.backoff.ms
    retry.backoff.max.ms retry.backoff.ms socket.blocking.max.ms socket.connection.setup.timeout.ms
    socket.keepalive.enable socket.max.fails socket.nagle.disable socket.receive.buffer.bytes
    socket.send.buffer.bytes socket.timeout.ms statistics.interval.ms topic.metadata.propagation.max.ms
    topic.metadata.refresh.fast.cnt topic.metadata.refresh.fast.interval.ms topic.metadata.refresh.interval.ms
    topic.metadata.refresh.sparse
""")

ALLOWED: Final = SECURITY | _TUNING | _TUNING_CONSUMER | _TUNING_PRODUCER
KNOWN: Final = ALLOWED | PROMISED.keys() | _CALLBACKS
"""All of them."""


def check(options: Mapping[str, str]) -> None:
    """Looks at names, and at the values that the promise depends on. The client itself judges the others.

    :raises Usage: an option that is unknown or that no user may set, each by its name and with the reason. Values are
        not repeated: they may be secret.
    """
    refused = [
        sentence for name, value in options.items() if (sentence := _refusal(plain_name(name), value)) is not None
    ]
    if refused:
        raise ConfigurationError("\n  ".join(refused), where=SETTING)


def for_client(options: Mapping[str, str], kind: Kind) -> dict[str, str]:
    """Without what only clients of another kind know: they would warn of it."""
    others = {"consumer": _TUNING_PRODUCER, "producer": _TUNING_CONSUMER, "admin": _TUNING_PRODUCER | _TUNING_CONSUMER}
    return {bare: value for name, value in options.items() if (bare := plain_name(name)) not in others[kind]}


def plain_name(name: str) -> str:
    """The option a name stands for: librdkafka takes `topic.acks` for `acks`."""
    if name not in KNOWN and (bare := name.removeprefix("topic.")) in KNOWN:
        return bare
    return name


def _refusal(name: str, value: str) -> str | None:
    if name in PROMISED:
        return f"{name} {PROMISED[name]}; remove it"
    if name in PROMISED_VALUES:
        values, why = PROMISED_VALUES[name]
        return f"{name}={value} {why}; remove it" if values.fullmatch(value.strip()) else None
    if name in _CALLBACKS:
        return f"{name} {_PROGRAM}; remove it"
    if name not in ALLOWED:
        near = difflib.get_close_matches(name.strip().lower().replace("_", "."), sorted(ALLOWED), n=1, cutoff=0.6)
        return f"{name!r} is no option of the Kafka client" + (f"; did you mean {near[0]}?" if near else "; remove it")
    return None


def addresses(bootstrap: str) -> list[str]:
    """The brokers, each as host:port.

    :raises Usage: not host:port[,host:port...].
    """
    found = [_address(part.strip()) for part in bootstrap.split(",")]
    return [f"{host}:{port}" for host, port in found]


_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\s:\[\]/@?#]+)(?::(?P<port>[^:]*))?")


def _address(part: str) -> tuple[str, int]:
    if not part:
        raise _unfit("an address is empty")
    if "://" in part:
        raise _unfit(f"{part.partition('://')[0]}:// does not belong there (security.protocol is an option)")
    matched = _HOST_PORT.fullmatch(part)
    if matched is None:  # a password may stand before an @
        raise _unfit("a user belongs into options" if "@" in part else f"{part!r} is not host:port")
    port = matched["port"]
    if port is None:
        return matched["host"], DEFAULT_PORT
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise _unfit(f"{part!r}: {port!r} is no port (1 to 65535)")
    return matched["host"], int(port)


def _unfit(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"no usable address of Kafka: {why}", where=BOOTSTRAP, hint="give host:port[,host:port...]"
    )
