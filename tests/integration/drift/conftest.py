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


@pytest.fixture(params=[pytest.param("tansu", marks=pytest.mark.slow), pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> str:
    """host:port of each kind of broker in turn. A Faust app needs long to join its group: the fast lane has neither."""
    address: str = request.getfixturevalue(request.param)
    return address
