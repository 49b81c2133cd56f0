"""Driftline as its users run it, for a measurement: real Kafka, Postgres, and the verbs as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.servers import ROOT, create_database, kafka, postgres
from contracts import topics
from runtime import kafka as clients
from runtime.kafka import KafkaConfig
from storage import migrate


@dataclass(frozen=True, kw_only=True)
class Service:
    """Servers with topics and tables made, and a folder for files and logs."""

    bootstrap: str
    postgres: str
    folder: Path

    def scope(self, name: str, **settings: str) -> Scope:
        """Fresh topics and a fresh database."""
        database = create_database(self.postgres, f"service_{name}")
        migrate.upgrade(database)
        config = KafkaConfig(self.bootstrap, prefix=f"{name}.")
        clients.create_topics(config, topics.ALL)
        folder = self.folder / name
        folder.mkdir()
        environment = {
            "DRIFTLINE_POSTGRES_URL": database,
            "DRIFTLINE_KAFKA_BOOTSTRAP": self.bootstrap,
            "DRIFTLINE_TOPIC_PREFIX": config.prefix,
            "DRIFTLINE_DATA_DIR": str(folder),
            "DRIFTLINE_INGEST__PORT": "none",
            "DRIFTLINE_TRAIN__PORT": "none",
            **{f"DRIFTLINE_{key}": value for key, value in settings.items()},
        }
        return Scope(kafka=config, database=database, folder=folder, environment=environment)


@dataclass(frozen=True, kw_only=True)
class Scope:
    """One database and one set of topics."""

    kafka: KafkaConfig
    database: str
    folder: Path
    environment: dict[str, str]

    def call(self, *verb: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A verb that ends by itself."""
        log = self.folder / f"{verb[0]}.log"
        with log.open("a") as out:
            done = subprocess.run(
                [sys.executable, "-m", "driftline", *verb],
                cwd=ROOT,
                env={**os.environ, **self.environment},
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
                check=False,
            )
        if check and done.returncode:
            last = "\n".join(log.read_text().splitlines()[-20:])
            raise RuntimeError(f"driftline {' '.join(verb)} ended with {done.returncode}:\n{last}")
        return done

    def told(self, *verb: str) -> Any:
        """What a verb prints with --json."""
        return json.loads(self.call(*verb, "--json").stdout)

    @contextmanager
    def running(self, *verb: str) -> Iterator[subprocess.Popen[bytes]]:
        """A verb that goes on until the block ends; then SIGTERM."""
        with (self.folder / f"{verb[0]}.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "driftline", *verb],
                cwd=ROOT,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@contextmanager
def service() -> Iterator[Service]:
    """Servers while the block runs.

    :raises Absent: no real Kafka, or no embedded Postgres here.
    """
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="driftline-service-")))
        bootstrap = opened.enter_context(kafka(folder / "kafka"))
        url = opened.enter_context(postgres(folder / "postgres"))
        yield Service(bootstrap=bootstrap, postgres=url, folder=folder)
