"""The contenders, and one run of one of them: its own process, its time, its memory, its result checked."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import verify
from benchmarks.contenders.task import Answer, Task
from benchmarks.servers import ROOT
from benchmarks.workload import Workload

PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
SAMPLE_S = 0.25
"""Between two looks at a process' memory."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One program that reads the topic."""

    name: str
    title: str
    module: str
    check: Callable[[Task, Workload], None]
    """Raises `verify.Wrong`."""
    peer: bool = False
    """Runs in the peers' venv."""

    @property
    def python(self) -> Path:
        return PEERS_PYTHON if self.peer else Path(sys.executable)

    def absent(self) -> str | None:
        """Why it cannot run here; None = it can."""
        if self.peer and not PEERS_PYTHON.exists():
            return "no .venv-peers; benchmarks/peers.txt says how to make it"
        return None


CONTENDERS = (
    Contender(
        name="driftline",
        title="Driftline ingest",
        module="benchmarks.contenders.driftline_ingest",
        check=verify.driftline,
    ),
    Contender(
        name="row_loop",
        title="Plain row loop",
        module="benchmarks.contenders.row_loop",
        check=verify.row_loop,
    ),
    Contender(
        name="quix_count",
        title="Quix Streams, exactly-once count",
        module="benchmarks.contenders.quix_count",
        check=verify.changelog_counts,
        peer=True,
    ),
    Contender(
        name="quix_postgres",
        title="Quix Streams, Postgres sink",
        module="benchmarks.contenders.quix_postgres",
        check=verify.quix_postgres,
        peer=True,
    ),
    Contender(
        name="faust_count",
        title="Faust, count",
        module="benchmarks.contenders.faust_count",
        check=verify.changelog_counts,
        peer=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run gave."""

    contender: str
    number: int
    seconds: float
    """First record in its hands to last record durable."""
    events_per_s: float
    wall_s: float
    """Start of the process to its exit: imports, group join and shutdown included."""
    peak_bytes: int
    """Peak resident memory of the process and its children; the servers are not in it."""
    timing: str
    """"own" = the contender's two times; "process" = it gave none, and `wall_s` stands for them."""


class Failed(RuntimeError):
    """A contender stopped with an error, ran past the limit or gave impossible times."""


def measure(contender: Contender, task: Task, *, number: int, log: Path, limit_s: float) -> Run:
    """Runs it once. Its stderr goes to `log`.

    :raises Failed: it gave no usable result.
    """
    spawned_at = time.time()
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [contender.python, "-m", contender.module],
            cwd=ROOT,
            env=os.environ | task.environment() | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        peak_bytes = _watch(process, contender.title, limit_s)
    exited_at = time.time()
    stdout = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise Failed(f"{contender.title} ended with {process.returncode}; see {log}")
    answer = Answer.parse(stdout)
    if answer is None:
        seconds, timing = exited_at - spawned_at, "process"
    elif not spawned_at < answer.started_at < answer.finished_at < exited_at:
        raise Failed(f"{contender.title} claims impossible times: {answer}")
    else:
        seconds, timing = answer.finished_at - answer.started_at, "own"
    return Run(
        contender=contender.name,
        number=number,
        seconds=seconds,
        events_per_s=task.records / seconds,
        wall_s=exited_at - spawned_at,
        peak_bytes=peak_bytes,
        timing=timing,
    )


def _watch(process: subprocess.Popen[str], title: str, limit_s: float) -> int:
    """Waits for the end and returns the peak of resident bytes, the children's included."""
    deadline = time.monotonic() + limit_s
    peak = 0
    while process.poll() is None:
        peak = max(peak, _memory(process.pid, "VmHWM"), _tree(process.pid))
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise Failed(f"{title} was not finished after {limit_s:.0f} s")
        time.sleep(SAMPLE_S)
    return peak


def _tree(pid: int) -> int:
    """Resident bytes of a process and all below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return _memory(pid, "VmRSS") + sum(_tree(int(child)) for child in children)


def _memory(pid: int, name: str) -> int:
    """One line of /proc/PID/status in bytes; 0 when the process has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
