"""Real processes under injected faults: whatever breaks, their logs hold no user's id and no secret.

Each fault is one of `FAULTS`; people and secrets have names that stand nowhere else. Lines are JSON, one an event, of
less than 8 KB.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
import pytest
from sqlalchemy import make_url

from contracts import topics
from contracts.codec import encode
from contracts.scoring import ScoreCall
from runtime.kafka import KafkaConfig
from storage.privacy import erasure
from tests.integration.feeding import REPOSITORY, Sender, engine_of, event, eventually, payment, query, relation, taken
from tests.integration.learning import SECOND, Given, School, Scribe, schools
from tests.integration.score.conftest import World, states  # noqa: F401  # a fixture

if TYPE_CHECKING:
    from tests.integration.score.conftest import States

PERSON, SECRET = "zyxperson", "zyxsecret"
"""Part of each user's id, and of each secret."""
PEOPLE = [f"{PERSON}-{name}" for name in ("anna", "b\u00e9la", "o'hara", 'qu"ote', "new\nline", "\x1besc")]
LONGEST_LINE = 8 * 1024
TRIGGER = """
CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NEW; END $$;
CREATE TRIGGER broken BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION broken();
"""


@dataclass
class Stage:
    """A database and topics whose addresses carry secrets, and processes that write their logs into a folder."""

    database: str
    kafka: KafkaConfig
    folder: Path
    states: States
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        password = make_url(self.database).set(password=f"{SECRET}/p@ss")
        self.settings = {
            "POSTGRES_URL": password.render_as_string(hide_password=False),
            "KAFKA_BOOTSTRAP": self.kafka.bootstrap,
            "KAFKA_OPTIONS": json.dumps({"sasl.username": "us", "sasl.password": f"{SECRET}-sasl"}),
            "TOPIC_PREFIX": self.kafka.prefix,
            "DATA_DIR": str(self.folder),
            "SCORE__TOKEN": f"{SECRET}-token",
            "SCORE__PORT": str(_free_port()),
            "SCORE__POLL_S": "0.1",
            "EXPORT__TARGET": str(self.folder / "bundles"),
            "EXPORT__OPTIONS": json.dumps({"auto_mkdir": True}),
            "INGEST__PORT": str(_free_port()),
            "INGEST__GROUP": f"{self.kafka.prefix}ingest",
            "INGEST__LINGER_S": "0.02",
            "INGEST__SESSION_TIMEOUT_S": "1.5",
            "TRAIN__LEARNER": "markov",
            "TRAIN__STEP_ROWS": "8",
            "SCORE__GROUP": f"{self.kafka.prefix}score",
            "SCORE__SESSION_TIMEOUT_S": "2",
            "DRIFT__SESSION_TIMEOUT_S": "2",
            "MAINTAIN__COMPACT_ROWS": "2",
            **{f"{verb}__PORT": "none" for verb in ("TRAIN", "DRIFT", "MAINTAIN", "EXPORT")},
        }

    def start(self, *call: str, **given: str) -> None:
        """One process, `driftline CALL`; `given` are settings that differ."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE_")},
            "PYTHONPATH": str(REPOSITORY),
            "AWS_SECRET_ACCESS_KEY": f"{SECRET}-aws",
            **{f"DRIFTLINE_{name}": value for name, value in {**self.settings, **given}.items()},
        }
        command = [sys.executable, "-m", "driftline", *call]
        with (self.folder / f"{call[0]}-{len(self.running)}.log").open("wb") as log:
            made = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, env=environment, cwd=self.folder)
        self.running.append(made)

    def ended(self, *call: str, code: int = 1, **given: str) -> None:
        """As `start`; it ends by itself."""
        self.start(*call, **given)
        assert self.running[-1].wait(60) == code, self.log()

    def log(self) -> str:
        """All that all processes said so far."""
        return "".join(file.read_text(errors="backslashreplace") for file in sorted(self.folder.glob("*.log")))

    def until(self, said: str, times: int = 1) -> None:
        """Waits for words in a log."""
        eventually(lambda: self.log().count(said) >= times, within_s=60, why=f"{said!r} stands in the log")

    def sql(self, statement: str) -> None:
        """Runs statements."""
        query(self.database, statement)

    def send(self) -> None:
        """Valid events of all people, of all kinds."""
        known = [f"{PERSON}-{name}" for name in ("anna", "b\u00e9la", "o'hara", 'qu"ote')]
        sender = Sender(self.kafka)
        for n, user in enumerate(known):
            sender.send(event(f"e{n}", user, n), payment(f"p{n}", user, n), relation(f"r{n}", user, known[n - 1], n))

    @contextmanager
    def school(self) -> Iterator[School]:
        """A log with events of people, and no learner yet."""
        with schools(self.database, self.kafka, self.folder) as school:
            with school.engine.begin() as connection:
                scribe = Scribe(connection, school._vocabulary, school.streams)
                for first in range(0, 40, 8):  # several rows of each sequence, for `maintain` to compact
                    given = [
                        Given(n, n * SECOND, n * SECOND, PEOPLE[n % 4], f"type-{n % 3}")
                        for n in range(first, first + 8)
                    ]
                    scribe.write((topics.USER, 0), given)
            yield school

    def world(self) -> World:
        """Users with sequences, and a snapshot that answers."""
        world = World(self.database, self.folder / "snapshots", self.states)
        world.add(*((PEOPLE[n % 4], float(n), f"type-{n % 3}") for n in range(40)))
        world.publish(1)
        return world

    def ask(self, *, path: str = "/v1/score", token: str = f"{SECRET}-token", **given: Any) -> int:
        """Status of the answer of `score`."""
        with httpx.Client(base_url=f"http://127.0.0.1:{self.settings['SCORE__PORT']}") as client:
            headers = {"authorization": f"Bearer {token}", **given.pop("headers", {})}
            return client.request(given.pop("method", "POST"), path, headers=headers, **given).status_code

    def end(self) -> None:
        """By SIGTERM, so that what is said at the end is in the log; then by force."""
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


Fault = Callable[[Stage], None]
FAULTS: dict[str, Fault] = {}
FAST = frozenset(
    {
        "a constraint that a row of `ingest` violates",
        "an error inside Postgres that names a user",
        "backends killed while `ingest` writes",
        "records that no schema fits",
        "an unexpected error in the loop of `train`",
        "garbage on the pages of `ingest`",
        "requests that cannot be understood",
        "a table gone while `score` answers",
    }
)
"""In the first lane too; the others take minutes together."""


def fault(name: str) -> Callable[[Fault], Fault]:
    """Lists a fault."""

    def put(made: Fault) -> Fault:
        FAULTS[name] = made
        return made

    return put


# -- ingest --


def _raises(verb: str, point: str, *call: str) -> Fault:
    """An unexpected error at a fail point, in frames whose local variables hold users and secrets."""

    def happen(stage: Stage) -> None:
        if verb == "ingest":
            stage.send()
            stage.ended(verb, *call, FAILPOINT=f"{point}:1:raise")
        else:
            with stage.school() as school:
                if verb == "export":
                    school.train()
                stage.ended(verb, *call, FAILPOINT=f"{point}:1:raise")
        stage.until("process.unexpected")

    return happen


for point in ("ingest.after_rows", "ingest.before_commit", "ingest.after_commit"):
    FAULTS[f"an unexpected error at {point}"] = _raises("ingest", point)


@fault("a constraint that a row of `ingest` violates")
def _(stage: Stage) -> None:
    stage.sql(f"ALTER TABLE vocabulary ADD CHECK (value NOT LIKE '{PERSON}%')")  # DETAIL: Failing row contains (...)
    stage.send()
    stage.ended("ingest")
    stage.until("CheckViolation")


@fault("a unique index that a row of `ingest` violates")
def _(stage: Stage) -> None:
    stage.sql(f"CREATE UNIQUE INDEX one ON vocabulary (space, (left(value, {len(PERSON)})))")
    stage.send()
    stage.ended("ingest")
    stage.until("UniqueViolation")


@fault("an error inside Postgres that names a user")
def _(stage: Stage) -> None:
    stage.sql(TRIGGER.format(table="vocabulary", body="RAISE 'user % is unwelcome', NEW.value"))
    stage.send()
    stage.ended("ingest")
    stage.until("RaiseException")


@fault("a value that Postgres cannot read, quoted by it")
def _(stage: Stage) -> None:
    stage.sql(TRIGGER.format(table="vocabulary", body="PERFORM NEW.value::int"))
    stage.send()
    stage.ended("ingest")
    stage.until("22P02")


@fault("an outage whose DETAIL, HINT and CONTEXT name users")
def _(stage: Stage) -> None:
    body = "RAISE 'too busy' USING ERRCODE = '53300', DETAIL = NEW.value, HINT = NEW.value"
    stage.sql(TRIGGER.format(table="vocabulary", body=body))
    stage.send()
    stage.start("ingest")
    stage.until("too busy", 3)


@fault("backends killed while `ingest` writes")
def _(stage: Stage) -> None:
    stage.sql(TRIGGER.format(table="vocabulary", body="PERFORM pg_terminate_backend(pg_backend_pid())"))
    stage.send()
    stage.start("ingest")
    stage.until("ingest.rejoin", 2)


@fault("an error in a callback of the consumer")
def _(stage: Stage) -> None:
    body = f"RAISE 'owner {PERSON}-anna is unwelcome'"
    stage.sql(TRIGGER.format(table="stream_offset", body=body).replace("BEFORE INSERT", "BEFORE INSERT OR UPDATE"))
    stage.send()
    stage.ended("ingest")
    stage.until("RaiseException")


@fault("records that no schema fits")
def _(stage: Stage) -> None:
    sender, who = Sender(stage.kafka), f"{PERSON}-anna"
    key = who.encode()
    good = encode(event("e", who))
    bodies = [
        *(b"", b"{", key, b'"' + key + b'"', good[:-9], good.replace(b"click", b"\xff\xfe"), b"[" * 5000),
        *(good.replace(b"click", b"\\u0000"), good.replace(b'"schema"', b'"' + key + b'"'), good + key),
        *(b'{"schema":"%b"}' % key, b'{"schema":"9.0","user_id":"%b"}' % key, good.replace(b"2026", b"12026")),
    ]
    for topic in (topics.USER, topics.PAYMENT, topics.RELATIONAL, topics.LABELS, topics.ITEMS):
        for body in bodies:
            sender.put(topic, key, body, flush=False)
    sender.put(topics.USER, b"\xff" + key, good)
    sender.put(topics.USER, None, good, headers={"driftline-origin": who, "\u202e": who, who: who})
    stage.start("ingest")
    eventually(lambda: taken(stage.database).totals["read"] == 5 * len(bodies) + 2, within_s=60)
    assert taken(stage.database).totals["dead"] > 50


@fault("an erasure while `ingest` and `train` run")
def _(stage: Stage) -> None:
    stage.send()
    stage.start("ingest")
    stage.start("train")
    stage.until("ingest.assigned")
    eventually(lambda: taken(stage.database).totals["accepted"] == 12, within_s=60)
    eventually(lambda: query(stage.database, "SELECT count(*) FROM journal")[0][0] >= 1, within_s=60)
    erasure.erase(engine_of(stage.database), PEOPLE[:3])
    stage.until("train.forgot")


@fault("garbage on the pages of `ingest`")
def _(stage: Stage) -> None:
    stage.start("ingest")
    stage.until("ingest.assigned")
    person, address = f"{PERSON}-anna".encode(), ("127.0.0.1", int(stage.settings["INGEST__PORT"]))
    before = len(stage.log())
    for sent in (
        *(
            b"",
            person,
            b"GET /" + person,
            b"GET /" + person + b"?" + person + b" HTTP/1.1\r\n\r\n",
            b"\xff\x00\r\n\r\n",
        ),
        *(b"POST /metrics HTTP/1.1\r\n" + person + b": \xff\r\n\r\n", b"GET / HTTP/9.9\r\n" + b"a" * 70_000),
    ):
        for _again in range(20):
            with suppress(OSError), socket.create_connection(address) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(sent)
    assert httpx.get(f"http://127.0.0.1:{address[1]}/healthz").status_code == 200
    assert len(stage.log()) == before, "a broken connection is no news"


@fault("no Postgres behind an address with a password")
def _(stage: Stage) -> None:
    url = f"postgresql://me:{SECRET}@127.0.0.1:1/x?connect_timeout=1"
    for verb in ("ingest", "train", "score", "maintain", "export"):
        stage.ended(verb, POSTGRES_URL=url)


@fault("an address that cannot be read")
def _(stage: Stage) -> None:
    for url in (f"postgresql://me:{SECRET}@host:port/x", f"postgresql://me:{SECRET}@[::1/x", f"{SECRET} = {SECRET}"):
        stage.start("ingest", POSTGRES_URL=url)
        assert stage.running[-1].wait(60) in (1, 2)


@fault("no Kafka behind options with a password")
def _(stage: Stage) -> None:
    stage.start("ingest", KAFKA_BOOTSTRAP="127.0.0.1:1")
    stage.until("ingest.rejoin")
    stage.start("drift", KAFKA_BOOTSTRAP="127.0.0.1:1")
    stage.until("drift.again")


@fault("Kafka options that the client refuses")
def _(stage: Stage) -> None:
    for options in (
        {"sasl.passwrd": f"{SECRET}-sasl", "sasl.password": f"{SECRET}-sasl"},
        {"ssl.key.pem": f"{SECRET}-key", "security.protocol": "ssl"},
        {"security.protocol": f"{SECRET}-sasl", "sasl.password": f"{SECRET}-sasl"},
        {
            "sasl.oauthbearer.config": f"{SECRET}-oauth",
            "sasl.mechanisms": "OAUTHBEARER",
            "security.protocol": "sasl_ssl",
        },
    ):
        stage.start("ingest", "--once", KAFKA_OPTIONS=json.dumps(options))
    for process in stage.running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)


# -- train --

FAULTS["an unexpected error in the loop of `train`"] = _raises("train", "train.before_step", "--once")
for point in ("train.after_journal", "train.after_step", "train.after_rename", "train.before_live"):
    FAULTS[f"an unexpected error at {point}"] = _raises("train", point, "--once")


@fault("a journal that refuses a step in a user's name")
def _(stage: Stage) -> None:
    stage.sql(TRIGGER.format(table="journal", body=f"RAISE 'step of {PERSON}-anna' USING ERRCODE = '23000'"))
    with stage.school():
        stage.ended("train", "--once")


@fault("a disk without room for snapshots")
def _(stage: Stage) -> None:
    (stage.folder / "full").mkdir()
    (stage.folder / "full" / "snapshots").write_text("a file where the folder should be")
    with stage.school():
        stage.start("train", DATA_DIR=str(stage.folder / "full"), TRAIN__SNAPSHOT_EVERY_S="0.1")
        stage.until("train.snapshot_unwritable")


@fault("a snapshot of `train` that holds other bytes")
def _(stage: Stage) -> None:
    with stage.school() as school:
        school.train()
        school.file(school.live()[-1]).write_bytes(f'{{"{PERSON}": "{PERSON}-anna"}}'.encode())
        stage.start("train")
        stage.until("train.bad_snapshot")


# -- drift --


@fault("records that `drift` cannot read")
def _(stage: Stage) -> None:
    stage.start("drift")
    sender, who = Sender(stage.kafka), f"{PERSON}-anna"
    body = json.dumps({"schema": "1.0", "outcome": who, "user_id": who, who: who, "learner": 7, "value": who}).encode()
    for topic in (topics.PROGRESS, topics.LABELS, topics.RESULTS):
        for value in (b"", b"{", body, b"\xff" + body, b'{"outcome":"answered","user_id":["' + who.encode() + b'"]}'):
            sender.put(topic, who.encode(), value)
    stage.until("drift.unreadable", 10)


# -- score --


@fault("requests that cannot be understood")
def _(stage: Stage) -> None:
    stage.world()
    stage.start("score")
    stage.until("score.model")
    who = f"{PERSON}-anna"
    assert stage.ask(json={"user_id": who}) == 200
    for body in (b"", b"{", who.encode(), b'{"user_id": "%b\xff"}' % who.encode(), b'{"%b": 1}' % who.encode()):
        assert stage.ask(content=body) == 400
    assert stage.ask(json={"user_id": who}, token=f"{SECRET}-wrong") == 401
    assert stage.ask(path=f"/{who}?user={who}", method="GET") == 404
    assert stage.ask(json={"user_id": who}, headers={who: b"\xff\xfe"}) == 200
    for sent in (who.encode(), b"POST /v1/score HTTP/1.1\r\n\xff: " + who.encode() + b"\r\n\r\n", b"\x16\x03\x01" * 99):
        with suppress(OSError), socket.create_connection(("127.0.0.1", int(stage.settings["SCORE__PORT"]))) as client:
            client.sendall(sent)


@fault("a table gone while `score` answers")
def _(stage: Stage) -> None:
    stage.world()
    stage.start("score")
    stage.until("score.model")
    assert stage.ask(json={"user_id": f"{PERSON}-anna"}) == 200
    stage.sql("ALTER TABLE user_segment RENAME TO elsewhere")  # SQLAlchemy's error shows what was asked with
    assert stage.ask(json={"user_id": f"{PERSON}-anna"}) == 503
    stage.until("score.postgres_away")


@fault("backends killed while `score` answers")
def _(stage: Stage) -> None:
    stage.world()
    stage.start("score")
    stage.until("score.model")
    name = make_url(stage.database).database or ""
    elsewhere = make_url(stage.database).set(database="postgres").render_as_string(hide_password=False)
    with psycopg.connect(elsewhere, autocommit=True) as admin:
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        eventually(lambda: stage.ask(json={"user_id": f"{PERSON}-anna"}) == 503, within_s=30)
        stage.until("score.postgres_away")
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())
    stage.until("score.postgres_back")


@fault("an unexpected error in the thread that answers Kafka")
def _(stage: Stage) -> None:
    stage.world()
    sender, who = Sender(stage.kafka), f"{PERSON}-anna"
    for body in (b"{", who.encode(), encode(ScoreCall(user_id=who)), encode(ScoreCall(user_id=who, request_id=who))):
        sender.put(topics.REQUESTS, who.encode(), body)
    stage.ended("score", FAILPOINT="score.after_answers:1:raise")
    stage.until("process.unexpected")


@fault("a snapshot of `score` that holds other bytes")
def _(stage: Stage) -> None:
    world = stage.world()
    world.file(1).write_bytes(f'{{"{PERSON}": "{PERSON}-anna"}}'.encode())
    stage.start("score")
    stage.until("score.snapshot_refused")


# -- maintain, export --

FAULTS["an unexpected error in `maintain`"] = _raises("maintain", "maintain.before_compact_commit", "--once")
FAULTS["an unexpected error in the thread of `export`"] = _raises("export", "export.before_pointer")


@fault("a target that breaks while a bundle is written")
def _(stage: Stage) -> None:
    with stage.school() as school:
        school.train()
        stage.start("export", FAILPOINT="export.before_move:1:raise")
        stage.until("export.again")
        stage.until("export.bundle")


@fault("rows that `maintain` may not change")
def _(stage: Stage) -> None:
    body = f"RAISE 'rows of {PERSON}-anna' USING DETAIL = 'Key (user_id)=({PERSON}-anna)'"
    with stage.school():
        stage.sql(TRIGGER.format(table="user_segment", body=body))
        stage.ended("maintain", "--once")
    stage.until("RaiseException")


@fault("a target that refuses its password")
def _(stage: Stage) -> None:
    with stage.school() as school:
        school.train()
        stage.start("export", EXPORT__TARGET=f"ftp://me:{SECRET}-ftp@127.0.0.1:1/x")
        stage.until("export.again")


@fault("options that the target does not know")
def _(stage: Stage) -> None:
    options = {"password": f"{SECRET}-option", "client_kwargs": {"account": f"{SECRET}-inner", "n": [f"{SECRET}-list"]}}
    with stage.school() as school:
        school.train()
        for target in ("ftp://127.0.0.1:1/x", "unknown://x", f"ftp://127.0.0.1:1/x?sig={SECRET}-sig"):
            stage.start("export", "--once", EXPORT__TARGET=target, EXPORT__OPTIONS=json.dumps(options))
            assert stage.running[-1].wait(60) in (1, 2)


@fault("a snapshot of `export` that holds other bytes")
def _(stage: Stage) -> None:
    with stage.school() as school:
        school.train()
        school.file(school.live()[-1]).write_bytes(f'{{"{PERSON}": "{PERSON}-anna"}}'.encode())
        stage.ended("export", "--once")
    stage.until("export.snapshot_refused")


@pytest.fixture
def stage(database: str, tansu_topics: KafkaConfig, tmp_path: Path, states: States) -> Iterator[Stage]:  # noqa: F811
    made = Stage(database, tansu_topics, tmp_path, states)
    yield made
    made.end()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in FAULTS]
)
def test_no_log_names_a_user_or_a_secret_whatever_breaks(stage: Stage, name: str) -> None:
    FAULTS[name](stage)
    stage.end()
    said = stage.log()
    assert PERSON not in said, _around(said, PERSON)
    assert SECRET not in said, _around(said, SECRET)
    assert "Traceback" not in said
    lines = said.splitlines()
    assert all(len(line.encode()) < LONGEST_LINE for line in lines)
    assert [line for line in lines if not _is_event(line)] == []


@pytest.mark.slow
def test_the_log_of_up_names_nobody_though_its_children_break(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE_")}
    environment = {**kept, "PYTHONPATH": str(REPOSITORY), "DRIFTLINE_SCORE__TOKEN": f"{SECRET}-token"}
    broken = {"DRIFTLINE_FAILPOINT": "ingest.before_commit:1:raise", "DRIFTLINE_INGEST__PORT": "0"}
    call = [sys.executable, "-m", "driftline"]
    with (tmp_path / "up.log").open("wb") as log:
        up = subprocess.Popen(
            [*call, "up", "--no-train"], cwd=tmp_path, env={**environment, **broken}, stdout=log, stderr=log
        )

    def said() -> str:
        return (tmp_path / "up.log").read_text()

    try:
        eventually(lambda: "Ctrl-C ends it." in said(), within_s=60)
        simulate = [*call, "simulate", "--users", "5", "--days", "1"]
        subprocess.run(simulate, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=60)
        eventually(lambda: said().count("process.unexpected") >= 2, within_s=60)
    finally:
        up.terminate()
        up.wait(30)
    assert "sim:user-" not in said()
    assert SECRET not in said()
    assert all(len(line.encode()) < LONGEST_LINE for line in said().splitlines())
    assert "Traceback" not in said()


def test_there_are_faults_enough() -> None:
    assert len(FAULTS) >= 30
    assert set(FAULTS) >= FAST


def _is_event(line: str) -> bool:
    with suppress(ValueError):
        return {"event", "level", "logger", "timestamp", "process"} <= set(json.loads(line))
    return False


def _around(said: str, word: str) -> str:
    at = said.index(word)
    return f"{said.count(word)} times, e.g. {said[max(0, at - 300) : at + 100]!r}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
