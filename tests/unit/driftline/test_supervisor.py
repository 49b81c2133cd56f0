"""What children of `up` print, past their log too, in the one log of `up`."""

from __future__ import annotations

import sys

import pytest

from driftline.supervisor import Child
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
