"""What the harness tells a contender, and what a contender answers.

Standard library only: the peers import this in their own venv, where nothing of Driftline is installed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Task:
    """One run of one contender."""

    bootstrap: str
    topic: str
    group: str
    """Consumer group, fresh for each run."""
    postgres_url: str
    """A fresh, empty database."""
    state_dir: str
    """A fresh, empty folder."""
    records: int
    """Records on the topic."""
    parseable: int
    """Those of them that are JSON; the peers, which validate nothing, stop after so many."""

    def environment(self) -> dict[str, str]:
        return {f"BENCH_{name.upper()}": str(value) for name, value in asdict(self).items()}

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Task:
        values = {field.name: environ[f"BENCH_{field.name.upper()}"] for field in fields(cls)}
        numbers = {name: int(values.pop(name)) for name in ("records", "parseable")}
        return cls(**values, **numbers)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The last line a contender prints, as JSON."""

    records: int
    """Records it says it read, whatever it made of them."""
    started_at: float
    """Unix time: the first record was in the hands of its Python code."""
    finished_at: float
    """Unix time: the commit that made the last record durable had returned."""

    def print(self) -> None:
        print(json.dumps(asdict(self)), flush=True)

    @classmethod
    def parse(cls, stdout: str) -> Answer | None:
        """The last line that is an answer; None = there is none."""
        for line in reversed(stdout.splitlines()):
            if line.startswith("{") and '"started_at"' in line:
                said = json.loads(line)
                return cls(**{field.name: said[field.name] for field in fields(cls)})
        return None
