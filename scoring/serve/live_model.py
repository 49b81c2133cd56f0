"""From a snapshot's file to a model that answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from contracts.scoring import ModelInfo
from learners.contract.needs import TaskSpec
from learners.contract.protocol import ForeignState, Learner
from learners.models.sdim.embedding_version import EmbeddingVersion
from learners.models.sdim.learner import SDIM
from scoring.serve.warm_up import warm_up
from scoring.weights import born, own, task_of
from storage.learning import snapshot_files
from storage.learning.snapshot_files import BadSnapshot, Fault
from storage.learning.snapshot_registry import Snapshot


@runtime_checkable
class Movable(Protocol):
    """A learner that can compute elsewhere than on the CPU."""

    def to(self, device: torch.device) -> object: ...


@dataclass(frozen=True, kw_only=True)
class Model:
    """A learner with the weights of one snapshot. Never changed; a newer one takes its place."""

    learner: Learner
    snapshot: Snapshot
    info: ModelInfo
    task: TaskSpec
    """What it answers."""

    @property
    def ranks(self) -> bool:
        """Whether it orders candidates; else it says what comes next."""
        return self.task.kind == "ranking"

    @property
    def published(self) -> EmbeddingVersion | None:
        """What it ranks with, of a learner whose users have signature tables."""
        return self.learner.published if isinstance(self.learner, SDIM) else None

    @property
    def place(self) -> tuple[int, int]:
        """Branch and step: the greater is the newer."""
        return self.snapshot.branch, self.snapshot.step


def load(folder: Path, snapshot: Snapshot, *, device: str) -> Model:
    """Reads, verifies, builds and warms a model up: the first question it gets will not be slower than others.

    :param device: "auto", "cpu", "cuda", ...; see `device_for`.
    :raises BadSnapshot: the file is missing, changed, or of another learner or version, or its weights give
        no numbers. The message names the file.
    """
    if snapshot.sha256 is None:
        raise BadSnapshot(f"{snapshot.id} is registered without a sha256", "hash")
    file = snapshot_files.path_of(folder, snapshot.id, snapshot.sha256)
    tensors, manifest = snapshot_files.read(folder, snapshot.id, sha256=snapshot.sha256)
    if manifest.get("learner") != snapshot.learner:
        raise BadSnapshot(f"{file} is of learner {manifest.get('learner')!r}, not {snapshot.learner!r}", "foreign")
    try:
        task = task_of(snapshot.learner, manifest["config"])
        learner = _built(snapshot.learner, tensors, manifest)
        on = device_for(learner, device)
        if isinstance(learner, Movable):
            learner.to(on)
        ranks, published = task.kind == "ranking", learner.published if isinstance(learner, SDIM) else None
        warm_up(learner, ranks=ranks, published=published)
    except (ForeignState, KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        fault: Fault = "foreign" if isinstance(error, ForeignState) else "unfit"
        raise BadSnapshot(f"{file} cannot serve: {type(error).__name__}: {error}", fault) from error
    info = ModelInfo(
        learner=learner.name,
        learner_version=learner.version,
        snapshot_id=snapshot.id,
        snapshot_step=snapshot.step,
        snapshot_created_at=snapshot.created_at,
        device=str(on),
        sha256=snapshot.sha256,
        answers="ranking" if ranks else "next_event",
        embedding=None if published is None else published.embedding,
    )
    return Model(learner=learner, snapshot=snapshot, info=info, task=task)


def device_for(learner: Learner, wanted: str) -> torch.device:
    """Where a learner computes. "auto": on CUDA if there is one and the learner can be moved, else the CPU.

    :raises ValueError: the device was named, and the learner computes on the CPU only.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() and isinstance(learner, Movable) else "cpu")
    device = torch.device(wanted)
    if device.type != "cpu" and not isinstance(learner, Movable):
        raise ValueError(f"learner {learner.name} computes on the CPU only, not on {wanted!r}")
    return device


def _built(name: str, tensors: dict[str, np.ndarray[Any, Any]], manifest: dict[str, Any]) -> Learner:
    learner = born(name, manifest["config"], version=manifest.get("learner_version"))
    state = {key: torch.from_numpy(array) for key, array in own(tensors).items()}
    if isinstance(learner, SDIM):
        # What serves is a part of the state. To read the rest, names of items above all, would hold up answers.
        learner.load({key: part for key, part in state.items() if key == "meta" or key.startswith("published.")})
    else:
        learner.load(state)
        learner.load(learner.serving_state())  # without optimizer: less memory, and no gradients are prepared
    return learner
