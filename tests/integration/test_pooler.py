"""Through PgBouncer: in session mode the promise stands, in the other modes Driftline refuses to start."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from driftline.audit.auditor import audit
from driftline.cli import run
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit
from storage import migrate
from storage.engine import Unfit, driver, mapped_errors, open_engine
from storage.postgres import sessions
from tests.integration.feeding import Processes, Sender, event, eventually, identity, ingest_once, query, taken
from tests.integration.owning import Owner
from tests.integration.poolers import pgbouncer

PID = "SELECT pg_backend_pid()"
EVENTS = [event(f"e{n}", f"user {n % 3}", n) for n in range(40)]


def has_taken(database: str, events: int) -> bool:
    return len(taken(database).identities) == events


@contextmanager
def careless(database: str) -> Iterator[None]:
    """A database whose sessions do not wait for their commits."""
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    query(database, f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    yield


@pytest.mark.parametrize("dropped", ["options", None])
def test_in_session_mode_the_promise_stands(
    database: str, tansu_topics: KafkaConfig, tmp_path: Path, dropped: str | None
) -> None:
    ignored = {"ignore_startup_parameters": dropped} if dropped else {}
    with careless(database), pgbouncer(database, tmp_path, **ignored) as url:
        assert query(url, "SHOW synchronous_commit") == [("off",)]
        engine = open_engine(url, application_name="test", transaction_timeout_s=15)
        with mapped_errors(), engine.connect() as connection:
            assert connection.scalar(text("SHOW synchronous_commit")) == "on"
            assert connection.scalar(text("SHOW transaction_timeout")) == "15s"
            assert connection.scalar(text("SHOW TimeZone")) == "UTC"
        Sender(tansu_topics).send(*EVENTS)
        ingest_once(url, tansu_topics)
        assert taken(database).identities == {identity(each) for each in EVENTS}
        report = audit(url, tansu_topics, duplicate_window=1000)
        assert report.ok
        assert report.read == len(EVENTS)


def test_in_session_mode_a_killed_process_is_replaced_and_nothing_lost(
    database: str, tansu_topics: KafkaConfig, tmp_path: Path, started: Processes
) -> None:
    with careless(database), pgbouncer(database, tmp_path, ignore_startup_parameters="options") as url:
        sender = Sender(tansu_topics)
        for n in range(4):
            process = started.start(url, tansu_topics)
            sender.send(*EVENTS[n * 10 : (n + 1) * 10])
            eventually(partial(has_taken, database, (n + 1) * 10), within_s=30)
            process.signal(signal.SIGKILL)
            process.exit_code()
        ingest_once(url, tansu_topics)
        assert taken(database).identities == {identity(each) for each in EVENTS}
        assert audit(url, tansu_topics, duplicate_window=1000).ok


def test_the_client_that_got_a_dead_owners_backend_is_not_ended(database: str, tmp_path: Path) -> None:
    with pgbouncer(database, tmp_path) as url:
        former = Owner(url)
        backend = former.connection.scalar(text(PID))
        former.connection.rollback()
        former.close()  # PgBouncer gives its backend to the next client
        with ExitStack() as opened:
            others = [opened.enter_context(psycopg.connect(url, autocommit=True)) for _ in range(4)]
            backends = [other.execute(PID).fetchone() for other in others]
            assert (backend,) in backends
            successor = Owner(url)
            assert [other.execute("SELECT 1").fetchone() for other in others] == [(1,)] * 4
            successor.write_events(event("e1"))
            successor.close()


def test_an_owner_that_is_still_there_is_ended_through_a_pooler_too(database: str, tmp_path: Path) -> None:
    with pgbouncer(database, tmp_path) as url:
        former, successor = Owner(url), Owner(url)
        with pytest.raises(ConnectionError), mapped_errors():
            former.connection.execute(text("SELECT 1"))
        successor.write_events(event("e1"))
        former.close()
        successor.close()


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_a_pooler_that_shares_its_servers_is_refused_at_start(
    database: str, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pgbouncer(database, tmp_path, mode=mode) as url:
        monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", url)
        monkeypatch.setenv("DRIFTLINE_KAFKA_BOOTSTRAP", "127.0.0.1:1")
        monkeypatch.chdir(tmp_path)
        for verb in ("ingest", "migrate", "status"):
            assert run([verb]) == Exit.REFUSED
            said = capsys.readouterr().err
            assert "a pooler in transaction or statement mode answers" in said
            assert "pool_mode = session" in said


def test_a_transaction_that_meets_another_server_process_is_refused_before_it_writes(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_refuse_shared", lambda raw, other: None)  # as if all was quiet at the start
    with pgbouncer(database, tmp_path, mode="transaction", default_pool_size=1) as url:
        one, two = (open_engine(url, application_name="test") for _ in range(2))
        with mapped_errors(), one.connect() as first, two.connect() as second:  # both met one server process
            with pytest.raises(Unfit, match="transaction or statement mode"), first.begin():
                first.execute(text("CREATE TABLE of_the_first (n int)"))
            with second.begin():
                second.execute(text("CREATE TABLE of_the_second (n int)"))
        assert query(database, "SELECT to_regclass('of_the_first'), to_regclass('of_the_second')") == [
            (None, "of_the_second")
        ]


@pytest.mark.parametrize("pooled", [True, False])
def test_the_options_of_an_address_are_kept(database: str, tmp_path: Path, pooled: bool) -> None:
    given = "?options=-c%20work_mem%3D7MB%20-c%20synchronous_commit%3Doff%20-c%20statement_timeout%3D50s"
    with pgbouncer(database, tmp_path, ignore_startup_parameters="options") as through:
        url = f"{through}{given}" if pooled else f"{database}&{given[1:]}"
        engine = open_engine(url, application_name="test")
        with mapped_errors(), engine.connect() as connection:
            assert connection.scalar(text("SHOW work_mem")) == "7MB"
            assert connection.scalar(text("SHOW statement_timeout")) == "50s"
            assert connection.scalar(text("SHOW synchronous_commit")) == "on"
            assert driver(connection).pooled is pooled  # type: ignore[attr-defined]


def test_options_that_a_pooler_refuses_are_said_to_be_refused(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pgbouncer(database, tmp_path) as url:
        monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", f"{url}?options=-c%20work_mem%3D7MB")
        monkeypatch.chdir(tmp_path)
        assert run(["migrate"]) == Exit.USAGE
        assert "unsupported startup parameter: options" in capsys.readouterr().err


def test_a_pooler_with_one_server_for_all_is_an_outage_with_its_reason(database: str, tmp_path: Path) -> None:
    with pgbouncer(database, tmp_path, default_pool_size=1) as url:
        engine = open_engine(url, application_name="test")
        with pytest.raises(ConnectionError, match=r"no second server within 5 s.*pool_size"), engine.connect():
            pass


def test_the_tables_are_made_through_a_pooler(database: str, tmp_path: Path) -> None:
    migrate.downgrade(database, "base")
    with pgbouncer(database, tmp_path) as url:
        assert migrate.upgrade(url) == migrate.head()
