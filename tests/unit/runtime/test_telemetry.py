"""Log lines, health and the admin server."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import httpx
import pytest
import structlog

from runtime.lifecycle import Usage
from runtime.logs import configure_logging
from runtime.telemetry import AdminServer, Health


@pytest.fixture
def _logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_the_pages_tell_health_readiness_and_metrics() -> None:
    health = Health("kafka")
    with AdminServer(health, port=0) as server, httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        assert client.get("/healthz").status_code == 200
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json() == {"ready": False, "parts": {"kafka": {"ready": False, "why": "starting"}}}
        health.set_ready("kafka", True)
        assert client.get("/readyz").status_code == 200
        assert "driftline_ready 1.0" in client.get("/metrics").text
        health.set_ready("postgres", False, "no answer from db:5432")
        assert client.get("/readyz").json()["parts"]["postgres"]["why"] == "no answer from db:5432"
        assert client.get("/elsewhere").status_code == 404


def test_a_taken_port_is_said_to_be_taken() -> None:
    with AdminServer(Health(), port=0) as first, pytest.raises(Usage, match="cannot listen"):
        AdminServer(Health(), port=first.port)


def test_without_a_port_there_is_no_server() -> None:
    with AdminServer(Health(), port=None) as server:
        assert server.port is None


def test_a_process_without_parts_is_not_ready() -> None:
    assert not Health().is_ready()


@pytest.mark.usefixtures("_logging_restored")
def test_log_lines_are_json_and_hide_people(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", process="ingest")
    log = structlog.get_logger("test")
    log.info("record.refused", user_id="alice", offset=7)
    log.info("record.refused", user_id="alice", offset=8)
    log.debug("not shown")
    logging.getLogger("librdkafka").warning("broker %s away", "b1")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["record.refused", "record.refused", "broker b1 away"]
    assert "alice" not in str(lines)
    assert lines[0]["user_id"] == lines[1]["user_id"]
    assert lines[0]["process"] == lines[2]["process"] == "ingest"
    assert lines[0]["timestamp"].endswith("Z")


@pytest.mark.usefixtures("_logging_restored")
def test_people_show_when_debugging(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", level="debug")
    structlog.get_logger("test").info("record.refused", user_id="alice")
    assert "alice" in capfd.readouterr().err
