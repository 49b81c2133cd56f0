"""What `driftline score` refuses before it starts, and how its port behaves."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from runtime.admin_app import Health
from runtime.lifecycle import ConfigurationError, Stop
from runtime.settings import ScoreSettings
from scoring.serve.http_server import Server
from scoring.serve.process import Score


def score(**settings: Any) -> Score:
    return Score(
        postgres_url="postgresql://nobody@localhost:1/nothing",
        snapshots=Path("nowhere"),
        settings=ScoreSettings(**{"port": 0, **settings}),
        health=Health(),
        stop=Stop(),
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"learner": "risk"}, "risk' answers no requests: it predicts outcome"),
        ({"learner": "oracle"}, "no learner 'oracle'; there are .*prompttpp"),
        ({"device": "abacus"}, "score.device"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_at_once(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        score(**settings)


def test_a_taken_port_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigurationError, match="set another port"):
        score(port=taken.getsockname()[1])


def test_the_port_is_known_before_anything_runs() -> None:
    server = Server(host="127.0.0.1", port=0)
    with socket.create_connection(("127.0.0.1", server.port)):
        server.close(1.0)


def test_replies_do_not_wait_for_delayed_acknowledgements() -> None:
    # asyncio sets TCP_NODELAY only on sockets that name their protocol (measured: 40 ms a reply without).
    server = Server(host="127.0.0.1", port=0)
    assert server._socket.proto == socket.IPPROTO_TCP
    server.close(1.0)
