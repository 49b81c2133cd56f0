"""What the acts ask over HTTP."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
from typing import Any, TypeVar

import msgspec

Answer = TypeVar("Answer")


def post(url: str, question: dict[str, Any], kind: type[Answer]) -> tuple[Answer, float]:
    """The answer, and the milliseconds it took.

    :raises OSError: there was none.
    """
    request = urllib.request.Request(url, msgspec.json.encode(question), {"content-type": "application/json"})
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=20) as reply:
        answer = msgspec.json.decode(reply.read(), type=kind)
    return answer, (time.perf_counter() - began) * 1e3


def answers(url: str) -> bool:
    """Whether it says 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def metric(url: str, series: str) -> float:
    """A metric's value on a page of metrics; 0 = it is not there."""
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            lines = reply.read().decode().splitlines()
    except (urllib.error.URLError, OSError):
        return 0.0
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{series} ")), 0.0)


def free_port() -> int:
    """A TCP port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
