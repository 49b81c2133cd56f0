"""How results appear on stdout: a table for people, JSON for programs.

What records and manifests hold is a stranger's text. Whatever is printed passes `say` or `note`, which show control
characters as escapes, so that nothing moves the cursor, rings, or changes the direction of writing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from runtime.redaction import escaped, escaped_json


def as_json(value: Any, *, indent: bool = True) -> None:
    """JSON: dataclasses as objects, times as ISO 8601, bytes as base64."""
    text = msgspec.json.encode(value)
    _write(sys.stdout, escaped_json((msgspec.json.format(text) if indent else text).decode()))


def say(line: str = "") -> None:
    """A line, or several."""
    _write(sys.stdout, escaped(line, keep="\n\t"))


def note(line: str) -> None:
    """A line that is not part of the result: on stderr."""
    _write(sys.stderr, escaped(line, keep="\n\t"))


def one_line(value: object) -> str:
    """A value of a record, which cannot begin a line of its own."""
    return escaped(str(value))


def _write(stream: TextIO, text: str) -> None:
    stream.write(text + "\n")
    stream.flush()


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns under their headers; numbers to the right, nothing cut."""
    rows = list(rows)
    cells = [[_cell(value) for value in row] for row in rows]
    right = [bool(rows) and all(isinstance(row[n], int | float | None) for row in rows) for n in range(len(headers))]
    widths = [max([len(header), *(len(row[n]) for row in cells)]) for n, header in enumerate(headers)]
    for line in [list(headers), *cells]:
        aligned = [text.rjust(w) if r else text.ljust(w) for text, w, r in zip(line, widths, right, strict=True)]
        say("  ".join(aligned).rstrip())


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.1f}"
        case datetime():
            return time(value)
        case _:
            return one_line(" ".join(str(value).split()))


def time(at: datetime) -> str:
    """A time in UTC, to the microsecond only where it has any."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def age(seconds: float | None) -> str:
    """A duration for people."""
    if seconds is None:
        return "-"
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.1f} s"
