"""Where settings come from, and what a wrong one is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from runtime import settings
from runtime.lifecycle import ConfigurationError, Exit
from runtime.redaction import HIDDEN


@pytest.fixture(autouse=True)
def _in_a_folder_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_anything_the_defaults_hold() -> None:
    found = settings.load()
    assert found.postgres_url is None
    assert found.bundles == str(Path("driftline-data/bundles").absolute())
    assert found.ingest.batch_records == 60_000
    assert found.snapshots == Path("driftline-data/snapshots")


def test_an_unknown_variable_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTLINE_POSTGRES", "postgresql://h/d")
    with pytest.raises(ConfigurationError, match="unknown setting DRIFTLINE_POSTGRES ") as caught:
        settings.load()
    assert caught.value.code is Exit.USAGE
    assert "DRIFTLINE_POSTGRES_URL" in str(caught.value)


def test_an_unknown_variable_of_a_group_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTLINE_INGEST__BATCH", "7")
    with pytest.raises(ConfigurationError, match="DRIFTLINE_INGEST__BATCH: no such setting"):
        settings.load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DRIFTLINE_TRAIN__STEP_ROWS", "0"),
        ("DRIFTLINE_INGEST__PORT", "70000"),
        ("DRIFTLINE_LOG_FORMAT", "xml"),
        ("DRIFTLINE_KAFKA_OPTIONS", "{'not': json"),
        ("DRIFTLINE_TOPIC_PREFIX", "no spaces"),
        ("DRIFTLINE_INGEST", "5"),
    ],
)
def test_an_unfit_value_is_refused_and_not_repeated(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        settings.load()
    assert name.split("__")[-1].removeprefix("DRIFTLINE_").lower() in str(caught.value).lower()
    if len(value) > 2:
        assert value not in str(caught.value)


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "driftline.toml").write_text('kafka_bootstrap = "file:1"\n[ingest]\nbatch_records = 5\nlinger_s = 2\n')
    monkeypatch.setenv("DRIFTLINE_INGEST__BATCH_RECORDS", "6")
    found = settings.load()
    assert found.kafka_bootstrap == "file:1"
    assert (found.ingest.batch_records, found.ingest.linger_s) == (6, 2.0)


def test_a_file_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.toml").write_text('topic_prefix = "b."\n')
    monkeypatch.setenv("DRIFTLINE_CONFIG", "other.toml")
    assert settings.load().topic_prefix == "b."


def test_a_named_file_that_is_absent_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="unreadable"):
        settings.load(Path("absent.toml"))


def test_an_unknown_setting_in_the_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "driftline.toml").write_text("[score]\nprot = 1\n")
    with pytest.raises(ConfigurationError, match="SCORE__PROT: no such setting"):
        settings.load()


def test_a_port_may_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTLINE_TRAIN__PORT", "none")
    assert settings.load().train.port is None


def test_secrets_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", "postgresql://me:hunter2@db:5432/d?sslpassword=hunter2")
    monkeypatch.setenv(
        "DRIFTLINE_KAFKA_OPTIONS", '{"sasl.password": "hunter2", "ssl.key.pem": "hunter2", "sasl.username": "me"}'
    )
    monkeypatch.setenv("DRIFTLINE_EXPORT__TARGET", "ftp://me:hunter2@files/bundles")
    monkeypatch.setenv("DRIFTLINE_EXPORT__OPTIONS", '{"key": "hunter2"}')
    found = settings.load()
    shown = found.redacted()
    assert "hunter2" not in f"{found!r} {found} {shown}"
    assert shown["postgres_url"].startswith("postgresql://me:")
    assert shown["postgres_url"].split("@")[1].startswith("db:5432/d")
    assert shown["kafka_options"]["sasl.username"] == "me"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p@ss@h/d",
        "postgresql://u:p@ss/w?x#y@h/d",
        "postgresql://u@corp:p@ss@h/d",
        "postgresql://u/x:p@ss@h/d",
        "postgresql://u:line\np@ss@h/d",
        "host=h password=p@ss",
        "host=h password = 'a p@ss'",
        "postgresql:///d?host=h&password=p@ss",
        "postgresql:///d?sslpassword=a&p@ss&host=h",
        "s3://bucket/path?secret=p@ss",
        "s3://bucket/path?endpoint=x&AWS_SECRET_ACCESS_KEY=p@ss&region=y",
        "https://store/x?sig=p@ss",
        "https://store/x?api_key=p@ss",
        "https://store/x?access_token=p@ss",
    ],
)
def test_a_password_is_hidden_wherever_a_url_has_it(url: str) -> None:
    assert "p@ss" not in settings.hide_password(url)
    assert HIDDEN in settings.hide_password(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me@db:5432/d?sslmode=require&application_name=x",
        "postgresql://one:5432,two:5433/d?target_session_attrs=read-write",
        "s3://bucket/path?region=y",
        "/var/lib/bundles",
    ],
)
def test_an_address_without_a_secret_is_shown_as_it_is(url: str) -> None:
    assert settings.hide_password(url) == url


def test_secrets_of_urls_in_other_settings_are_hidden_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTLINE_EXPORT__TARGET", "s3://bucket/x?secret=hunter2")
    monkeypatch.setenv("DRIFTLINE_KAFKA_OPTIONS", '{"http.url": "https://me:hunter2@registry/x?secret=hunter2"}')
    assert "hunter2" not in str(settings.load().redacted())


def test_settings_cannot_be_changed_afterwards() -> None:
    found = settings.load()
    with pytest.raises(ValidationError):
        found.ingest.batch_records = 7


@pytest.mark.parametrize(
    "group", [settings.Settings, settings.IngestSettings, settings.TrainSettings, settings.ScoreSettings]
)
def test_every_setting_is_described(group: type[BaseModel]) -> None:
    for name, entry in group.model_fields.items():
        is_group = isinstance(entry.default, BaseModel)
        assert entry.description or is_group, name


KUBERNETES = {
    "DRIFTLINE_SERVICE_HOST": "10.96.0.7",
    "DRIFTLINE_SERVICE_PORT": "9103",
    "DRIFTLINE_SERVICE_PORT_HTTP": "9103",
    "DRIFTLINE_PORT": "tcp://10.96.0.7:9103",
    "DRIFTLINE_PORT_9103_TCP": "tcp://10.96.0.7:9103",
    "DRIFTLINE_PORT_9103_TCP_PROTO": "tcp",
    "DRIFTLINE_PORT_9103_TCP_PORT": "9103",
    "DRIFTLINE_PORT_9103_TCP_ADDR": "10.96.0.7",
    "DRIFTLINE_SCORE_PORT": "tcp://10.96.0.8:9103",
    "DRIFTLINE_SCORE_SERVICE_HOST": "fd00::8",
    "DRIFTLINE_SCORE_SERVICE_PORT": "9103",
    "DRIFTLINE_SCORE_SERVICE_PORT_HTTP_METRICS": "9103",
    "DRIFTLINE_SCORE_PORT_9103_UDP": "udp://[fd00::8]:9103",
    "DRIFTLINE_INGEST_2_PORT": "sctp://10.96.0.9:53",
}


def test_what_kubernetes_sets_for_services_of_our_name_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings.load()
    for name, value in KUBERNETES.items():
        monkeypatch.setenv(name, value)
    assert settings.load() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DRIFTLINE_PORT", "9103"),
        ("DRIFTLINE_PORT", ""),
        ("DRIFTLINE_SCORE_PORT", "9103"),
        ("DRIFTLINE_SERVICE_HOST", "score.example.org"),
        ("DRIFTLINE_SERVICE_PORT", "http"),
        ("DRIFTLINE_SCORE_TOKEN", "tcp://10.96.0.8:9103"),
        ("DRIFTLINE_SERVICE_HOSTS", "10.96.0.7"),
        ("DRIFTLINE_PORT_9103_TCP_ADDRESS", "10.96.0.7"),
        ("DRIFTLINE_SCORE__PORTS", "tcp://10.96.0.8:9103"),
    ],
)
def test_what_only_looks_like_it_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name):
        settings.load()


UNFIT_SECRETS = ("", " ", "s3cret ", "\ts3cret", "s3cret\n", "s3cret\u00a0")


@pytest.mark.parametrize("secret", UNFIT_SECRETS)
def test_a_token_that_is_empty_or_has_blank_edges_is_refused(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("DRIFTLINE_SCORE__TOKEN", secret)
    with pytest.raises(ConfigurationError, match=r"DRIFTLINE_SCORE__TOKEN: .*must not be empty") as caught:
        settings.load()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("secret", UNFIT_SECRETS)
@pytest.mark.parametrize(
    ("variable", "options", "named"),
    [
        ("DRIFTLINE_KAFKA_OPTIONS", lambda secret: {"sasl.username": "me", "sasl.password": secret}, "sasl.password"),
        ("DRIFTLINE_KAFKA_OPTIONS", lambda secret: {"ssl.key.password": secret}, "ssl.key.password"),
        ("DRIFTLINE_EXPORT__OPTIONS", lambda secret: {"key": "k", "secret": secret}, "secret"),
        ("DRIFTLINE_EXPORT__OPTIONS", lambda secret: {"key": secret}, "key"),
        (
            "DRIFTLINE_EXPORT__OPTIONS",
            lambda secret: {"client_kwargs": {"aws_secret_access_key": secret}},
            "aws_secret_access_key",
        ),
    ],
)
def test_so_is_a_secret_among_options(
    monkeypatch: pytest.MonkeyPatch, variable: str, options: Callable[[str], object], named: str, secret: str
) -> None:
    monkeypatch.setenv(variable, json.dumps(options(secret)))
    with pytest.raises(ConfigurationError, match=f"{variable}: .*{named}: a secret must not be empty") as caught:
        settings.load()
    assert "s3cret" not in str(caught.value)


def test_a_secret_in_a_file_is_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "driftline.toml").write_text('[score]\ntoken = ""\n')
    with pytest.raises(ConfigurationError, match="DRIFTLINE_SCORE__TOKEN"):
        settings.load()


def test_a_key_in_pem_ends_with_a_line_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----\n"
    monkeypatch.setenv("DRIFTLINE_KAFKA_OPTIONS", json.dumps({"ssl.key.pem": pem, "client.id": ""}))
    monkeypatch.setenv("DRIFTLINE_SCORE__TOKEN", "two words")
    assert settings.load().kafka_options["ssl.key.pem"] == pem
