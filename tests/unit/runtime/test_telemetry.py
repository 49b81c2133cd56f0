"""Health and the admin server."""

from __future__ import annotations

import socket
import struct

import httpx
import pytest

from runtime.admin_app import AdminServer, Health
from runtime.lifecycle import ConfigurationError


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


def test_what_is_watched_is_asked_at_each_look() -> None:
    health, trouble = Health("ingest"), [""]
    health.watch("postgres", lambda: trouble[0])
    health.set_ready("ingest", True)
    with AdminServer(health, port=0) as server, httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        assert client.get("/readyz").json() == {"ready": True, "parts": {"ingest": {"ready": True, "why": ""}}}
        trouble[0] = "Postgres has not answered for 12 s"
        assert "driftline_ready 0.0" in client.get("/metrics").text
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["parts"]["postgres"] == {"ready": False, "why": trouble[0]}
        trouble[0] = ""
        assert client.get("/readyz").status_code == 200
        assert "driftline_ready 1.0" in client.get("/metrics").text


def test_a_taken_port_is_said_to_be_taken() -> None:
    with AdminServer(Health(), port=0) as first, pytest.raises(ConfigurationError, match="cannot listen"):
        AdminServer(Health(), port=first.port)


def test_without_a_port_there_is_no_server() -> None:
    with AdminServer(Health(), port=None) as server:
        assert server.port is None


def test_a_process_without_parts_is_not_ready() -> None:
    assert not Health().is_ready()


def test_a_client_that_breaks_its_connection_leaves_no_word_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    with AdminServer(Health(), port=0) as server:
        for sent in (b"", b"GET /metrics", b"GET /metrics HTTP/1.1\r\n\r\n", b"\xff\x00 / \r\n\r\n", b"\r\n" * 9):
            for _ in range(5):
                client = socket.create_connection(("127.0.0.1", server.port or 0))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(sent)
                client.close()  # a reset: what is sent to it meets nobody
        assert httpx.get(f"http://127.0.0.1:{server.port}/healthz").status_code == 200
    assert capfd.readouterr() == ("", "")


def test_a_silent_client_is_let_go_without_a_word(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.admin_app._QuietHandler.timeout", 0.2)
    with AdminServer(Health(), port=0) as server, socket.create_connection(("127.0.0.1", server.port or 0)) as client:
        assert client.recv(1) == b""  # closed from the other side
    assert capfd.readouterr() == ("", "")
