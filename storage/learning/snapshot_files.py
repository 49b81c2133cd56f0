"""Snapshot files: safetensors and a JSON manifest, written so that a name never stands for half a file.

To this module weights are arrays of bytes with names. The digest covers names, types, shapes and bytes in
sorted order, and nothing that differs between two runs of the same steps.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse
from safetensors.numpy import save as serialize

Tensors = Mapping[str, NDArray[Any]]

SCHEMA_VERSION = 1
"""Of file and manifest; a file of another version is refused."""
_NAMED_DIGITS = 16  # of the digest, in file names

Fault = Literal["missing", "unreadable", "schema", "hash", "foreign", "unfit"]
"""What is wrong with a file: not there; cut or no snapshot at all; of another schema version; of other bytes than
were registered; of another learner or version; its weights cannot be used."""


class BadSnapshot(ValueError):
    """A snapshot file is missing, cut, changed or of another kind; the message names the file."""

    def __init__(self, what: str, fault: Fault) -> None:
        super().__init__(what)
        self.fault = fault


class Unwritable(OSError):
    """The snapshot could not be written (disk full?); nothing stands under its name."""


def digest(tensors: Tensors) -> str:
    """SHA-256 over names, types, shapes and bytes, names sorted."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        sha.update(f"{name}\0{tensor.dtype.str}\0{tensors[name].shape}\0".encode())
        sha.update(tensor.tobytes())
    return sha.hexdigest()


def path_of(folder: Path, snapshot_id: str, sha256: str) -> Path:
    """Where a snapshot's tensors are; the manifest stands beside it as .json.

    The name carries the id and the digest: two processes that hold one snapshot to be of different bytes (a fenced
    one on another device class, say) write different files, so neither can spoil what the other made live.
    """
    return folder / f"{snapshot_id}.{sha256[:_NAMED_DIGITS]}.safetensors"


def write(
    folder: Path,
    snapshot_id: str,
    tensors: Tensors,
    manifest: Mapping[str, Any],
    *,
    epoch: int = 0,
    renamed: Callable[[], None] = lambda: None,
) -> None:
    """Writes both files durably: content, fsync, rename, fsync of the folder.

    :param manifest: its "sha256" is the tensors' `digest`.
    :param epoch: of the writer's lease. Stands in the unfinished files' names, so that no two processes write one;
        what earlier epochs left unfinished is removed.
    :param renamed: called between the rename and the folder's fsync (fault injection).
    :raises Unwritable: the disk is full, read-only, ...; what was begun is removed.
    """
    file = path_of(folder, snapshot_id, manifest["sha256"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        described = json.dumps(manifest, indent=2, sort_keys=True).encode() + b"\n"
        try:
            _replace({file.with_suffix(".json"): described, file: serialize(dict(tensors))}, epoch)
        finally:
            _remove_unfinished(folder, snapshot_id, epoch)
        renamed()
        _sync_folder(folder)
    except OSError as error:
        raise Unwritable(error.errno, f"cannot write {file}: {error.strerror}") from error


def read(folder: Path, snapshot_id: str, *, sha256: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Tensors and manifest, verified.

    :raises BadSnapshot: missing, unreadable, of another schema version, or not the bytes it was made of.
    """
    file = path_of(folder, snapshot_id, sha256)
    try:
        manifest = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        tensors = parse(file.read_bytes())
    except FileNotFoundError as error:
        raise BadSnapshot(f"{error.filename} is missing", "missing") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise BadSnapshot(f"{file} cannot be read: {error}", "unreadable") from error
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        raise BadSnapshot(f"{file} is of another schema version than {SCHEMA_VERSION}", "schema")
    found = digest(tensors)
    if found != sha256 or manifest.get("sha256") != sha256:
        raise BadSnapshot(f"{file} holds other bytes than were written: sha256 {found}, registered {sha256}", "hash")
    return dict(sorted(tensors.items())), manifest


def remove(folder: Path, snapshot_id: str) -> None:
    """Removes the snapshot's files, if there are any: of whatever bytes, so a fenced process's too."""
    for file in folder.glob(f"{snapshot_id}.*"):
        file.unlink(missing_ok=True)


def strays(folder: Path, live: Mapping[str, str]) -> list[Path]:
    """Files under the ids of live snapshots that are not theirs: what a fenced process wrote.

    :param live: id -> sha256 as registered. Files of other ids are nobody's business here: the folder may be shared.
    """
    found = []
    for file in sorted(folder.glob("*.*")):
        snapshot_id, _, rest = file.name.partition(".")
        sha256 = live.get(snapshot_id)
        if sha256 is not None and rest.partition(".")[0] != sha256[:_NAMED_DIGITS]:
            found.append(file)
    return found


def _replace(files: Mapping[Path, bytes], epoch: int) -> None:
    """All are on disk before the first gets its name."""
    unfinished = {file: file.with_name(f".{file.name}.{epoch}") for file in files}
    for file, content in files.items():
        with unfinished[file].open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
    for file, written in unfinished.items():
        written.replace(file)


def _remove_unfinished(folder: Path, snapshot_id: str, epoch: int) -> None:
    """What this process or one before it (killed, or fenced and still writing) left; a successor's is its own."""
    for file in folder.glob(f".{snapshot_id}.*"):
        writer = file.suffix.removeprefix(".")
        if writer.isdecimal() and int(writer) <= epoch:
            file.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
