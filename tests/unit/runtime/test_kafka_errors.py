"""What a person is told when a Kafka does not do as asked, and with which exit code."""

from __future__ import annotations

import logging

import pytest
from confluent_kafka import KafkaError, KafkaException

from runtime import kafka, kafka_errors
from runtime.kafka import KafkaConfig
from runtime.kafka_errors import BrokerAway, Causes, ClientLog, NoPermission, NotLetIn, Unfit, trouble
from runtime.lifecycle import Exit, OperatorActionRequired, Transient


def told(
    code: int, causes: Causes | None = None, text: str = "as the broker says"
) -> BrokerAway | OperatorActionRequired:
    return trouble(KafkaException(KafkaError(code, text)), causes or Causes(), where="Kafka at a:1, testing")


@pytest.mark.parametrize("code", sorted(kafka_errors.AWAY))
def test_what_passes_by_itself_asks_nobody_to_decide(code: int) -> None:
    error = told(code)
    assert isinstance(error, Transient)
    assert error.code == Exit.FAILED
    assert "as the broker says" in str(error)
    assert "credentials" not in str(error)


def test_a_new_topic_whose_leaders_are_slow_is_no_refusal() -> None:
    """Creating again is safe; the exit code says that a repetition may succeed."""
    error = kafka._not_yet(KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)), KafkaConfig("a:1"))
    assert isinstance(error, Transient)
    assert error.code == Exit.FAILED


def test_the_cause_stands_beside_the_time_out() -> None:
    causes = Causes()
    causes.tell(
        KafkaError(KafkaError._TRANSPORT, "a:1: Connect failed: Connection refused (after 3ms in state CONNECT)")
    )
    causes.tell(KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
    error = told(KafkaError._TIMED_OUT, causes)
    assert "as the broker says (a:1: Connect failed: Connection refused)" in str(error)
    assert "brokers are down" not in str(error)


@pytest.mark.parametrize("code", [KafkaError._AUTHENTICATION, KafkaError._SSL])
def test_a_refusal_explains_the_time_outs_that_follow_it(code: int) -> None:
    causes = Causes()
    causes.tell(KafkaError(code, "invalid credentials (after 300ms in state AUTH_REQ)"))
    causes.tell(KafkaError(KafkaError._TRANSPORT, "Connect failed"))
    error = told(KafkaError._TIMED_OUT, causes)
    assert isinstance(error, NotLetIn)
    assert isinstance(error, BrokerAway)  # a process tries again: credentials are changed while it runs
    assert error.code == Exit.REFUSED
    assert error.what == "Kafka does not let us in: invalid credentials"
    causes.forget()  # it was let in
    assert not isinstance(told(KafkaError._TIMED_OUT, causes), NotLetIn)


def test_an_old_refusal_explains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    causes = Causes()
    causes.tell(KafkaError(KafkaError._AUTHENTICATION, "invalid credentials"))
    monkeypatch.setattr(kafka_errors, "RECENT_S", 0.0)
    assert not isinstance(told(KafkaError._TIMED_OUT, causes), NotLetIn)


def test_a_repeated_cause_is_news_once_a_minute() -> None:
    causes = Causes()
    said = [
        causes.tell(KafkaError(KafkaError._AUTHENTICATION, f"invalid (after {n}ms in state AUTH_REQ)"))
        for n in range(9)
    ]
    assert said == [True] + [False] * 8


def test_a_connection_that_is_closed_at_once_points_at_the_protocol(caplog: pytest.LogCaptureFixture) -> None:
    causes = Causes()
    log = ClientLog(logging.getLogger("librdkafka"), causes)
    with caplog.at_level(logging.DEBUG):
        line = "[thrd:a:1/bootstrap]: a:1/bootstrap: Disconnected: closed by peer (after 3ms in state APIVERSION_QUERY)"
        log.log(20, "%s [%s] %s", "FAIL", "rdkafka#producer-1", line)
        log.log(30, "%s [%s] %s", "CONFWARN", "rdkafka#producer-1", "something else")
        for n in range(5):
            log.log(
                40,
                "%s [%s] %s",
                "FAIL",
                "rdkafka#producer-1",
                f"[thrd:b:1]: b:1: refused (after {n}ms in state CONNECT)",
            )
    assert caplog.messages == ["CONFWARN [rdkafka#producer-1] something else"]
    assert "security.protocol" in str(told(KafkaError._TRANSPORT, causes))


@pytest.mark.parametrize(
    ("code", "kind", "exit_code", "helps"),
    [
        (KafkaError.INVALID_REPLICATION_FACTOR, Unfit, Exit.USAGE, "--replication"),
        (KafkaError.INVALID_PARTITIONS, Unfit, Exit.USAGE, "--partitions"),
        (KafkaError.TOPIC_EXCEPTION, Unfit, Exit.USAGE, "topic_prefix"),
        (KafkaError.POLICY_VIOLATION, Unfit, Exit.USAGE, "policy"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, NoPermission, Exit.REFUSED, "ACL"),
        (KafkaError.CLUSTER_AUTHORIZATION_FAILED, NoPermission, Exit.REFUSED, "ACL"),
        (KafkaError.UNKNOWN, OperatorActionRequired, Exit.REFUSED, "broker's log"),
    ],
)
def test_advice_fits_the_reason(code: int, kind: type, exit_code: Exit, helps: str) -> None:
    error = told(code)
    assert isinstance(error, kind)
    assert error.code == exit_code
    assert helps in error.hint
    assert "credentials" not in str(error)
