"""Places where a test can kill or freeze the process, from within, at exactly the n-th passage.

Armed through the setting `failpoint`: DRIFTLINE_FAILPOINT=ingest.before_commit:3 kills as `kill -9` would,
DRIFTLINE_FAILPOINT=ingest.before_commit:3:stop freezes as `kill -STOP` would, and ingest.before_commit:3:raise raises
an error that nobody expects. Unarmed, a passage costs one comparison.
"""

from __future__ import annotations

import os
import signal
from typing import Literal, get_args

from runtime.lifecycle import ConfigurationError

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
    "score.after_answers",
    "maintain.before_compact_commit",
    "maintain.after_compact_commit",
    "maintain.after_mark",
    "maintain.after_unlink",
    "maintain.before_trim_commit",
    "erase.after_suppressed",
    "erase.after_log",
    "erase.after_others",
    "erase.after_letters",
    "erase.after_sequences",
    "export.before_move",
    "export.before_pointer",
]
"""`train.after_rename`: the snapshot file has its final name, but its folder is not yet fsynced."""

_armed: str | None = None
_passages_left = 0
_action = ""


class Injected(RuntimeError):
    """The error of an armed passage; our own code knows it as little as a defect."""


def arm(text: str) -> None:
    """Arms one fail point: "name", "name:n" (the n-th passage kills; default 1), "name:n:stop" or "name:n:raise".

    "" disarms.

    :raises Usage: no such fail point, n is not a positive number, or another action than "stop" or "raise".
    """
    global _armed, _passages_left, _action
    name, _, rest = text.partition(":")
    nth, _, action = rest.partition(":")
    if name and name not in get_args(Failpoint):
        known = ", ".join(get_args(Failpoint))
        raise ConfigurationError(f"no fail point {name!r}", where="setting failpoint", hint=f"known: {known}")
    if nth and not (nth.isascii() and nth.isdigit() and int(nth) > 0):
        raise ConfigurationError(
            f"{nth!r} is not a passage number", where="setting failpoint", hint="e.g. ingest.before_commit:3"
        )
    if action not in ("", "stop", "raise"):
        raise ConfigurationError(
            f"{action!r} is no action", where="setting failpoint", hint="nothing (to kill), stop, or raise"
        )
    _armed, _passages_left = name or None, int(nth or 1)
    _action = action


def failpoint(name: Failpoint) -> None:
    """Passes a fail point; the armed one ends (or freezes) the process without a trace of cleaning up.

    :raises Injected: it is armed to raise.
    """
    global _passages_left
    if _armed is None or name != _armed:
        return
    _passages_left -= 1
    if _passages_left == 0:
        if _action == "raise":
            raise Injected(f"fail point {name}")
        os.kill(os.getpid(), signal.SIGSTOP if _action else signal.SIGKILL)
