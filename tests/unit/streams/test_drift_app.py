"""How the Faust app is reached, how long it may write, and what a topic's records say."""

from __future__ import annotations

import msgspec
import pytest

from contracts import topics
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Usage
from runtime.settings import DriftSettings
from streams.agent import read
from streams.drift import application, credentials
from streams.lease import AppEnded, Lease


def test_without_security_options_the_connection_is_plain() -> None:
    assert credentials({}) is None
    assert credentials({"security.protocol": "PLAINTEXT", "linger.ms": "5"}) is None


def test_names_and_passwords_are_handed_over() -> None:
    options = {"security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-256"}
    found = credentials({**options, "sasl.username": "ann", "sasl.password": "secret"})
    assert (found.username, found.password, found.mechanism.value) == ("ann", "secret", "SCRAM-SHA-256")
    assert found.protocol.value == "SASL_SSL"
    assert credentials({"security.protocol": "ssl"}).protocol.value == "SSL"
    assert credentials({"security.protocol": "sasl_plaintext"}).protocol.value == "SASL_PLAINTEXT"


@pytest.mark.parametrize("option", [{"ssl.keystore.location": "k"}, {"sasl.mechanism": "GSSAPI"}])
def test_a_way_of_proving_who_we_are_that_faust_does_not_know_is_refused(option: dict[str, str]) -> None:
    with pytest.raises(Usage, match=next(iter(option))):
        credentials({"security.protocol": "SASL_SSL", **option})


def test_the_app_is_named_with_the_prefix_and_makes_no_topics(tmp_path: str) -> None:
    app = application(KafkaConfig("a:1,b:2", prefix="team."), DriftSettings(group="g"), str(tmp_path))
    assert app.conf.id == "team.g"
    assert [str(url) for url in app.conf.broker] == ["kafka://a:1", "kafka://b:2"]
    assert app.conf.topic_allow_declare is False


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
        "message": "m", "where": "w", "todo": "t"}"""
    assert read(topics.RESULTS, refusal, 0, 0) is None
