"""Ends this process when the one that started it is gone, however that ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

from runtime.lifecycle import ConfigurationError

_PR_SET_PDEATHSIG = 1
_LOOK_EVERY_S = 1.0


def end_with(parent: int) -> None:
    """SIGTERM to this process as soon as its parent, process `parent`, has ended.

    :raises Usage: that process is not the parent (it may be gone already).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    else:
        threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True).start()
    if os.getppid() != parent:
        raise ConfigurationError(f"process {parent} did not start this one, or is gone")


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)
