"""A real PgBouncer in front of the tests' Postgres."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from storage.postgres.address import parameters
from tests.integration.feeding import eventually


@contextmanager
def pgbouncer(database: str, folder: Path, *, mode: str = "session", **settings: str | int) -> Iterator[str]:
    """The database's URL through a PgBouncer.

    :param mode: its pool_mode.
    :param settings: more of its settings.
    """
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("no pgbouncer here (Debian: apt-get install pgbouncer)")
    address = parameters(database)
    folder.chmod(0o755)
    for above in folder.parents:
        if above.is_relative_to("/tmp/pytest-of-root"):
            above.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    users = folder / "users.txt"
    users.write_text('"postgres" ""\n"plain" ""\n')
    given = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "auth_type": "trust",
        "auth_file": users,
        "pool_mode": mode,
        "unix_socket_dir": "",
        **settings,
    }
    config = folder / "pgbouncer.ini"
    where = " ".join(f"{name}={value}" for name, value in address.items() if name in ("host", "port"))
    lines = [f"{name} = {value}" for name, value in given.items()]
    config.write_text("\n".join(["[databases]", f"* = {where}", "[pgbouncer]", *lines, ""]))
    owner: dict[str, int] = {}
    if os.geteuid() == 0:  # it refuses to run as root, and the server's socket is its owner's alone
        host = address.get("host", "")
        found = os.stat(host if host.startswith("/") else folder)
        owner = {"user": found.st_uid or 65_534, "group": found.st_gid or 65_534}
    with (folder / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen([program, str(config)], stdout=log, stderr=log, **owner)  # type: ignore[call-overload]
    url = f"postgresql://postgres@127.0.0.1:{port}/{address['dbname']}"

    def answers() -> bool:
        try:
            psycopg.connect(url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        eventually(answers, why=(folder / "pgbouncer.log").read_text())
        yield url
    finally:
        process.kill()
        process.wait()
