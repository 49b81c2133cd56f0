"""Wrong requests, too many of them, and a Postgres that goes away."""

from __future__ import annotations

import socket
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Connection, make_url, text
from structlog.testing import capture_logs

from scoring.serve.state_reader import StateReader
from storage import read_point
from storage.engine import open_engine
from storage.sequences import history_reader
from storage.sequences.user_sequences import HistoryAsk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.score.conftest import Serve, World


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b'{"user_id": "\xff"}', "utf-8"),
        (b"{}", "missing required field `user_id`"),
        (b'{"user_id": 7}', "$.user_id"),
        (b'{"user_id": ""}', "$.user_id"),
        (b'{"user_id": "a\\u0000b"}', "U+0000"),
        (b'{"user_id": "a", "quantile": [0.5]}', "unknown field `quantile`"),
        (b'{"user_id": "a", "quantiles": [1.0]}', "$.quantiles[0]"),
        (b'{"user_id": "a", "at": "2026-01-01T00:00:00"}', "timezone"),
        (b'{"user_id": "' + b"a" * 300_000 + b'"}', "more than 262144 bytes"),
    ],
)
def test_a_request_that_cannot_be_understood_is_told_why(unserved: httpx.Client, body: bytes, said: str) -> None:
    reply = unserved.post("/v1/score", content=body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["reason"] == "invalid"
    assert said in error["message"] + error["where"]


def test_pages_that_do_not_exist_name_those_that_do(unserved: httpx.Client) -> None:
    assert unserved.get("/v2/score").status_code == 404
    reply = unserved.get("/v1/score")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert "POST /v1/score" in reply.json()["error"]["hint"]


def test_without_a_live_snapshot_requests_are_asked_to_come_again(serve: Serve, world: World) -> None:
    running = serve(ready=False)
    running.until(lambda: "no live snapshot" in running.client.get("/readyz").text)
    reply = running.post("ann")
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert reply.json()["error"] == {
        "reason": "not_ready",
        "message": "learner 'prompttpp' has no live snapshot yet",
        "where": "learner prompttpp",
        "hint": "let `driftline train --learner prompttpp` take one, and ask again",
    }
    assert running.client.get("/v1/models").json() == []
    assert running.client.get("/healthz").status_code == 200
    world.publish(1)
    running.until(running.ready)
    assert running.ask("ann")["events_seen"] == 0


def test_while_no_snapshot_can_be_read_requests_are_told_which_files_to_restore(serve: Serve, world: World) -> None:
    world.publish(1, spoil=Path.unlink)
    running = serve(ready=False)
    running.until(lambda: "is missing" in running.client.get("/readyz").text)
    error = running.post("ann").json()["error"]
    assert (error["reason"], error["where"]) == ("not_ready", "learner prompttpp")
    assert error["message"] == f"{world.file(1)} is missing"
    assert "restore these files" in error["hint"]


def test_requests_beyond_the_queue_are_refused_and_those_inside_answered(
    serve: Serve, world: World, people: list[str]
) -> None:
    running = serve(batch_size=1, max_queue=2)
    with ThreadPoolExecutor(6) as pool, _state_locked(world):
        first = pool.submit(running.post, people[0])
        running.until(lambda: _reads_that_wait(world) == 1)
        others = [pool.submit(running.post, user) for user in people[1:6]]
        refused = _first_done(others, 3)
        assert {reply.status_code for reply in refused} == {429}
        assert {reply.headers["retry-after"] for reply in refused} == {"1"}
        assert {reply.json()["error"]["reason"] for reply in refused} == {"overloaded"}
        assert not first.done()
    assert first.result().status_code == 200
    assert sorted(one.result().status_code for one in others) == [200, 200, 429, 429, 429]


def test_a_stop_finishes_what_was_asked_and_refuses_what_comes(serve: Serve, world: World, people: list[str]) -> None:
    running = serve()
    other = httpx.Client(base_url=running.client.base_url)
    other.get("/healthz")  # a connection that is open when the stop comes
    with ThreadPoolExecutor(1) as pool, _state_locked(world):
        asked = pool.submit(running.post, people[0])
        running.until(lambda: _reads_that_wait(world) == 1)
        running.stop.set()
        running.until(lambda: other.get("/readyz").status_code == 503)
        reply = other.post("/v1/score", json={"user_id": "late"})
        assert reply.status_code == 503
        assert "stopping" in reply.json()["error"]["message"]
        assert (reply.json()["error"]["where"], reply.json()["error"]["hint"]) == ("score", "ask another one")
        assert reply.headers["connection"] == "close"
    assert asked.result().status_code == 200
    other.close()


def test_a_postgres_that_goes_away_is_waited_for(serve: Serve, world: World, people: list[str]) -> None:
    running = serve()
    running.ask(people[0])
    world.engine.dispose()
    with capture_logs() as logs, psycopg.connect(_maintenance(world), autocommit=True) as admin:
        _close(admin, world)
        running.until(lambda: running.post(people[0]).status_code == 503)
        refused = running.post(people[0])
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["where"] == "Postgres"
        assert refused.json()["error"]["hint"].startswith("ask again")
        running.until(lambda: not running.ready())
        assert "user state cannot be read" in running.client.get("/readyz").text
        assert running.model() is not None
        admin.execute(f'ALTER DATABASE "{_name(world)}" ALLOW_CONNECTIONS true'.encode())
        running.until(running.ready)
    assert running.ask(people[0])["events_seen"] == 1
    assert len([line for line in logs if line["event"] == "score.postgres_away"]) == 1


def test_a_terminated_connection_is_replaced_without_a_refusal(serve: Serve, world: World, people: list[str]) -> None:
    running = serve()
    running.ask(people[0])
    with psycopg.connect(_maintenance(world), autocommit=True) as admin:
        _terminate(admin, world)
    assert running.ask(people[0])["events_seen"] == 1


def test_a_standby_is_not_read_and_its_primary_is_waited_for(
    serve: Serve, world: World, people: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = serve()
    real = read_point.standing
    with monkeypatch.context() as failover:
        failover.setattr(read_point, "standing", lambda *given: replace(real(*given), standby=True))
        running.until(lambda: not running.ready())
        error = running.post(people[0]).json()["error"]
        assert error["message"] == "user state cannot be read: this Postgres is a standby"
        assert (error["where"], "primary" in error["hint"]) == ("Postgres", True)
    running.until(running.ready)
    assert running.ask(people[0])["events_seen"] == 1


def test_user_state_is_read_in_one_repeatable_read_transaction_that_cannot_write(
    world: World, people: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = history_reader.read, []

    def read(connection: Connection, *given: Any, **named: Any) -> Any:
        settings = ("transaction_isolation", "transaction_read_only")
        seen.append([connection.scalar(text(f"SHOW {name}")) for name in settings])
        world.add((people[0], 999.0, "type-1"))  # committed behind the snapshot of this transaction
        return real(connection, *given, **named)

    monkeypatch.setattr(history_reader, "read", read)
    reader = StateReader(open_engine(world.url, application_name="test", pooled=True), learner="prompttpp")
    seen_state = reader.histories([HistoryAsk(user=people[0], before=2**62, last_n=8)])
    assert seen == [["repeatable read", "on"]]
    assert len(seen_state.found[0]) == 1


def test_a_client_that_leaves_in_the_middle_of_its_request_is_counted_and_forgotten(
    serve: Serve, people: list[str]
) -> None:
    running = serve()
    before = _requests(running.client).get("invalid", 0)
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        client.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    running.until(lambda: _requests(running.client).get("invalid", 0) == before + 1)


def test_outcomes_are_counted(serve: Serve, people: list[str]) -> None:
    running = serve()
    before = _requests(running.client)
    running.ask(people[0])
    running.client.post("/v1/score", content=b"{")
    after = _requests(running.client)
    assert after["answered"] == before.get("answered", 0) + 1
    assert after["invalid"] == before.get("invalid", 0) + 1


def test_without_the_token_nothing_under_v1_is_told(serve: Serve, people: list[str]) -> None:
    running = serve(token="open sesame")
    for given in (None, "Bearer wrong", "Basic open sesame", "Bearer", "open sesame"):
        headers = {} if given is None else {"authorization": given}
        reply = running.client.post("/v1/score", json={"user_id": people[0]}, headers=headers)
        assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
        assert reply.json()["error"]["reason"] == "unauthorized"
        assert running.client.get("/v1/models", headers=headers).status_code == 401
    running.client.headers["authorization"] = "Bearer open sesame"
    assert running.ask(people[0])["user_id"] == people[0]
    assert running.model() is not None
    del running.client.headers["authorization"]
    assert [running.client.get(page).status_code for page in ("/healthz", "/readyz", "/metrics")] == [200, 200, 200]


def test_a_request_whose_deadline_has_passed_is_refused_as_expired_and_not_answered(
    serve: Serve, people: list[str]
) -> None:
    running = serve()
    reply = running.post(people[0], deadline="2026-01-01T00:00:00Z")
    assert (reply.status_code, "retry-after" in reply.headers) == (504, False)
    assert reply.json()["error"]["reason"] == "expired"
    assert running.ask(people[0], deadline="9999-01-01T00:00:00Z")["user_id"] == people[0]


def test_a_request_that_waits_longer_than_its_deadline_is_told_then(
    serve: Serve, world: World, people: list[str]
) -> None:
    running = serve()
    with _state_locked(world):
        asked_at = datetime.now(UTC)
        reply = running.post(people[0], deadline=(asked_at + timedelta(seconds=0.5)).isoformat())
        waited = datetime.now(UTC) - asked_at
    assert reply.status_code == 504
    assert timedelta(seconds=0.4) < waited < timedelta(seconds=5)


@pytest.fixture
def unserved(serve: Serve, world: World) -> httpx.Client:
    """A client of a server without a model."""
    return serve(ready=False).client


def _requests(client: httpx.Client) -> dict[str, float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    http = [s for s in samples if s.name == "driftline_score_requests_total" and s.labels["way"] == "http"]
    return {s.labels["outcome"]: s.value for s in http}


@contextmanager
def _state_locked(world: World) -> Iterator[None]:
    """Reads of user state wait until the block ends."""
    with psycopg.connect(world.url) as locker:
        locker.execute("LOCK TABLE user_segment IN ACCESS EXCLUSIVE MODE")
        yield
        locker.rollback()


def _reads_that_wait(world: World) -> int:
    with psycopg.connect(_maintenance(world), autocommit=True) as admin:
        found = admin.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'", [_name(world)]
        ).fetchone()
    assert found is not None
    return int(found[0])


def _first_done(asked: list[Future[httpx.Response]], count: int) -> list[httpx.Response]:
    done = as_completed(asked, timeout=10)
    return [next(done).result() for _ in range(count)]


def _close(admin: psycopg.Connection[Any], world: World) -> None:
    """Nobody gets into the database, and nobody stays."""
    admin.execute(f'ALTER DATABASE "{_name(world)}" ALLOW_CONNECTIONS false'.encode())
    _terminate(admin, world)


def _terminate(admin: psycopg.Connection[Any], world: World) -> None:
    admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [_name(world)])


def _name(world: World) -> str:
    return make_url(world.url).database or ""


def _maintenance(world: World) -> str:
    return make_url(world.url).set(database="postgres").render_as_string(hide_password=False)
