"""From a snapshot's file to a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from numpy.typing import NDArray

from learners.contract.protocol import ForeignState
from runtime.device_class import device_class
from scoring.export.bundle import Bundle, restored, seal
from scoring.export.bundle_example import THREADS, example_for
from scoring.weights import own, task_of
from storage.learning.snapshot_files import BadSnapshot
from storage.learning.snapshot_registry import Snapshot


def bundle_of(snapshot: Snapshot, tensors: Mapping[str, NDArray[Any]], manifest: Mapping[str, Any]) -> Bundle:
    """The bundle of a snapshot, of the learner alone: its references stay behind. The same each time.

    :param tensors, manifest: of the file, as `storage.learning.snapshot_files.read` verified them.
    :raises BadSnapshot: they are of another learner or version, or its weights give no numbers.
    """
    if manifest.get("learner") != snapshot.learner:
        what = f"{snapshot.id}: its file is of learner {manifest.get('learner')!r}, not {snapshot.learner!r}"
        raise BadSnapshot(what, "foreign")
    try:
        learner = restored(snapshot.learner, manifest["config"], manifest.get("learner_version"), own(tensors))
        weights = learner.serving_state()
        learner.load(weights)
        example = example_for(task_of(snapshot.learner, manifest["config"]), learner)
        return seal(_description(snapshot, manifest), weights, example)
    except ForeignState as error:
        raise BadSnapshot(f"{snapshot.id} is foreign: {error}", "foreign") from error
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise BadSnapshot(f"{snapshot.id} cannot serve: {type(error).__name__}: {error}", "unfit") from error


def _description(snapshot: Snapshot, manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "learner": snapshot.learner,
        "learner_version": manifest["learner_version"],
        "config": manifest["config"],
        "snapshot": {
            "id": snapshot.id,
            "sha256": snapshot.sha256,
            "branch": snapshot.branch,
            "step": snapshot.step,
            "cursor": {str(stream): offset for stream, offset in snapshot.cursor.items()},
            "front": None if snapshot.front is None else snapshot.front.isoformat(),
            "losses": manifest.get("metrics"),
            "code_version": manifest.get("code_version"),
            "device_class": manifest.get("device_class"),
        },
        "driftline_version": version("driftline"),
        "torch_version": torch.__version__,
        "device_class": device_class(threads=THREADS),
    }
