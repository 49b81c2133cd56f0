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


def path_of(folder: Path, snapshot_id: str) -> Path:
    """Where a snapshot's tensors are; the manifest stands beside it as .json."""
    return folder / f"{snapshot_id}.safetensors"


def write(
    folder: Path,
    snapshot_id: str,
    tensors: Tensors,
    manifest: Mapping[str, Any],
    *,
    renamed: Callable[[], None] = lambda: None,
) -> None:
    """Writes both files durably: content, fsync, rename, fsync of the folder.

    :param renamed: called between the rename and the folder's fsync (fault injection).
    :raises Unwritable: the disk is full, read-only, ...; what was begun is removed.
    """
    file = path_of(folder, snapshot_id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        described = json.dumps(manifest, indent=2, sort_keys=True).encode() + b"\n"
        _replace({file.with_suffix(".json"): described, file: serialize(dict(tensors))})
        renamed()
        _sync_folder(folder)
    except OSError as error:
        raise Unwritable(error.errno, f"cannot write {file}: {error.strerror}") from error


def read(folder: Path, snapshot_id: str, *, sha256: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Tensors and manifest, verified.

    :raises BadSnapshot: missing, unreadable, of another schema version, or not the bytes it was made of.
    """
    file = path_of(folder, snapshot_id)
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
    """Removes both files, if they are there."""
    file = path_of(folder, snapshot_id)
    file.unlink(missing_ok=True)
    file.with_suffix(".json").unlink(missing_ok=True)


def _replace(files: Mapping[Path, bytes]) -> None:
    """All are on disk before the first gets its name; what a killed process left behind is removed."""
    unfinished = {file: file.with_name(f".{file.name}.{os.getpid()}") for file in files}
    try:
        for file, content in files.items():
            with unfinished[file].open("wb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
        for file, written in unfinished.items():
            written.replace(file)
    finally:
        for file in files:
            for left in file.parent.glob(f".{file.name}.*"):
                left.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
