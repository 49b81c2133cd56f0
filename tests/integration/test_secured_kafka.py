"""A Kafka that asks who we are: what every process says where it is not let in, and that it is where it should be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import structlog

from contracts import topics
from driftline.cli import run
from runtime import kafka
from runtime.admin_app import Health
from runtime.kafka import KafkaConfig, NotLetIn
from runtime.kafka_errors import NoPermission
from runtime.lifecycle import Exit, Stop
from runtime.settings import DriftSettings
from streams.drift.process import DriftProcess
from streams.drift.topic_agent import DriftTotals
from tests.integration.drift.watching import send
from tests.integration.feeding import Sender, event, eventually, ingest, ingest_once, taken
from tests.integration.secured import LIMITED, Secured, let_in, secured_kafka
from tests.integration.test_ingest_positions import running

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured_kafka(tmp_path_factory.mktemp("secured")) as made:
        kafka.create_topics(KafkaConfig(made.plain), topics.ALL)
        yield made


Broken = tuple[str, Mapping[str, str], str]


def broken(secured: Secured, how: str) -> Broken:
    """(address, options, what the client says)."""
    return {
        "password, SCRAM": (secured.sasl, secured.sasl_options(password="wrong"), "Authentication failed"),
        "password, PLAIN": (
            secured.sasl,
            secured.sasl_options("PLAIN", password="wrong"),
            "Invalid username or password",
        ),
        "user": (secured.sasl, secured.sasl_options("PLAIN", user="nobody"), "Invalid username or password"),
        "mechanism": (secured.sasl, secured.sasl_options("SCRAM-SHA-512"), "supported mechanisms: PLAIN,SCRAM-SHA-256"),
        "foreign CA": (secured.tls, secured.tls_options(secured.foreign_ca), "certificate verify failed"),
        "other name": (
            secured.tls.replace("127.0.0.1", "localhost"),
            secured.tls_options(),
            "certificate verify failed",
        ),
        "SASL at a plain port": (secured.plain, secured.sasl_options(), "SCRAM-SHA-256 mechanism handshake failed"),
    }[how]


REFUSALS = (
    "password, SCRAM", "password, PLAIN", "user", "mechanism", "foreign CA", "other name", "SASL at a plain port",
)  # fmt: skip


@pytest.mark.parametrize("how", REFUSALS)
def test_who_is_not_let_in_is_told_the_client_s_own_reason(secured: Secured, how: str) -> None:
    address, options, reason = broken(secured, how)
    with pytest.raises(NotLetIn) as refused:
        kafka.describe(kafka.check(KafkaConfig(address, options)), ["items"])
    said = str(refused.value)
    assert reason in said
    assert "DRIFTLINE_KAFKA_OPTIONS" in said
    assert "is it running" not in said
    assert refused.value.code == Exit.REFUSED
    assert "wrong" not in said.replace("wrong call", "")  # the password


@pytest.mark.parametrize("to", ["tls", "sasl", "sasl_tls"])
def test_plain_text_at_a_port_that_wants_more_is_told_to_look_at_the_protocol(secured: Secured, to: str) -> None:
    with pytest.raises(kafka.BrokerAway, match=r"security\.protocol"):
        kafka.describe(KafkaConfig(getattr(secured, to)), ["items"], timeout_s=3)


VERBS = (["topics", "create"], ["alarms"], ["offsets", "rebind", "--yes"], ["verify"], ["simulate", "--users", "2"])


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_that_runs_once_ends_with_that_reason(
    verb: list[str],
    secured: Secured,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _given(monkeypatch, secured.sasl, secured.sasl_options(password="wrong"), database)
    assert run(verb) == Exit.REFUSED
    told = capsys.readouterr().err
    assert "Authentication failed" in told
    assert "is it running" not in told


def test_ingest_says_so_while_it_tries_again_and_goes_on_once_it_is_let_in(secured: Secured, database: str) -> None:
    Sender(KafkaConfig(secured.plain)).send(event("e1"))
    config = KafkaConfig(secured.sasl, secured.sasl_options(user="carol", password="hunter2"))
    process = ingest(database, config)
    with running(process) as future:

        def why() -> str:
            return str(process._health.report().get("ingest", {}).get("why", ""))

        eventually(lambda: "Authentication failed" in why() or future.done())
        assert not process._health.is_ready()
        assert "hunter2" not in why()
        let_in(KafkaConfig(secured.plain), "carol", password="hunter2")
        eventually(process._health.is_ready, within_s=40)
        eventually(lambda: process.totals.accepted >= 1)
    future.result(30)


@pytest.mark.parametrize("way", ["PLAIN", "SCRAM-SHA-256", "SSL", "SASL_SSL", "pem"])
def test_whoever_is_let_in_is_so_in_ingest_and_in_drift(secured: Secured, database: str, way: str) -> None:
    """One set of options for two clients: librdkafka and aiokafka."""
    config = kafka.check(KafkaConfig(*_way(secured, way)))
    Sender(config).send(event(f"by {way}"))
    assert ingest_once(database, config).accepted >= 1
    assert "by " + way in {identity[2] for identity in taken(database).identities}
    send(config, 1, 2, 3)
    health, stop = Health("drift"), Stop()
    name = way.replace("-", "").lower()
    drift = DriftProcess(kafka_config=config, settings=DriftSettings(group=f"drift-{name}"), health=health, stop=stop)
    with running_drift(drift, stop) as future:
        eventually(lambda: drift.totals.records >= 3 or future.done(), within_s=60)
    assert future.result(30).records >= 3


def test_drift_says_why_it_is_not_let_in(secured: Secured) -> None:
    health, stop = Health("drift"), Stop()
    config = KafkaConfig(secured.sasl, secured.sasl_options(password="wrong"))
    drift = DriftProcess(kafka_config=config, settings=DriftSettings(), health=health, stop=stop)
    with running_drift(drift, stop) as future:
        eventually(lambda: "Authentication failed" in str(health.report()) or future.done())
        assert not health.is_ready()
    future.result(30)


def test_without_the_right_to_see_settings_ingest_says_so_once_and_works(secured: Secured, database: str) -> None:
    config = KafkaConfig(secured.sasl, secured.sasl_options(user=LIMITED))
    with pytest.raises(NoPermission):
        kafka.topic_configs(config, ["items"])
    Sender(KafkaConfig(secured.plain)).send(event("seen by bob"))
    with structlog.testing.capture_logs() as told:
        assert ingest_once(database, config).accepted >= 1
    assert [line["event"] for line in told].count("ingest.topic_settings_unknown") == 1


def test_more_copies_than_brokers_is_a_wrong_call(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _given(monkeypatch, secured.plain, {})
    monkeypatch.setenv("DRIFTLINE_TOPIC_PREFIX", "copies.")
    assert run(["topics", "create", "--replication", "9"]) == Exit.USAGE
    told = capsys.readouterr().err
    assert "--replication" in told
    assert "credentials" not in told
    assert "replication factor" in told.lower()


@contextmanager
def running_drift(drift: DriftProcess, stop: Stop) -> Iterator[Future[DriftTotals]]:
    """In a thread; stopped at the end."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(drift.run)
        try:
            yield future
        finally:
            stop.set()


def _way(secured: Secured, way: str) -> tuple[str, Mapping[str, str]]:
    tls = secured.tls_options()
    pem = {"security.protocol": "SSL", "ssl.ca.pem": secured.ca.read_text()}
    return {
        "PLAIN": (secured.sasl, secured.sasl_options("PLAIN")),
        "SCRAM-SHA-256": (secured.sasl, secured.sasl_options()),
        "SSL": (secured.tls, tls),
        "SASL_SSL": (secured.sasl_tls, {**tls, **secured.sasl_options(), "security.protocol": "SASL_SSL"}),
        "pem": (secured.tls, pem),
    }[way]


def _given(monkeypatch: pytest.MonkeyPatch, address: str, options: Mapping[str, str], database: str = "") -> None:
    monkeypatch.setenv("DRIFTLINE_KAFKA_BOOTSTRAP", address)
    monkeypatch.setenv("DRIFTLINE_KAFKA_OPTIONS", json.dumps(dict(options)))
    if database:
        monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", database)
