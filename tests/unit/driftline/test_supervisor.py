"""Children of `up`: when they are started again, and what of theirs comes into the one log."""

from __future__ import annotations

import re
import sys
import threading
import time

import pytest

from driftline.local import supervisor
from driftline.local.supervisor import Child, supervise
from runtime.lifecycle import Stop
from runtime.redaction import Secrets

PRINTS = r"""
import os, sys
os.write(2, b"one\x1b[2J\x07\xff\n" + b"x" * 300_000 + b"\nmy-secret stands here\n" + b"\x01" * 7_000 + b"\n")
"""


def test_whatever_a_child_prints_comes_in_lines_that_fit_and_without_secrets(capfd: pytest.CaptureFixture[str]) -> None:
    child = Child("ingest", [], before=[], secrets=Secrets(["my-secret"]))
    child._command = [sys.executable, "-c", PRINTS]
    child.start()
    assert child._process is not None
    child._process.wait(20)
    assert child._log is not None
    child._log.join(20)
    lines = capfd.readouterr().err.splitlines()
    child._finish_log()
    assert lines[0] == r"ingest | one\x1b[2J\x07" + "\ufffd"
    assert lines[1].startswith("ingest | xxx")
    assert lines[2] == "ingest | ********** stands here"
    assert [len(line.encode()) < 8192 for line in lines] == [True] * 4


def pauses(code: str, capsys: pytest.CaptureFixture[str], *, ends: int) -> list[str]:
    """How long a child that runs this code had to wait after each of its ends."""
    child, stop = Child("child", [], before=[]), Stop()
    child._command = [sys.executable, "-I", "-S", "-c", code]
    thread = threading.Thread(target=supervise, args=([child], stop))
    thread.start()
    until, said = time.monotonic() + 30, ""
    while said.count("starting again") < ends and time.monotonic() < until:
        time.sleep(0.02)
        said += capsys.readouterr().err
    stop.set()
    thread.join()
    return re.findall(r"starting again (.*)", said)[:ends]


def test_a_child_that_keeps_failing_waits_longer_and_longer(capsys: pytest.CaptureFixture[str]) -> None:
    assert pauses("raise SystemExit(1)", capsys, ends=4) == ["at once", "in 0.5 s", "in 1.0 s", "in 2.0 s"]


def test_a_child_that_was_at_work_is_started_again_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "STEADY_S", 0.2)
    killed = "import os, time; time.sleep(0.4); os.kill(os.getpid(), 9)"
    assert pauses(killed, capsys, ends=4) == ["at once"] * 4
