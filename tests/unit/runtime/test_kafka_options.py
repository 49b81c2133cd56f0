"""Which options a user may set, and what is said of the others."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import confluent_kafka
import pytest

from runtime import kafka, kafka_options
from runtime.kafka import KafkaConfig
from runtime.lifecycle import ConfigurationError, Exit


def refusal(options: dict[str, str]) -> str:
    with pytest.raises(ConfigurationError) as refused:
        kafka.check(KafkaConfig("127.0.0.1:1", options))
    assert refused.value.code == Exit.USAGE
    return str(refused.value)


REFUSED = {
    "acks": "1",
    "allow.auto.create.topics": "true",
    "api.version.fallback.ms": "10",
    "api.version.request": "false",
    "auto.commit.enable": "true",
    "auto.commit.interval.ms": "100",
    "auto.offset.reset": "latest",
    "bootstrap.servers": "elsewhere:1",
    "broker.version.fallback": "0.9.0",
    "check.crcs": "false",
    "delivery.report.only.error": "true",
    "delivery.timeout.ms": "10",
    "enable.auto.commit": "true",
    "enable.auto.offset.store": "true",
    "enable.gapless.guarantee": "true",
    "enable.idempotence": "false",
    "enable.partition.eof": "true",
    "group.id": "another",
    "group.instance.id": "pod-0",
    "group.protocol": "consumer",
    "group.protocol.type": "consumer",
    "group.remote.assignor": "uniform",
    "internal.termination.signal": "15",
    "isolation.level": "read_uncommitted",
    "message.timeout.ms": "0",
    "metadata.broker.list": "elsewhere:1",
    "offset.store.method": "none",
    "offset.store.path": "/tmp",
    "offset.store.sync.interval.ms": "0",
    "partition.assignment.strategy": "cooperative-sticky",
    "partitioner": "random",
    "plugin.library.paths": "monitoring-interceptor",
    "queuing.strategy": "lifo",
    "request.required.acks": "0",
    "session.timeout.ms": "45000",
    "topic.blacklist": "events.*",
    "transactional.id": "t",
}


@pytest.mark.parametrize(("name", "value"), REFUSED.items())
def test_an_option_that_the_promise_stands_on_is_refused_by_its_name(name: str, value: str) -> None:
    said = refusal({name: value})
    assert said.startswith(name)
    assert "remove it" in said
    assert "DRIFTLINE_KAFKA_OPTIONS" in said


def test_the_table_above_names_every_option_that_is_refused() -> None:
    assert REFUSED.keys() == kafka_options.PROMISED.keys() | kafka_options.PROMISED_VALUES.keys()


@pytest.mark.parametrize("name", ["auto.offset.reset", "acks", "enable.auto.commit"])
def test_an_option_of_a_topic_is_known_under_its_longer_name_too(name: str) -> None:
    assert name in refusal({f"topic.{name}": "0"})


def test_all_that_is_wrong_is_said_at_once_and_no_value_is_repeated() -> None:
    said = refusal({"acks": "1", "group.id": "hunter2", "sasl.pasword": "hunter2"})
    assert "acks decides" in said
    assert "group.id would" in said
    assert "did you mean sasl.password?" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("sasl.passwrd", "sasl.password"),
        ("sasl_password", "sasl.password"),
        ("security.protokol", "security.protocol"),
        ("ssl.ca.locations", "ssl.ca.location"),
        ("Fetch.Max.Bytes", "fetch.max.bytes"),
    ],
)
def test_a_slip_of_the_pen_is_told_the_nearest_name(slip: str, meant: str) -> None:
    assert f"{slip!r} is no option of the Kafka client; did you mean {meant}?" in refusal({slip: "x"})


def test_what_only_a_program_can_set_is_refused() -> None:
    for name in ("error_cb", "logger", "on_commit", "oauth_cb", "default.topic.config", "opaque", "ssl_key"):
        assert f"{name} can be set by a program only" in refusal({name: "x"})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"security.protocol": "SASL"}, 'Invalid value "SASL" for configuration property "security.protocol"'),
        ({"linger.ms": "soon"}, "Invalid value for configuration property"),
        ({"fetch.max.bytes": "1"}, "`fetch.max.bytes` must be >= `message.max.bytes`"),
        ({"retries": "0"}, "`retries` must be set >= 1"),
        ({"max.in.flight": "10"}, "`max.in.flight` must be set <= 5"),
        ({"security.protocol": "SSL", "ssl.ca.location": "/nowhere"}, "ssl.ca.location failed"),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM"}, "Unsupported SASL mechanism: SCRAM"),
        ({"partitioner": "nope"}, "partitioner"),
    ],
)
def test_a_value_that_the_client_does_not_take_is_told_in_its_own_words(options: dict[str, str], reason: str) -> None:
    assert reason in refusal(options)


def test_what_reaches_and_tunes_is_taken() -> None:
    options = {
        "client.id": "mine",
        "security.protocol": "sasl_ssl",
        "sasl.mechanisms": "PLAIN",
        "sasl.username": "ann",
        "sasl.password": "secret",
        "check.crcs": "true",
        "partitioner": "murmur2_random",
        "linger.ms": "50",
        "fetch.min.bytes": "10",
        "topic.request.timeout.ms": "10000",
        "client.rack": "a",
    }
    assert kafka.check(KafkaConfig("127.0.0.1:1", options)).options == options


def test_a_client_gets_what_it_knows_and_no_other_clients_options(caplog: pytest.LogCaptureFixture) -> None:
    config = KafkaConfig("127.0.0.1:1", {"linger.ms": "50", "fetch.min.bytes": "10", "topic.acks": "all"})
    assert kafka_options.for_client(config.options, "consumer") == {"fetch.min.bytes": "10", "acks": "all"}
    assert kafka_options.for_client(config.options, "producer") == {"linger.ms": "50", "acks": "all"}
    assert kafka_options.for_client(config.options, "admin") == {"acks": "all"}
    kafka.check(KafkaConfig("127.0.0.1:1", {"linger.ms": "50", "fetch.min.bytes": "10"}))
    assert not [line for line in caplog.messages if "will be ignored" in line]


@pytest.mark.kafka
def test_nothing_that_slipped_through_wins_over_the_promise(kafka_topics: KafkaConfig) -> None:
    """`check` is the guard of the command line; behind it the clients keep what the promise stands on."""
    config = KafkaConfig(kafka_topics.bootstrap, {"topic.auto.offset.reset": "latest"}, kafka_topics.prefix)
    reader = kafka.consumer(config, group="reader")
    reader.assign([confluent_kafka.TopicPartition(config.physical("items"), 0, 7_000)])
    errors = []
    for _ in range(50):
        errors += [error.name() for message in reader.consume(1, 0.2) if (error := message.error()) is not None]
        if errors:
            break
    reader.close()
    assert errors == ["_AUTO_OFFSET_RESET"]


@pytest.mark.parametrize(
    ("bootstrap", "why"),
    [
        ("host:abc", "'abc' is no port"),
        ("host:0", "'0' is no port"),
        ("host:65536", "'65536' is no port"),
        ("host:", "'' is no port"),
        ("", "an address is empty"),
        ("a:1,,b:2", "an address is empty"),
        ("kafka://host:9092", "kafka:// does not belong there"),
        ("SASL_SSL://host:9092", "SASL_SSL:// does not belong there"),
        ("host/path", "is not host:port"),
        ("a b:1", "is not host:port"),
        ("ann:secret@host:9092", "a user belongs into options"),
        ("host:٩", "is no port"),
    ],
)
def test_an_address_that_is_none_is_refused(bootstrap: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match="DRIFTLINE_KAFKA_BOOTSTRAP") as refused:
        kafka.check(KafkaConfig(bootstrap))
    assert why in str(refused.value)
    assert "secret" not in str(refused.value)


def test_addresses_are_written_out() -> None:
    assert kafka_options.addresses(" a:1 , b,[::1]:9093,[fe80::1]") == ["a:1", "b:9092", "[::1]:9093", "[fe80::1]:9092"]
    assert kafka.check(KafkaConfig("b")).bootstrap == "b:9092"


def test_every_option_of_the_librdkafka_that_is_installed_is_decided_upon(tmp_path: Path) -> None:
    """A new version may bring options that override the promise: put each into its set before users can."""
    libraries = sorted(Path(confluent_kafka.__file__).parents[1].glob("confluent_kafka.libs/librdkafka*"))
    if not libraries:
        pytest.skip("confluent_kafka is not installed from a wheel")
    rdkafka, libc = ctypes.CDLL(str(libraries[0])), ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    libc.fclose.argtypes = rdkafka.rd_kafka_conf_properties_show.argtypes = [ctypes.c_void_p]
    out = libc.fopen(os.fsencode(tmp_path / "list"), b"w")
    rdkafka.rd_kafka_conf_properties_show(out)
    libc.fclose(out)
    rows = [line.partition("|")[0].strip() for line in (tmp_path / "list").read_text().splitlines() if " | " in line]
    listed = {name for name in rows if name and name != "Property"}
    assert len(listed) > 150
    assert listed - kafka_options.KNOWN == set()
    ours = {"default.topic.config", "logger", "oauth_cb", "on_commit", "on_delivery"}  # confluent_kafka's own
    assert kafka_options.KNOWN - listed <= ours
