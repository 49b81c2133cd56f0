"""Fail points kill, and only where they are told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import failpoints
from runtime.lifecycle import ConfigurationError

REPOSITORY = Path(__file__).parents[3]


def test_the_armed_passage_kills_the_process() -> None:
    code = """
from runtime import failpoints
failpoints.arm("ingest.before_commit:3")
for n in range(5):
    failpoints.failpoint("ingest.after_commit")
    print(n, flush=True)
    failpoints.failpoint("ingest.before_commit")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, cwd=REPOSITORY)
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout.split() == ["0", "1", "2"]


def test_unarmed_nothing_happens() -> None:
    failpoints.arm("")
    failpoints.failpoint("train.after_rename")


@pytest.mark.parametrize(
    "text", ["ingest.nowhere", "ingest.before_commit:0", "ingest.before_commit:x", "ingest.before_commit:1:nap"]
)
def test_a_fail_point_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        failpoints.arm(text)


def test_an_armed_passage_can_freeze_the_process_instead() -> None:
    code = """
from runtime import failpoints
failpoints.arm("ingest.before_commit:1:stop")
failpoints.failpoint("ingest.before_commit")
print("awake", flush=True)
"""
    frozen = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    _, status = os.waitpid(frozen.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    frozen.send_signal(signal.SIGCONT)
    assert frozen.communicate(timeout=30)[0] == "awake\n"


def test_an_armed_passage_can_raise_once_instead() -> None:
    failpoints.arm("ingest.before_commit:2:raise")
    failpoints.failpoint("ingest.before_commit")
    with pytest.raises(failpoints.Injected, match=r"ingest\.before_commit"):
        failpoints.failpoint("ingest.before_commit")
    failpoints.failpoint("ingest.before_commit")
