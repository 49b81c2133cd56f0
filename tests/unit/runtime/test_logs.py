"""What leaves a process through its log: one line an event, neither people nor secrets, nothing that moves a cursor."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog

from runtime.kafka import KafkaConfig
from runtime.logs import LINE_BYTES, configure_logging

REPOSITORY = Path(__file__).parents[3]
PERSON, SECRET = "zyxperson-anna", "zyxsecret/geheim"
BOTH = pytest.mark.parametrize("format", ["json", "console"])


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


def test_log_lines_are_json_and_hide_people(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", process="ingest")
    log = structlog.get_logger("test")
    log.info("record.refused", user_id="alice", offset=7)
    log.info("record.refused", user_id="alice", offset=8, inner={"key": "alice"})
    log.debug("not shown")
    logging.getLogger("librdkafka").warning("broker %s away", "b1")
    found = lines(capfd)
    assert [line["event"] for line in found] == ["record.refused", "record.refused", "broker b1 away"]
    assert "alice" not in str(found)
    assert found[0]["user_id"] == found[1]["user_id"] == found[1]["inner"]["key"]
    assert found[0]["process"] == found[2]["process"] == "ingest"
    assert found[0]["timestamp"].endswith("Z")


def test_people_show_when_debugging_and_secrets_do_not(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", level="debug", hidden=[SECRET])
    log = structlog.get_logger("test")
    log.info("record.refused", user_id="alice")
    log.info("record.refused", error=ValueError(f"bob has {SECRET}"))
    said = capfd.readouterr().err
    assert "alice" in said
    assert "bob" in said
    assert SECRET not in said


@BOTH
def test_an_exception_is_logged_without_local_variables_and_without_what_a_foreign_error_says(
    capfd: pytest.CaptureFixture[str], format: Any
) -> None:
    configure_logging(format, hidden=[SECRET])

    def breaks(user: str, config: KafkaConfig) -> None:
        seen = {"of": user, "config": config}
        seen[user]

    try:
        breaks(PERSON, KafkaConfig("b:1", {"sasl.password": SECRET}))
    except KeyError:
        structlog.get_logger("test").exception("it.failed", of=7)
    (line,) = capfd.readouterr().err.splitlines()
    assert PERSON not in line
    assert SECRET not in line
    assert "KeyError" in line
    assert "test_logs.py" in line
    assert "breaks" in line


def test_a_foreign_errors_text_is_hidden_in_the_event_and_leaves_its_frames_readable(
    capfd: pytest.CaptureFixture[str],
) -> None:
    configure_logging("json")
    try:
        raise KeyError("test_logs")
    except KeyError as error:
        structlog.get_logger("test").exception("it.failed", why=f"because of {error}")
    (line,) = lines(capfd)
    assert line["why"] == "because of (hidden)"
    assert "test_logs.py" in line["exception"][0]["frames"][0]


def test_a_long_event_is_cut_and_stays_one_line_of_json(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    log = structlog.get_logger("test")
    log.warning("much", text="x" * 10**6, emoji="\U0001f600" * 10**4, members=list(range(10**5)))
    log.warning("many", **{f"field-{n}": "y" * 100 for n in range(500)})
    log.warning("deep", of={"a": {"b": {"c": {"d": {"e": {"f": ["x" * 99] * 99}}}}}}, number=10**5000, nan=float("nan"))
    log.warning("e" * 10**5)
    logging.getLogger("lib").error("%s", "z" * 10**6)
    raw = capfd.readouterr().err
    assert max(len(line.encode()) + 1 for line in raw.splitlines()) <= LINE_BYTES < 8192
    found = [json.loads(line, parse_constant=pytest.fail) for line in raw.splitlines()]
    assert len(found) == 5
    assert found[0]["text"].endswith("characters cut]")
    assert found[1]["event"] == "many"
    assert found[4]["logger"] == "lib"


@BOTH
def test_whatever_stands_in_a_text_an_event_is_one_line_and_rings_no_bell(
    capfd: pytest.CaptureFixture[str], format: Any
) -> None:
    configure_logging(format)
    unfit = "a\nb\r\x1b[31mc\x07\x9b2J\u2028d\u2029\u202ee\x85f\x0bg\udc80"
    structlog.get_logger("test").info(f"event {unfit}", text=unfit, inner={"x\ny": [unfit]})
    logging.getLogger("lib\n").warning(unfit)
    said = capfd.readouterr().err
    assert len(said.splitlines()) == 2  # str.splitlines knows all kinds of line ends
    assert not set(said) & set("\r\x1b\x07\x9b\u2028\u2029\u202e\x85\x0b")


@pytest.mark.parametrize("secret", [SECRET, "p@ss word", 'quo"te\\d', "gehe\u00efm", "true", "level"])
@BOTH
def test_a_secret_shows_in_no_line_however_it_is_spelt(
    capfd: pytest.CaptureFixture[str], format: Any, secret: str
) -> None:
    from urllib.parse import quote

    configure_logging(format, hidden=[secret])
    log = structlog.get_logger("test")
    log.info("config", text=f"got {secret} and {quote(secret, safe='')}", of=[{secret: secret}], error=OSError(secret))
    logging.getLogger("librdkafka").warning("sasl.password=%s", secret)
    said = capfd.readouterr().err
    found = str([json.loads(line) for line in said.splitlines()]) if format == "json" else said
    if secret == "level":  # a field of ours is called so
        found = found.replace("'level':", "").replace("[info", "").replace("[warning", "")
    assert secret not in found
    assert quote(secret, safe="") not in found
    assert "**********" in found


def test_the_password_of_any_url_is_hidden_though_nobody_named_it(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    structlog.get_logger("test").error("away", error=OSError("no answer from ftp://me:hunter2@there/x?sslpassword=h3"))
    said = capfd.readouterr().err
    assert "ftp://me:**********@there" in said
    assert "hunter2" not in said
    assert "h3" not in said


def test_a_log_call_that_cannot_be_formatted_says_so_and_not_what_it_was_given(
    capfd: pytest.CaptureFixture[str],
) -> None:
    configure_logging("json")
    logging.getLogger("lib").warning("%d of %s", PERSON)
    (found,) = lines(capfd)
    assert (found["event"], found["logger"]) == ("log.failed", "lib")


UNCAUGHT = f"""
import asyncio, gc, logging, sys, threading, warnings
from runtime.logs import catch_the_uncaught, configure_logging

configure_logging(sys.argv[1], process="p", hidden=["{SECRET}"])
catch_the_uncaught()
person, password = "{PERSON}", "{SECRET}"

def breaks(user=person, secret=password):
    raise KeyError(user, secret)

class Broken:
    def __del__(self):
        breaks()
    def __str__(self):
        breaks()

class Worse(Exception):
    def __str__(self):
        raise KeyError(person)

async def forgotten():
    task = asyncio.get_running_loop().create_task(later(person))
    await asyncio.sleep(0.01)
    asyncio.get_running_loop().call_soon(lambda user: breaks(user), person)
    await asyncio.sleep(0.01)

async def later(user):
    breaks(user)

thread = threading.Thread(target=breaks, args=(person,), name="worker")
thread.start(); thread.join()
asyncio.run(forgotten()); gc.collect()
kept = Broken(); del kept
warnings.warn(f"the value {{person!r}} is odd")
log = logging.getLogger("library")
log.error("it said %r", KeyError(person))
log.error("it holds %s", {{"user": person}})
log.error("it names %(error)s", {{"error": KeyError(person)}})
log.error("it cannot be shown: %s", Broken())
log.error(KeyError(person))
try:
    try:
        breaks()
    except KeyError as error:
        raise RuntimeError(f"wrapped: {{error}}") from error
except RuntimeError as error:
    log.exception("it failed: %s", error)
    error.add_note(person)
    log.exception("with a note")
try:
    raise ExceptionGroup("several " + person, [KeyError(person), Worse()])
except ExceptionGroup:
    log.exception("a group")
breaks()
"""


@BOTH
def test_errors_that_nobody_caught_and_those_of_libraries_are_lines_that_name_nobody(format: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", UNCAUGHT, format], capture_output=True, text=True, timeout=60, cwd=REPOSITORY
    )
    said = ended.stderr
    assert ended.returncode == 1
    assert PERSON not in said
    assert SECRET not in said
    assert "Traceback" not in said
    events = [
        *("thread.uncaught", "Task exception was never retrieved", "Exception in callback", "error.ignored", "warning"),
        *("it said", "it holds", "it cannot be shown", "it failed", "with a note", "a group", "process.uncaught"),
    ]
    assert [event for event in events if event not in said] == []
    assert said.count("KeyError") >= 9
    if format == "json":
        assert all(json.loads(line)["process"] == "p" for line in said.splitlines() if "log.failed" not in line)
