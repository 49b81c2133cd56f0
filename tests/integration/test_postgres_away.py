"""Postgres that hangs, becomes read-only or fails over under running processes: told, waited for, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import text

from driftline.audit.auditor import audit
from driftline.local import embedded
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit
from storage import migrate
from storage.engine import SameServer, Unavailable, mapped_errors, open_engine
from tests.integration.feeding import (
    REPOSITORY,
    Processes,
    Sender,
    event,
    eventually,
    identity,
    ingest_once,
    query,
    taken,
)

NOT_READY_S = 15.0
"""Within so many seconds a process whose server hangs must say so."""


def readiness(port: int) -> tuple[bool, str]:
    """(ready, why not), as /readyz says."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return True, answer.read().decode()
    except HTTPError as error:
        return False, error.read().decode()
    except OSError as error:
        return False, str(error)


@contextmanager
def stopped_backends(database: str, *, postmaster: bool = False) -> Iterator[None]:
    """Every backend of the server stands still; the postmaster too, or whoever connects anew is answered."""
    rows = query(
        database,
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
    )
    pids = [pid for (pid,) in rows]
    assert pids
    if postmaster:
        pids.append(int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1]))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.fixture
def own_database() -> Iterator[str]:
    """A migrated database on a server of its own: stopped backends may hold what others wait for."""
    with embedded.postgres() as url:
        migrate.upgrade(url)
        yield url


def events(first: int, count: int = 30) -> list[Any]:
    return [event(f"e{n}", f"user {n % 5}", n) for n in range(first, first + count)]


def test_ingest_says_within_seconds_that_postgres_hangs_and_goes_on_when_it_wakes(
    own_database: str, tansu_topics: KafkaConfig, started: Processes, free_port: int
) -> None:
    sender = Sender(tansu_topics)
    process = started.start(own_database, tansu_topics, port=free_port)
    sender.send(*events(0))
    eventually(lambda: len(taken(own_database).identities) == 30)
    eventually(lambda: readiness(free_port)[0])
    with stopped_backends(own_database):
        began = time.monotonic()
        sender.send(*events(30))
        eventually(lambda: not readiness(free_port)[0], within_s=NOT_READY_S)
        print(f"ingest: not ready after {time.monotonic() - began:.1f} s")
        assert "Postgres has not answered driftline-ingest" in readiness(free_port)[1]
        time.sleep(20)  # its transaction timeout and more: it drops the connection and tries again by itself
        assert not readiness(free_port)[0]
    eventually(lambda: len(taken(own_database).identities) == 60, within_s=40)
    eventually(lambda: readiness(free_port)[0])
    sender.send(*events(60))
    eventually(lambda: len(taken(own_database).identities) == 90)
    process.signal(signal.SIGTERM)
    assert process.exit_code() == Exit.DONE
    assert taken(own_database).identities == {identity(each) for each in events(0, 90)}
    assert audit(own_database, tansu_topics, duplicate_window=1000).ok


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("train", ["--learner", "markov"]),
        ("export", []),
        ("score", ["--learner", "markov"]),
        pytest.param("maintain", [], marks=pytest.mark.slow),  # its statements may take a minute
    ],
)
def test_each_process_says_that_postgres_hangs(
    own_database: str, tansu_topics: KafkaConfig, tmp_path: Path, free_port: int, verb: str, options: list[str]
) -> None:
    Sender(tansu_topics).send(*events(0))
    ingest_once(own_database, tansu_topics)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE_")},
        "PYTHONPATH": str(REPOSITORY),
        "DRIFTLINE_POSTGRES_URL": own_database,
        "DRIFTLINE_KAFKA_BOOTSTRAP": tansu_topics.bootstrap,
        "DRIFTLINE_TOPIC_PREFIX": tansu_topics.prefix,
        "DRIFTLINE_DATA_DIR": str(tmp_path / "data"),
        "DRIFTLINE_EXPORT__EVERY_S": "1",
        "DRIFTLINE_MAINTAIN__EVERY_S": "0.2",
    }
    command = [sys.executable, "-m", "driftline", verb, *options, "--port", str(free_port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tmp_path)
    limit_s = 70.0 if verb == "maintain" else NOT_READY_S
    part = "driftline-" + verb

    def reasons() -> str:
        return str(json.loads(readiness(free_port)[1])["parts"].get("postgres", {}).get("why", ""))

    try:
        connected = f"SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name LIKE '{part}%'"
        eventually(lambda: query(own_database, connected) == [(True,)], within_s=60)
        # `score` has no snapshot to answer from, but it asks Postgres all the same.
        eventually(lambda: readiness(free_port)[0] or (verb == "score" and '"parts"' in readiness(free_port)[1]))
        eventually(lambda: reasons() == "")
        with stopped_backends(own_database, postmaster=True):
            began = time.monotonic()
            eventually(lambda: reasons() != "", within_s=limit_s, why=(tmp_path / "log").read_text())
            print(f"{verb}: not ready after {time.monotonic() - began:.1f} s: {reasons()}")
        eventually(lambda: reasons() == "", within_s=40)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == Exit.DONE
    finally:
        process.kill()
        process.wait()
    assert audit(own_database, tansu_topics, duplicate_window=1000).ok


def test_a_database_that_becomes_read_only_is_waited_for(
    database: str, tansu_topics: KafkaConfig, started: Processes, free_port: int
) -> None:
    name = conninfo_to_dict(database)["dbname"]
    sender = Sender(tansu_topics)
    process = started.start(database, tansu_topics, port=free_port)
    sender.send(*events(0))
    eventually(lambda: len(taken(database).identities) == 30)
    eventually(lambda: readiness(free_port)[0])
    query(database, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    query(database, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'driftline-%'")
    sender.send(*events(30))
    eventually(lambda: "read-only: a standby, a failover" in readiness(free_port)[1])
    assert len(taken(database).identities) == 30
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only'.encode())
    eventually(lambda: len(taken(database).identities) == 60)
    eventually(lambda: readiness(free_port)[0])
    assert process.process.poll() is None
    assert audit(database, tansu_topics, duplicate_window=1000).ok


class Server:
    """An embedded Postgres that is stopped and started on its files, as itself or as a standby."""

    def __init__(self, folder: Path, sockets: Path) -> None:
        self.folder, self._sockets = folder, sockets
        self._binaries, self._user = embedded._prepare_postgres(folder)
        sockets.mkdir(0o711)
        if self._user is not None:
            os.chown(sockets, *self._user)
        self.url = f"postgresql://postgres@/postgres?host={sockets}"

    @contextmanager
    def running(self, *, standby: bool = False) -> Iterator[str]:
        """Until the block ends."""
        if standby:
            (self.folder / "standby.signal").touch()
            if self._user is not None:
                os.chown(self.folder / "standby.signal", *self._user)
        command = [str(self._binaries / "postgres"), "-D", str(self.folder), "-k", str(self._sockets)]
        command += ["-c", "listen_addresses=", "-c", "fsync=off"]
        log = self.folder / "server.log"
        with embedded._child(command, log, signal.SIGINT, self._user) as process:
            embedded._wait(process, log, lambda: self._answers())
            yield self.url

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


@pytest.fixture
def server() -> Iterator[Server]:
    """In a short path: sockets' paths are limited."""
    with embedded._temporary_folder("driftline-fail-") as folder:
        folder.chmod(0o711)
        yield Server(folder / "data", folder / "s")


def test_a_standby_is_waited_for_and_its_promotion_is_another_server(server: Server) -> None:
    with server.running() as url:
        migrate.upgrade(url)
    same = SameServer()
    engine = open_engine(url, application_name="test", pooled=True, same=same)
    with server.running(standby=True):
        with mapped_errors(), engine.connect() as connection:
            assert migrate.current(connection) == migrate.head()
        with pytest.raises(Unavailable, match="read-only: a standby"), mapped_errors(), engine.begin() as connection:
            connection.execute(text("UPDATE stream_offset SET epoch = 1"))
        query(url, "SELECT pg_promote()")
        moved = r"another Postgres answers.*timeline=2.*timeline=1"
        with pytest.raises(Unavailable, match=moved), mapped_errors(), engine.begin() as connection:
            connection.execute(text("UPDATE stream_offset SET epoch = 1"))
        anew = open_engine(url, application_name="test", same=SameServer())
        with mapped_errors(), anew.begin() as connection:
            connection.execute(text("UPDATE stream_offset SET epoch = 1"))
    engine.dispose()


def test_ingest_goes_through_a_failover_with_all_memory_dropped(
    server: Server, tansu_topics: KafkaConfig, started: Processes, free_port: int
) -> None:
    sender = Sender(tansu_topics)
    with server.running() as url:
        migrate.upgrade(url)
        process = started.start(url, tansu_topics, port=free_port)
        sender.send(*events(0))
        eventually(lambda: len(taken(url).identities) == 30)
    sender.send(*events(30))
    with server.running(standby=True):
        eventually(lambda: "read-only: a standby" in readiness(free_port)[1])
        query(url, "SELECT pg_promote()")
        eventually(lambda: len(taken(url).identities) == 60)
        eventually(lambda: readiness(free_port)[0])
        [(epoch,)] = query(url, "SELECT min(epoch) FROM stream_offset")
        assert epoch >= 2, "it claimed again"
        process.signal(signal.SIGTERM)
        assert process.exit_code() == Exit.DONE
        assert audit(url, tansu_topics, duplicate_window=1000).ok
