"""The file in which a running `driftline up` says where its parts are, so that verbs in other terminals find them.

`up` holds a lock on the file for as long as it lives. A file that nobody locks is left over from an `up` that
was killed, and counts as absent.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from runtime.lifecycle import ConfigurationError, OperatorActionRequired

NAME = "stack.json"


class Stack(Struct, frozen=True, kw_only=True):
    """Where the parts of a running stack are."""

    postgres_url: str
    kafka_bootstrap: str
    data_dir: str
    """Folder of snapshot files."""
    score_url: str
    metrics: dict[str, str]
    """Process -> URL of its metrics page."""


@contextmanager
def held(file: Path) -> Iterator[Held]:
    """Takes the place of `up` in a folder; the file is gone with the block.

    :raises Refused: another `up` has it. :raises Usage: the folder cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write: {error.strerror}", where=str(file), hint="give another --data folder"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OperatorActionRequired(
                "another `driftline up` runs on this folder",
                where=str(file.parent),
                hint="use that one, or give this one a folder of its own with --data",
            ) from None
        os.truncate(descriptor, 0)
        try:
            yield Held(descriptor)
        finally:
            file.unlink(missing_ok=True)
            with suppress(OSError):  # other things are in it
                file.parent.rmdir()
    finally:
        os.close(descriptor)


class Held:
    """The locked file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def tell(self, stack: Stack) -> None:
        """From now on other verbs find the stack."""
        os.pwrite(self._descriptor, msgspec.json.format(msgspec.json.encode(stack)) + b"\n", 0)


def find(file: Path) -> Stack | None:
    """What a running `up` says; None = none runs here, or it is still starting."""
    try:
        with file.open("rb") as content:
            try:
                fcntl.flock(content, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = content.read()
                return msgspec.json.decode(text, type=Stack) if text else None
            return None
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(
            f"unreadable: {error}", where=str(file), hint="stop `driftline up`, and start it again"
        ) from None
