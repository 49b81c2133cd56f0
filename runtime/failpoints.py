"""Places where a test can kill the process, as `kill -9` would, at exactly the n-th passage.

Armed through the setting `failpoint`, e.g. DRIFTLINE_FAILPOINT=ingest.before_commit:3. Unarmed, a passage
costs one comparison.
"""

from __future__ import annotations

import os
import signal
from typing import Literal, get_args

from runtime.lifecycle import Usage

Failpoint = Literal[
    "ingest.after_rows",
    "ingest.before_commit",
    "ingest.after_commit",
    "train.after_journal",
    "train.before_step",
    "train.after_step",
    "train.after_rename",
    "train.before_live",
    "train.after_live",
]
"""`train.after_rename`: the snapshot file has its final name, but its folder is not yet fsynced."""

_armed: str | None = None
_passages_left = 0


def arm(text: str) -> None:
    """Arms one fail point: "name" or "name:n" (the n-th passage kills; default 1). "" disarms.

    :raises Usage: no such fail point, or n is not a positive number.
    """
    global _armed, _passages_left
    name, _, nth = text.partition(":")
    if name and name not in get_args(Failpoint):
        known = ", ".join(get_args(Failpoint))
        raise Usage(f"no fail point {name!r}", where="setting failpoint", todo=f"known: {known}")
    if nth and not (nth.isascii() and nth.isdigit() and int(nth) > 0):
        raise Usage(f"{nth!r} is not a passage number", where="setting failpoint", todo="e.g. ingest.before_commit:3")
    _armed, _passages_left = name or None, int(nth or 1)


def failpoint(name: Failpoint) -> None:
    """Passes a fail point; the armed one ends the process without a trace of cleaning up."""
    global _passages_left
    if _armed is None or name != _armed:
        return
    _passages_left -= 1
    if _passages_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
