"""Fixtures of the integration tests: owners of streams, processes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.feeding import Processes, processes
from tests.integration.owning import MakeOwner, owners


@pytest.fixture
def owner(database: str) -> Iterator[MakeOwner]:
    """Makes owners of streams of one database, without Kafka."""
    with owners(database) as make:
        yield make


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Processes]:
    """Starts `driftline ingest` processes and ends them."""
    with processes(tmp_path) as made:
        yield made


@pytest.fixture
def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
