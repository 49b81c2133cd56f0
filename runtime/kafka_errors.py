"""What can go wrong with a Kafka, and the sentence that says why.

A client that is refused (wrong password, foreign certificate) or that finds nobody keeps trying, and its calls end in
time-outs that name no cause. The cause arrives beside them, in the client's error callback and log: `Causes` keeps it.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException

from runtime.lifecycle import Exit, OperatorActionRequired, Transient

RECENT_S: Final = 30.0
"""Seconds for which a cause explains a time-out: longer than the longest pause between two tries to connect."""
SAID_AGAIN_S: Final = 60.0
"""Seconds after which a cause that goes on is logged again; a client meets it several times a second."""


class BrokerAway(Transient):
    """No broker answers, or the one that does is not ready yet."""


class NotLetIn(BrokerAway):
    """A broker is there, and does not let us in (or we do not trust it): password, certificate, protocol.

    To a long-running process the broker is away: it tries again, since credentials are changed on either side while
    it runs. A call that runs once ends with exit code 3.
    """

    code = Exit.REFUSED


class TopicMissing(OperatorActionRequired):
    """A topic does not exist (or may not be seen)."""


class BrokerRefused(OperatorActionRequired):
    """The broker answers and says no: permissions, an unfit request."""


class NoPermission(BrokerRefused):
    """An ACL is missing."""


class Unfit(BrokerRefused):
    """The broker cannot do what was asked for: correct the call, or a setting."""

    code = Exit.USAGE


@dataclass
class Causes:
    """The newest cause that the clients of one configuration were told. Thread-safe."""

    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _refusal: tuple[float, str] | None = None
    _trouble: tuple[float, str] | None = None
    _said: dict[str, float] = field(default_factory=dict)

    def tell(self, error: KafkaError) -> bool:
        """From an error callback. Whether it is news: it was not told within the last `SAID_AGAIN_S`."""
        text = _AFTER.sub("", error.str())
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # says nothing beyond the others
            return False
        with self._lock:
            if error.code() in _REFUSALS:
                self._refusal = (time.monotonic(), text)
            else:
                self._trouble = (time.monotonic(), text)
            return self._is_news(text)

    def tell_closed(self, text: str) -> None:
        """A broker took a connection and closed it: of this only the log tells."""
        with self._lock:
            self._trouble = (
                time.monotonic(),
                f"{_AFTER.sub('', text)}; if that goes on: does security.protocol fit this port?",
            )

    def refusal(self) -> str | None:
        """Why a broker does not let us in; None = nobody said so lately."""
        with self._lock:
            return _recent(self._refusal)

    def trouble(self) -> str | None:
        """Why none is reached; None = nobody said so lately."""
        with self._lock:
            return _recent(self._trouble)

    def forget(self) -> None:
        """A call was answered: what was told before is over."""
        with self._lock:
            self._refusal = self._trouble = None

    def _is_news(self, text: str) -> bool:
        now = time.monotonic()
        if now - self._said.get(text, -SAID_AGAIN_S) < SAID_AGAIN_S:
            return False
        self._said = {said: at for said, at in self._said.items() if now - at < SAID_AGAIN_S} | {text: now}
        return True


class ClientLog:
    """The logger of a client: passes lines on, but for those on failed connections, many a second.

    The error callback is told the same, except that a connection was closed: that is kept here.
    """

    def __init__(self, logger: logging.Logger, causes: Causes) -> None:
        self._logger, self._causes = logger, causes

    def log(self, level: int, text: str, *parts: Any) -> None:
        """One line, as confluent_kafka calls it: (facility, client, text)."""
        if parts and parts[0] == "FAIL":
            said = str(parts[-1]).partition("]: ")[2] or str(parts[-1])  # without the thread's name
            if _CLOSED in said:
                self._causes.tell_closed(said)
        else:
            self._logger.log(level, text, *parts)


_CLOSED: Final = ": Disconnected"
_AFTER: Final = re.compile(r" \(after \d+ms in state \w+(, \d+ identical error\(s\) suppressed)?\)")


def _recent(told: tuple[float, str] | None) -> str | None:
    return told[1] if told is not None and time.monotonic() - told[0] < RECENT_S else None


def trouble(error: KafkaException, causes: Causes, *, where: str) -> BrokerAway | BrokerRefused:
    """The error that says what happened and what the caller should do."""
    reason: KafkaError = error.args[0]
    code, said = reason.code(), reason.str()
    passing = code in AWAY or reason.retriable()
    if code in _REFUSALS or (passing and causes.refusal()):
        return NotLetIn(
            f"Kafka does not let us in: {causes.refusal() or said}",
            where=where,
            hint="correct security.protocol, sasl.* and ssl.* in DRIFTLINE_KAFKA_OPTIONS, or the broker's side of them",
        )
    if passing:
        cause = causes.trouble()
        more = f" ({cause})" if cause and cause not in said else ""
        return BrokerAway(f"no answer: {said}{more}", where=where, hint="is it running, and the address right?")
    if code in _PERMISSIONS:
        return NoPermission(said, where=where, hint="give this user the right in the cluster's ACLs")
    if code in _UNFIT:
        return Unfit(said, where=where, hint=_UNFIT[code])
    return BrokerRefused(said, where=where, hint="see the broker's log")


_REFUSALS: Final = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError._SSL,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
        KafkaError.ILLEGAL_SASL_STATE,
    }
)
UNKNOWN_TOPIC: Final = frozenset(
    {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}
)
NOT_THERE_YET: Final = UNKNOWN_TOPIC | {
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
}
"""What the leader of a new partition answers before it has heard of it."""
AWAY: Final = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._PARTIAL,  # it came back, and knows of nobody yet
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._WAIT_COORD,
        KafkaError._WAIT_CACHE,
        KafkaError._RETRY,
        KafkaError._DESTROY,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_CONTROLLER,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.THROTTLING_QUOTA_EXCEEDED,
    }
)
"""What passes by itself."""
_PERMISSIONS: Final = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError.SECURITY_DISABLED,
    }
)
_UNFIT: Final = {
    KafkaError.INVALID_REPLICATION_FACTOR: "ask for no more copies than there are brokers (--replication), or start "
    "the brokers that are missing",
    KafkaError.INVALID_PARTITIONS: "ask for another number of partitions (--partitions)",
    KafkaError.INVALID_CONFIG: "the cluster does not take a setting that the topic needs; see the broker's log",
    KafkaError.TOPIC_EXCEPTION: "correct the setting topic_prefix",
    KafkaError.POLICY_VIOLATION: "the cluster has a policy for new topics: ask who runs it, or make the topics there",
    KafkaError.UNSUPPORTED_VERSION: "use Apache Kafka 2.8 or later",
}
