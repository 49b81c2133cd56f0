"""`driftline up`: everything on one machine, found by other verbs, and nothing of it left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.integration.feeding import REPOSITORY, eventually

DRAIN_S = 15.0


@dataclass
class Up:
    """A running `up` and the folder it was started in."""

    process: subprocess.Popen[bytes]
    folder: Path

    def log(self) -> str:
        """What it and its children said."""
        return (self.folder / "up.log").read_text(errors="replace")

    def call(self, *words: str) -> str:
        """What a verb in another terminal prints."""
        return _driftline(self.folder, words)

    def family(self) -> list[psutil.Process]:
        """All processes it started, directly or not."""
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """`driftline up` without learner, once its parts stand."""
    with (tmp_path / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "driftline", "up", "--no-train", "--no-score"],
            cwd=tmp_path,
            env=_environment(),
            stdout=log,
            stderr=log,
        )
    running = Up(process, tmp_path)
    try:
        eventually(lambda: "Ctrl-C ends it." in running.log(), within_s=60, why="up is up")
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(2 * DRAIN_S)


def test_another_terminal_finds_it_and_sees_its_events_arrive(up: Up) -> None:
    up.call("simulate", "--users", "5", "--days", "1")

    def arrived() -> bool:
        told = json.loads(up.call("status", "--json"))
        return bool(told["streams"]) and sum(topic["accepted"] for topic in told["topics"].values()) >= 200

    eventually(arrived, within_s=40, every_s=0.5, why="the simulated records are accepted")
    events = json.loads(up.call("user", "sim:user-1", "--json"))["events"]
    assert events
    assert "every record up to the stored offsets counted exactly once" in up.call("verify")
    family = up.family()
    started = time.monotonic()
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(DRAIN_S) == 0
    assert time.monotonic() - started < DRAIN_S
    assert "everything ended" in up.log()
    assert not psutil.wait_procs(family, timeout=1)[1]
    assert not (up.folder / "driftline-data").exists()


def test_a_killed_up_leaves_no_process_behind(up: Up) -> None:
    eventually(lambda: "ingest.assigned" in up.log(), within_s=40, why="ingest works")
    family = up.family()
    assert len(family) >= 3  # Postgres, broker, ingest
    up.process.kill()
    assert not psutil.wait_procs(family, timeout=DRAIN_S)[1]
    assert "no `driftline up` runs there" in _driftline(
        up.folder, ["--stack", "driftline-data/stack.json", "status"], code=2
    )


def test_a_child_that_dies_is_started_again(up: Up) -> None:
    eventually(lambda: "ingest.assigned" in up.log(), within_s=40, why="ingest works")
    (ingest,) = (child for child in up.family() if "ingest" in child.cmdline())
    ingest.kill()
    eventually(lambda: up.log().count("ingest.assigned") == 2, within_s=40, why="ingest works again")
    assert "ended with signal SIGKILL; starting again" in up.log()


def test_postgres_is_kept_in_a_data_folder_and_the_new_broker_is_adopted(tmp_path: Path) -> None:
    for run in (1, 2):
        process = subprocess.Popen(
            [sys.executable, "-m", "driftline", "up", "--data", "kept", "--no-train", "--no-score"],
            cwd=tmp_path,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert process.stdout is not None
            seen = []
            for line in process.stdout:
                seen.append(line)
                if "ingest.assigned" in line:
                    break
            assert ("a new one is adopted" in "".join(seen)) == (run == 2)
            told = json.loads(
                _driftline(tmp_path, ["--stack", "kept/stack.json", "offsets", "show", "--all", "--json"])
            )
            assert len(told) == run * 17
        finally:
            process.terminate()
            process.communicate(timeout=2 * DRAIN_S)
        assert process.returncode == 0


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE_")}
    ports = {f"DRIFTLINE_{verb}__PORT": "0" for verb in ("INGEST", "TRAIN", "SCORE")}
    return {**kept, **ports, "PYTHONPATH": str(REPOSITORY), "DRIFTLINE_INGEST__SESSION_TIMEOUT_S": "1.5"}


def _driftline(folder: Path, words: Sequence[str], *, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "driftline", *words],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    return done.stdout or done.stderr
