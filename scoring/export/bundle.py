"""A bundle: the weights of a snapshot that serve, what they are, and an example that any machine can repeat.

    weights.safetensors   the learner's serving state
    example.json          a request with its history, and the answer to it
    manifest.json         what it is, and sha256 of the other two

A bundle's name is sha256 over its manifest, which names the bytes of the others: the same snapshot, exported by the
same code on the same device class, is the same bundle. Reading one and answering from it takes torch, numpy and
safetensors: no Postgres, no Kafka, no setting, no clock.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse_tensors
from safetensors.numpy import save as serialize

from learners.contract.protocol import ForeignState, Learner, State
from runtime.lifecycle import OperatorActionRequired
from scoring.weights import born

WEIGHTS, EXAMPLE, MANIFEST = "weights.safetensors", "example.json", "manifest.json"
SCHEMA_VERSION = 1
"""Of the three files; a bundle of another version is refused."""
_AGAIN = "export it again, or fetch it again; do not serve from it"


class BadBundle(OperatorActionRequired):
    """A bundle is cut, changed, of another version, or answers otherwise than it should."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """The bytes of a bundle, whose digests agree."""

    manifest: Mapping[str, Any]
    weights: bytes
    example: bytes

    @property
    def id(self) -> str:
        """Its name: 64 hexadecimal digits."""
        return str(self.manifest["bundle"])

    @property
    def files(self) -> dict[str, bytes]:
        """Name -> bytes, in the order in which they are to be written: the manifest last."""
        return {WEIGHTS: self.weights, EXAMPLE: self.example, MANIFEST: canonical(self.manifest)}


def canonical(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, ASCII, no NaN.

    :raises ValueError: it holds a number that JSON has not.
    """
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def seal(description: Mapping[str, Any], weights: State, example: Mapping[str, Any]) -> Bundle:
    """A bundle of these.

    :param description: what the manifest says beside "schema_version", "files" and "bundle".
    """
    tensors = {name: weights[name].cpu().contiguous().numpy() for name in sorted(weights)}
    files = {WEIGHTS: serialize(tensors), EXAMPLE: canonical(example)}
    content = {
        **description,
        "schema_version": SCHEMA_VERSION,
        "files": {name: {"sha256": _sha256(body), "bytes": len(body)} for name, body in files.items()},
    }
    manifest = {**content, "bundle": _sha256(canonical(content))}
    return Bundle(manifest=manifest, weights=files[WEIGHTS], example=files[EXAMPLE])


def parse(files: Mapping[str, bytes], *, where: str) -> Bundle:
    """A bundle out of its files, every byte compared.

    :param where: where they were read, for messages.
    :raises BadBundle: a file is missing, cut or changed, or of another schema version; says which.
    """
    manifest = _manifest(files, where)
    for name in (WEIGHTS, EXAMPLE):
        said, found = manifest["files"][name]["sha256"], _sha256(_file(files, name, where))
        if found != said:
            what = f"it holds other bytes than were written: sha256 {found}, the manifest says {said}"
            raise BadBundle(what, where=f"{where}/{name}", hint=_AGAIN)
    return Bundle(manifest=manifest, weights=files[WEIGHTS], example=files[EXAMPLE])


def learner_in(bundle: Bundle, *, where: str) -> Learner:
    """The learner, ready to predict; it cannot learn.

    :raises BadBundle: the weights are not of a learner that this code has, in this version.
    """
    manifest = bundle.manifest
    try:
        return restored(
            manifest["learner"], manifest["config"], manifest["learner_version"], parse_tensors(bundle.weights)
        )
    except (ForeignState, SafetensorError, KeyError, TypeError, ValueError) as error:
        made_by = manifest.get("driftline_version")
        todo = f"use Driftline {made_by}, which wrote it, or export the snapshot again with this one"
        raise BadBundle(f"it cannot be loaded: {error}", where=f"{where}/{WEIGHTS}", hint=todo) from error


def restored(name: str, config: Mapping[str, Any], version: object, tensors: Mapping[str, NDArray[Any]]) -> Learner:
    """A learner with these weights.

    :param config: "seed" and "options", as `learners.registry.build` takes them.
    :raises ForeignState: they are of another version or learner. :raises ValueError: no such learner or option.
    """
    learner = born(name, config, version=version)
    learner.load({key: torch.from_numpy(np.array(tensor)) for key, tensor in tensors.items()})
    return learner


def _manifest(files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    body, place = _file(files, MANIFEST, where), f"{where}/{MANIFEST}"
    try:
        manifest = json.loads(body)
        version = manifest["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadBundle(f"it is no manifest: {error!r}", where=place, hint=_AGAIN) from error
    if version != SCHEMA_VERSION:
        todo = "use the Driftline that wrote it, or export the snapshot again with this one"
        raise BadBundle(f"schema version {version!r}; this code reads {SCHEMA_VERSION}", where=place, hint=todo)
    content = {name: value for name, value in manifest.items() if name != "bundle"}
    try:
        same = canonical(manifest) == body and manifest.get("bundle") == _sha256(canonical(content))
    except ValueError:
        same = False
    if not same or set(manifest.get("files", ())) != {WEIGHTS, EXAMPLE}:
        raise BadBundle("it was changed after it was written", where=place, hint=_AGAIN)
    return dict(manifest)


def _file(files: Mapping[str, bytes], name: str, where: str) -> bytes:
    if name not in files:
        raise BadBundle("the file is missing", where=f"{where}/{name}", hint=_AGAIN)
    return files[name]


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
