"""What the acts of the demo share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from driftline.cli_context import Session
from driftline.demo.processes import Actor, Cast
from driftline.demo.results import Facts, Plot


@dataclass(frozen=True, kw_only=True)
class Play:
    """A performance: each act leaves what it saw in `facts`."""

    plot: Plot
    facts: Facts
    players: Cast
    call: Session
    """For looking into the tables and topics."""
    folder: Path
    say: Callable[[str], None]
    running: dict[str, Actor] = field(default_factory=dict)
    """Process -> who plays it at the moment."""
    ports: dict[str, int] = field(default_factory=dict)
    """Process -> TCP port of its pages, where an act looks at them."""

    @property
    def data(self) -> Path:
        """Folder of the files that processes keep."""
        return self.folder / "data"
