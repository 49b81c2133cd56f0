"""The verbs of the command line, one function each. `driftline/cli.py` puts them together."""

from __future__ import annotations

from typing import Annotated

import typer

from driftline.cli_context import Session

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option(min=1, metavar="N", help="At most so many, the newest first.")]


def session(context: typer.Context) -> Session:
    """The call's settings."""
    found = context.find_object(Session)
    assert found is not None
    return found


def example(*lines: str) -> str:
    """The end of a verb's help."""
    return "\b\n" + "\n".join(["Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)])
