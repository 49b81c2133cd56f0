"""The demo: it holds what it tells, and leaves nothing behind, even when it is killed itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from driftline.demo.processes import alive, descendants

PATIENCE_S = 280.0


def _start(folder: Path) -> subprocess.Popen[bytes]:
    with (folder.parent / "told.txt").open("wb") as told:
        return subprocess.Popen([sys.executable, "-m", "driftline.demo", str(folder)], stdout=told, stderr=told)


def _family(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_ends_well_and_leaves_no_process(tmp_path: Path) -> None:
    process, seen = _start(tmp_path / "demo"), dict[int, psutil.Process]()
    until = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < until:
        seen |= {one.pid: one for one in _family(process.pid)}
        time.sleep(0.5)
    assert process.wait(1) == 0, (tmp_path / "told.txt").read_text()
    assert len(seen) >= 6  # Postgres, the broker, ingest and train twice, at least
    assert _alive(list(seen.values())) == []
    report = json.loads((tmp_path / "demo" / "report.json").read_bytes())
    assert report["ok"]
    assert report["ingest"]["killed"]
    assert report["train"]["killed"]
    assert report["train"]["progress_records_repeated"] > 0


@pytest.mark.slow
def test_a_demo_that_is_killed_takes_its_processes_with_it(tmp_path: Path) -> None:
    process = _start(tmp_path / "demo")
    log = tmp_path / "demo" / "train-1.log"
    while not log.exists() and process.poll() is None:
        time.sleep(0.1)
    time.sleep(2)
    family = _family(process.pid)
    assert len(family) >= 3
    os.kill(process.pid, signal.SIGKILL)
    process.wait(5)
    gone, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
    assert len(gone) == len(family)


def test_what_a_process_started_is_found_until_it_ends() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        mine = {key: name for key, name in descendants().items() if key[0] == child.pid}
        assert len(alive(mine)) == 1
    finally:
        child.communicate()
    assert alive(mine) == []
    assert not mine.keys() & descendants().keys()
