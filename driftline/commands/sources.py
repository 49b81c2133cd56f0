"""The verbs that send events from somewhere into Kafka."""

from __future__ import annotations

import typer

from driftline.commands import replay, simulate


def add_to(app: typer.Typer) -> None:
    """All of them."""
    simulate.add_to(app)
    replay.add_to(app)
