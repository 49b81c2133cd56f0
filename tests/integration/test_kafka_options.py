"""Options of Kafka that a user sets wrongly: each verb says so at once, before anything is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from driftline.cli import run
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit
from tests.integration.feeding import query

VERBS = (
    ["topics", "create"],
    ["ingest", "--once", "--port", "none"],
    ["train", "--once", "--port", "none"],
    ["score", "--port", "0"],
    ["drift", "--port", "none"],
    ["verify"],
    ["alarms"],
    ["offsets", "rebind", "--yes"],
    ["simulate", "--users", "2", "--days", "0.01"],
    ["replay", "FILE", "--user", "user", "--time", "time"],
    ["dlq", "replay", "1:1"],
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "events.csv"
    made.write_text("user,time\nann,2026-01-01T00:00:00Z\n")
    return made


def given(monkeypatch: pytest.MonkeyPatch, database: str, config: KafkaConfig, options: object) -> None:
    monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", database)
    monkeypatch.setenv("DRIFTLINE_KAFKA_BOOTSTRAP", config.bootstrap)
    monkeypatch.setenv("DRIFTLINE_TOPIC_PREFIX", config.prefix)
    monkeypatch.setenv("DRIFTLINE_KAFKA_OPTIONS", json.dumps(options))


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_refuses_an_option_that_overrides_the_promise(
    verb: list[str],
    file: Path,
    database: str,
    tansu_topics: KafkaConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given(monkeypatch, database, tansu_topics, {"auto.offset.reset": "latest"})
    assert run([str(file) if word == "FILE" else word for word in verb]) == Exit.USAGE
    told = capsys.readouterr().err
    assert "auto.offset.reset decides what happens to deleted ranges; Driftline refuses instead; remove it" in told
    assert "DRIFTLINE_KAFKA_OPTIONS" in told
    assert query(database, "SELECT count(*) FROM stream_offset") == [(0,)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sasl.passwrd": "hunter2"}, "did you mean sasl.password?"),
        ({"security.protocol": "SASL"}, 'Invalid value "SASL" for configuration property "security.protocol"'),
        ({"socket.timeout.ms": "soon"}, "Invalid value for configuration property"),
        ({"sasl.password": ["hunter2"]}, "DRIFTLINE_KAFKA_OPTIONS__SASL.PASSWORD: Input should be a valid string"),
        (["hunter2"], "DRIFTLINE_KAFKA_OPTIONS: Input should be a valid dictionary"),
    ],
)
def test_a_mistyped_option_is_a_wrong_call_in_a_sentence(
    options: object,
    said: str,
    database: str,
    tansu_topics: KafkaConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given(monkeypatch, database, tansu_topics, options)
    assert run(["topics", "create"]) == Exit.USAGE
    told = capsys.readouterr().err
    assert said in told
    assert "unexpected" not in told
    assert "hunter2" not in told


@pytest.mark.parametrize("verb", [["topics", "create"], ["drift", "--port", "none"], ["alarms"]], ids=" ".join)
@pytest.mark.parametrize("bootstrap", ["127.0.0.1:abc", "kafka://127.0.0.1:9092", ""])
def test_an_address_that_is_none_is_a_wrong_call(
    verb: list[str], bootstrap: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRIFTLINE_KAFKA_BOOTSTRAP", bootstrap)
    assert run(verb) == Exit.USAGE
    told = capsys.readouterr().err
    assert "DRIFTLINE_KAFKA_BOOTSTRAP" in told
    assert "unexpected" not in told


def test_numbers_and_truths_of_json_are_taken(
    database: str, tansu_topics: KafkaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, database, tansu_topics, {"socket.keepalive.enable": True, "socket.timeout.ms": 20_000})
    assert run(["topics", "create"]) == Exit.DONE


def test_options_of_the_settings_file_are_looked_at_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "here.toml"
    config.write_text('kafka_bootstrap = "127.0.0.1:1"\n[kafka_options]\n"isolation.level" = "read_uncommitted"\n')
    assert run(["--config", str(config), "topics", "create"]) == Exit.USAGE
    assert "isolation.level decides whether aborted records are read" in capsys.readouterr().err


def test_drift_refuses_by_name_what_its_client_cannot_honour(
    database: str, tansu_topics: KafkaConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "OAUTHBEARER"}
    given(monkeypatch, database, tansu_topics, options)
    assert run(["drift", "--port", "none"]) == Exit.USAGE
    assert "`drift` cannot honour sasl.mechanism=OAUTHBEARER" in capsys.readouterr().err
