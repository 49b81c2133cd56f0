"""The servers and databases tests stand on. All are real; whatever is started here is ended here.

    database       URL of a fresh, migrated database
    tansu, kafka   host:port of the embedded broker, of a real Kafka (mark such tests `kafka`)
    broker         both, one after the other
    tansu_topics, kafka_topics, topics   a `KafkaConfig` with a prefix of its own whose topics exist

A Postgres or a Kafka of your own is used when DRIFTLINE_TEST_POSTGRES (a URL whose user may create
databases) or DRIFTLINE_TEST_KAFKA (host:port) is set.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
import structlog
from sqlalchemy import make_url

from contracts import topics as topic_list
from driftline.local import embedded
from runtime import failpoints, logs
from runtime import kafka as kafka_clients
from runtime.kafka import KafkaConfig

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells start background jobs so, and children inherit it: Ctrl-C would mean nothing to the tests' processes.
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared"
_GIVEN = {name: os.environ.get(name) for name in ("DRIFTLINE_TEST_POSTGRES", "DRIFTLINE_TEST_KAFKA")}

MakeTopics = Callable[[str], KafkaConfig]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings of the person who runs the tests do not reach them."""
    for name in list(os.environ):
        if name.upper().startswith("DRIFTLINE_"):
            monkeypatch.delenv(name)
    yield
    failpoints.arm("")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A verb that ran in this process leaves structlog writing to a stream that is closed by now."""
    hooks, warn = (sys.excepthook, threading.excepthook, sys.unraisablehook), warnings.showwarning
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    if logs.is_set_up():
        root.handlers[:] = handlers
        root.setLevel(level)
    (sys.excepthook, threading.excepthook, sys.unraisablehook), warnings.showwarning = hooks, warn


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; skips where there is none."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}")
    return folder


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a Postgres in which databases may be created."""
    if given := _GIVEN["DRIFTLINE_TEST_POSTGRES"]:
        yield given
        return
    with embedded.postgres(options=["max_connections=60", "shared_buffers=128MB"]) as url:
        yield url


@pytest.fixture(scope="session")
def _template(postgres_server: str) -> Iterator[str]:
    """A database to which the migrations were applied once; the others are copies of it."""
    from storage import migrate

    with _new_database(postgres_server) as url:
        migrate.upgrade(url)
        yield url


@pytest.fixture
def database(postgres_server: str, _template: str) -> Iterator[str]:
    """URL (postgresql://...) of a fresh, migrated database."""
    with _new_database(postgres_server, template=make_url(_template).database) as url:
        yield url


@pytest.fixture(scope="session")
def tansu() -> Iterator[str]:
    """host:port of the embedded broker."""
    with embedded.broker() as address:
        yield address


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a real Apache Kafka; skips where there is none."""
    if given := _GIVEN["DRIFTLINE_TEST_KAFKA"]:
        yield given
        return
    script = SHARED / "kafka" / "kafka"
    if not script.exists():
        pytest.skip(f"no Apache Kafka at {script}, and DRIFTLINE_TEST_KAFKA is not set")
    if shutil.which("java") is None:
        pytest.skip("Apache Kafka needs Java 17, and there is no java on the PATH")
    folder = tmp_path_factory.mktemp("kafka")
    try:
        started = subprocess.run([script, "start", folder], check=True, capture_output=True, text=True, timeout=90)
        yield started.stdout.strip()
    finally:
        subprocess.run([script, "kill", folder], check=True, timeout=30)


@pytest.fixture(params=["tansu", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> str:
    """host:port of each kind of broker in turn."""
    address: str = request.getfixturevalue(request.param)
    return address


@pytest.fixture
def make_topics() -> Iterator[MakeTopics]:
    """Call it with a broker's address: a `KafkaConfig` with a prefix of its own whose topics exist."""
    with ExitStack() as made:
        yield lambda bootstrap: made.enter_context(_fresh_topics(bootstrap))


@pytest.fixture
def topics(broker: str, make_topics: MakeTopics) -> KafkaConfig:
    """All topics, on each kind of broker in turn."""
    return make_topics(broker)


@pytest.fixture
def tansu_topics(tansu: str, make_topics: MakeTopics) -> KafkaConfig:
    """All topics, on the embedded broker."""
    return make_topics(tansu)


@pytest.fixture
def kafka_topics(kafka: str, make_topics: MakeTopics) -> KafkaConfig:
    """All topics, on a real Kafka."""
    return make_topics(kafka)


@contextmanager
def _fresh_topics(bootstrap: str) -> Iterator[KafkaConfig]:
    config = KafkaConfig(bootstrap, prefix=f"test-{uuid.uuid4().hex[:12]}.")
    admin = kafka_clients.admin(config)
    kafka_clients.create_topics(config, topic_list.ALL, client=admin)
    yield config
    gone = admin.delete_topics([config.physical(topic.name) for topic in topic_list.ALL])
    for answer in gone.values():
        answer.exception(timeout=10)  # a test may have deleted it itself


@contextmanager
def _new_database(server: str, *, template: str | None = None) -> Iterator[str]:
    name = f"driftline_test_{uuid.uuid4().hex}"
    copied = f' TEMPLATE "{template}"' if template else ""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"{copied}'.encode())
    try:
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())
