"""Fixtures of the tests of `drift`."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.kafka import KafkaConfig
from tests.integration.drift.watching import Running, Start


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts processes and ends them."""
    made: list[Running] = []

    def begin(config: KafkaConfig) -> Running:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        made.append(Running(config, tmp_path, port))
        return made[-1]

    yield begin
    for each in made:
        if each.process.poll() is None:
            each.kill()
