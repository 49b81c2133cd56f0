"""How the Faust app is reached, how long it may write, and what a topic's records say."""

from __future__ import annotations

import ssl
from typing import Any

import msgspec
import pytest

from contracts import topics
from runtime import kafka_options, kafka_security
from runtime.kafka import KafkaConfig
from runtime.kafka_security import ignored, security
from runtime.lifecycle import ConfigurationError
from runtime.settings import DriftSettings
from streams.drift.process import application, credentials
from streams.drift.session_lease import AppEnded, Lease
from streams.drift.topic_agent import read


def proof(options: dict[str, str]) -> Any:
    return credentials(security(options, process="drift"))


def test_without_security_options_the_connection_is_plain() -> None:
    assert proof({}) is None
    assert proof({"security.protocol": "PLAINTEXT", "linger.ms": "5"}) is None


WHO = {"sasl.username": "ann", "sasl.password": "secret"}


def test_names_and_passwords_are_handed_over() -> None:
    options = {"security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-256"}
    found = proof({**options, **WHO})
    assert (found.username, found.password, found.mechanism.value) == ("ann", "secret", "SCRAM-SHA-256")
    assert found.protocol.value == "SASL_SSL"
    assert proof({"security.protocol": "ssl"}).protocol.value == "SSL"
    plain = {"security.protocol": "sasl_plaintext", "sasl.mechanisms": "plain"}
    assert proof({**plain, **WHO}).protocol.value == "SASL_PLAINTEXT"
    assert "secret" not in repr(security({**plain, **WHO}, process="drift"))


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"ssl.keystore.location": "k"}, "ssl.keystore.location"),
        ({"sasl.mechanism": "GSSAPI"}, "sasl.mechanism=GSSAPI"),
        ({}, "sasl.mechanism=GSSAPI"),  # librdkafka's default, and so ours
        ({"sasl.mechanism": "OAUTHBEARER", "sasl.oauthbearer.method": "oidc"}, "sasl.oauthbearer.method"),
        ({"sasl.mechanism": "PLAIN"}, "sasl.username and sasl.password"),
        ({**WHO, "sasl.mechanism": "PLAIN", "ssl.ca.location": "/nowhere"}, "ssl.ca.location"),
        ({**WHO, "sasl.mechanism": "PLAIN", "ssl.ca.pem": "no certificate"}, "ssl.ca.pem"),
    ],
)
def test_a_way_of_proving_who_we_are_that_faust_does_not_know_is_refused(option: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError, match="DRIFTLINE_KAFKA_OPTIONS") as refused:
        proof({"security.protocol": "SASL_SSL", **option})
    assert named in str(refused.value)


def test_every_option_of_security_is_honoured_or_refused() -> None:
    """None is passed over in silence: `drift` would prove less than `ingest`."""
    base = {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", **WHO}
    files = {"ssl.ca.location", "ssl.ca.pem", "ssl.certificate.location", "ssl.certificate.pem", "ssl.crl.location"}
    for name in sorted(kafka_options.SECURITY - kafka_security._HONOURED):
        with pytest.raises(ConfigurationError, match="cannot honour"):
            security({**base, name: "x"}, process="drift")
    for name in sorted(files):
        with pytest.raises(ConfigurationError, match=name):
            security({**base, name: "x"}, process="drift")
    with pytest.raises(ConfigurationError, match=r"ssl\.cipher\.suites"):
        security({**base, "ssl.cipher.suites": "none such"}, process="drift")


def test_what_is_said_of_trust_is_done() -> None:
    base = {"security.protocol": "SSL"}
    whole = security(base, process="drift").tls
    lax = security({**base, "ssl.endpoint.identification.algorithm": "none"}, process="drift").tls
    blind = security({**base, "enable.ssl.certificate.verification": "false"}, process="drift").tls
    assert whole is not None
    assert lax is not None
    assert blind is not None
    assert (whole.check_hostname, whole.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert (lax.check_hostname, lax.verify_mode) == (False, ssl.CERT_REQUIRED)
    assert (blind.check_hostname, blind.verify_mode) == (False, ssl.CERT_NONE)


def test_what_only_tunes_is_passed_over_and_named() -> None:
    assert ignored({"linger.ms": "5", "security.protocol": "SSL", "topic.request.timeout.ms": "1"}) == [
        "linger.ms",
        "topic.request.timeout.ms",
    ]


def test_the_app_is_named_with_the_prefix_and_makes_no_topics(tmp_path: str) -> None:
    config = KafkaConfig("a:1, b", {"client.id": "mine"}, prefix="team.")
    app = application(config, DriftSettings(group="g"), str(tmp_path))
    assert app.conf.id == "team.g"
    assert [str(url) for url in app.conf.broker] == ["kafka://a:1", "kafka://b:9092"]
    assert app.conf.topic_allow_declare is False
    assert app.conf.broker_client_id == "mine"


@pytest.mark.parametrize("topic", [topics.PROGRESS, topics.LABELS, topics.RESULTS])
def test_what_is_not_of_the_topic_is_told_apart(topic: str) -> None:
    with pytest.raises(msgspec.MsgspecError):
        read(topic, b'{"user_id": 1}', 0, 0)


def test_a_process_that_stood_still_for_its_session_never_writes_again() -> None:
    times = iter([100.0, 105.0, 110.5, 116.0, 122.0, 122.1])
    lease = Lease(6.0, clock=lambda: next(times))
    for _ in range(3):
        lease.renew()
    for _ in range(2):
        with pytest.raises(AppEnded, match="stood still for 6 s"):
            lease.renew()


def test_a_ranking_says_nothing_yet() -> None:
    assert read(topics.RESULTS, b'{"outcome": "ranked", "ranking": []}', 0, 0) is None


def test_a_refusal_of_score_says_nothing() -> None:
    refusal = b"""{"outcome": "refused", "request_id": "q", "user_id": "ann", "reason": "expired",
        "message": "m", "where": "w", "hint": "t"}"""
    assert read(topics.RESULTS, refusal, 0, 0) is None


@pytest.mark.parametrize(
    "value",
    [
        b'{"\xff":1,"learner":"markov"}',
        b'{"task":"\xff"}',
        b"[" * 100_000,
        b'{"x":' + b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("topic", [topics.PROGRESS, topics.LABELS, topics.RESULTS])
def test_whatever_cannot_be_read_is_one_kind_of_error(topic: str, value: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        read(topic, value, 0, 0)
