"""The command line as people meet it: help, exit codes, settings, what stands on stdout and what on stderr."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from confluent_kafka import KafkaError, KafkaException
from pydantic import SecretStr

from driftline.asof import AsOf, parse
from driftline.cli import app, run
from driftline.cli_context import Session
from driftline.local import running_stack
from driftline.local.running_stack import Stack
from runtime.lifecycle import ConfigurationError, Exit, OperatorActionRequired

HERE = Stack(
    postgres_url="postgresql://localhost/here",
    kafka_bootstrap="localhost:1",
    data_dir="/somewhere",
    score_url="http://localhost:2",
    metrics={"ingest": "http://localhost:3/metrics"},
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings file and no running stack in the working directory."""
    monkeypatch.chdir(tmp_path)


def verbs() -> Iterator[tuple[str, ...]]:
    """All verbs, as words."""
    for name, command in typer.main.get_group(app).commands.items():
        inner = getattr(command, "commands", None)
        yield from [(name, each) for each in inner] if inner else [(name,)]


@pytest.mark.parametrize("verb", list(verbs()), ids=" ".join)
def test_each_verb_shows_an_example_that_starts_with_itself(
    verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*verb, "--help"]) == Exit.DONE
    _, _, examples = capsys.readouterr().out.partition("Example")
    lines = [shlex.split(line.strip()) for line in examples.splitlines()[1:] if line.strip()]
    assert lines
    assert all(line[: len(verb) + 1] == ["driftline", *verb] for line in lines)


PROMISED = (
    "up, topics create, migrate, ingest, train, score, simulate, replay, user, status, offsets show, offsets rebind, "
    "dlq list, dlq show, dlq replay, snapshots list, snapshots show, snapshots verify, verify, config show, maintain, "
    "export, bundle check, bundle list, "
    "erase"
)


def test_all_promised_verbs_are_there() -> None:
    assert set(PROMISED.split(", ")) <= {" ".join(verb) for verb in verbs()}


@pytest.mark.parametrize("verb", ["migrate", "status", "verify", "ingest", "offsets rebind", "dlq list"])
def test_without_addresses_a_verb_says_so_and_names_the_way_on(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb.split()) == Exit.USAGE
    told = capsys.readouterr()
    assert "DRIFTLINE_POSTGRES_URL" in told.err
    assert "driftline up" in told.err
    assert told.out == ""


def test_an_unknown_option_is_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--nonsense"]) == Exit.USAGE
    assert "--nonsense" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["ingest", "train", "maintain", "export"])
@pytest.mark.parametrize("port", ["70000", "-1", "nobody"])
def test_an_unfit_port_is_a_wrong_call_that_names_what_fits(
    verb: str, port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([verb, "--port", port]) == Exit.USAGE
    assert f"'{port}' is neither a TCP port (0 to 65535) nor \"none\"" in " ".join(capsys.readouterr().err.split())


def test_an_unknown_setting_is_a_wrong_call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRIFTLINE_POSTGRES_URI", "x")
    assert run(["config", "show"]) == Exit.USAGE
    assert "DRIFTLINE_POSTGRES_URI" in capsys.readouterr().err


def test_postgres_out_of_reach_is_a_failure_with_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", "postgresql://me:secret@127.0.0.1:1/none")
    assert run(["offsets", "show"]) == Exit.FAILED
    told = capsys.readouterr().err
    assert "Postgres is away" in told
    assert "secret" not in told


def test_an_unexpected_error_is_one_short_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Session) -> str:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(Session, "postgres_url", property(broken))
    assert run(["migrate"]) == Exit.FAILED
    told = capsys.readouterr().err
    assert "ZeroDivisionError: of ours" in told
    assert "Traceback" not in told
    monkeypatch.setenv("DRIFTLINE_LOG_LEVEL", "debug")
    assert run(["migrate"]) == Exit.FAILED
    assert "Traceback" in capsys.readouterr().err


def test_what_a_kafka_client_raises_is_told_in_its_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Session) -> str:
        raise KafkaException(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION, "the leader moved"))

    monkeypatch.setattr(Session, "postgres_url", property(broken))
    assert run(["migrate"]) == Exit.FAILED
    told = capsys.readouterr().err
    assert "Kafka: the leader moved" in told
    assert "unexpected" not in told


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_config_show_hides_secrets(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", "postgresql://me:hunter2@db/driftline")
    monkeypatch.setenv("DRIFTLINE_KAFKA_OPTIONS", '{"sasl.password": "hunter3", "security.protocol": "SASL_SSL"}')
    assert run(["config", "show", *options]) == Exit.DONE
    shown = capsys.readouterr().out
    assert "hunter" not in shown
    assert "SASL_SSL" in shown
    assert "me:**********@db" in shown


def test_config_show_as_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show", "--json"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["ingest"]["group"] == "driftline-ingest"


def test_a_file_without_columns_is_a_wrong_call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRIFTLINE_KAFKA_BOOTSTRAP", "127.0.0.1:1")
    assert run(["replay", "events.csv"]) == Exit.USAGE
    assert "--user COL" in capsys.readouterr().err


# -- what a running `up` tells others --


def test_a_running_stack_completes_the_settings() -> None:
    file = Path("driftline-data") / running_stack.NAME
    with running_stack.held(file) as place:
        assert running_stack.find(file) is None  # it is still starting
        place.tell(HERE)
        call = Session()
        assert call.postgres_url == HERE.postgres_url
        assert call.kafka.bootstrap == HERE.kafka_bootstrap
        assert call.settings.data_dir == Path(HERE.data_dir)
    assert not file.parent.exists()
    with pytest.raises(ConfigurationError):
        _ = Session().postgres_url


def test_addresses_that_were_set_win_over_a_running_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", "postgresql://elsewhere/db")
    with running_stack.held(Path("driftline-data") / running_stack.NAME) as place:
        place.tell(HERE)
        call = Session()
        assert call.settings.postgres_url == SecretStr("postgresql://elsewhere/db")
        assert call.settings.kafka_bootstrap is None  # its broker belongs to its database


def test_a_stack_named_by_hand_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", "postgresql://elsewhere/db")
    with running_stack.held(tmp_path / "data" / running_stack.NAME) as place:
        place.tell(HERE)
        assert Session(stack_file=tmp_path / "data" / running_stack.NAME).postgres_url == HERE.postgres_url


def test_the_file_of_a_killed_stack_counts_as_none() -> None:
    file = Path("driftline-data") / running_stack.NAME
    file.parent.mkdir()
    file.write_text('{"left": "over"}')
    assert running_stack.find(file) is None


def test_two_stacks_in_one_folder_are_refused(tmp_path: Path) -> None:
    with (
        running_stack.held(tmp_path / running_stack.NAME),
        pytest.raises(OperatorActionRequired),
        running_stack.held(tmp_path / running_stack.NAME),
    ):
        pass


# -- as-of --

NOW = {1: 100, 2: 50}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "1:100,2:50"),
        ("2:7", "2:7"),
        ("1:3,2:4", "1:3,2:4"),
        ("2013-06-01", "1:100,2:50@2013-06-01T00:00:00Z"),
        ("2013-06-01T02:00:00+02:00", "1:100,2:50@2013-06-01T00:00:00Z"),
        ("1:3@2013-06-01T00:00:00.000001Z", "1:3@2013-06-01T00:00:00.000001Z"),
    ],
)
def test_an_as_of_is_resolved_to_a_form_that_is_read_again(text: str | None, expected: str) -> None:
    resolved = parse(text, NOW)
    assert str(resolved) == expected
    assert parse(str(resolved), {1: 1000, 2: 1000}) == resolved


@pytest.mark.parametrize("text", ["yesterday", "1:2,", "1:x", "3:1", "1:101", "1:1@noon", "", "@", "1:1@"])
def test_an_unfit_as_of_is_a_wrong_call(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse(text, NOW)


def test_without_a_time_everything_below_the_cursor_is_seen() -> None:
    assert parse("1:1", NOW) == AsOf({1: 1}, 2**63 - 1)
