"""`python -m driftline.demo [FOLDER]`: plays the story, prints it, writes the report.

Exit code 0 only if every check holds. The numbers are in build/demo/report.json, the logs beside it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape

from driftline.demo import render
from driftline.demo.report import report
from driftline.demo.results import Plot
from driftline.demo.steps import Story
from runtime.lifecycle import DriftlineError, Exit

FOLDER = Path("build/demo")


def main(arguments: Sequence[str] = ()) -> int:
    """The exit code."""
    folder = (Path(arguments[0]) if arguments else FOLDER).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    console = Console(width=118 if not sys.stdout.isatty() else None)
    story = Story(Plot(), folder, console)
    try:
        facts = story.run()
    except DriftlineError as trouble:
        console.print(f"[red]the demo could not be played to its end:[/] {escape(str(trouble))}", highlight=False)
        return trouble.code
    except KeyboardInterrupt:
        console.print("interrupted; everything it started was ended")
        return 130
    found = report(story.plot, facts)
    (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    render.show(found, console)
    console.print(f"\n{folder / 'report.json'} has all of this and more; the logs are beside it", highlight=False)
    return Exit.DONE if found["ok"] else Exit.FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
