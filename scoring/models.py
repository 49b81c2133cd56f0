"""From a snapshot's file to a model that answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from contracts.scoring import DEFAULT_QUANTILES, ModelInfo
from learners.batch import Query
from learners.build import build
from learners.cohort import LEARNER
from learners.protocol import ForeignState, Learner
from runtime.context import context_of
from storage import snapshots
from storage.registry import Snapshot
from storage.sequences import USER, SequenceEvent
from storage.snapshots import BadSnapshot, Fault

_PREFIX = f"{LEARNER}/"
_HOUR_US = 3_600_000_000


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
    file = snapshots.path_of(folder, snapshot.id, snapshot.sha256)
    tensors, manifest = snapshots.read(folder, snapshot.id, sha256=snapshot.sha256)
    if manifest.get("learner") != snapshot.learner:
        raise BadSnapshot(f"{file} is of learner {manifest.get('learner')!r}, not {snapshot.learner!r}", "foreign")
    try:
        learner = _built(snapshot.learner, tensors, manifest)
        on = device_for(learner, device)
        if isinstance(learner, Movable):
            learner.to(on)
        _warm_up(learner)
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
    )
    return Model(learner=learner, snapshot=snapshot, info=info)


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
    config = manifest["config"]
    learner = build(name, int(config["seed"]), **config["options"])
    state = {
        key.removeprefix(_PREFIX): torch.from_numpy(array) for key, array in tensors.items() if key.startswith(_PREFIX)
    }
    if manifest.get("learner_version") != learner.version:
        raise ForeignState(f"version {manifest.get('learner_version')!r}, this code's is {learner.version!r}")
    learner.load(state)
    learner.load(learner.serving_state())  # without optimizer: less memory, and no gradients are prepared
    return learner


def _warm_up(learner: Learner) -> None:
    """One prediction of a full and one of an empty history.

    :raises ArithmeticError: they are no numbers.
    """
    stack = [_event(n) for n in range(learner.needs.last_n)]
    query = Query(
        stack=np.array([0, 1]),
        visible=np.array([len(stack), 0]),
        now=np.array([stack[-1].at] * 2),
        quantiles=DEFAULT_QUANTILES,
    )
    prediction = learner.predict(context_of([stack, []]), query)
    if bool(prediction.quantiles.isnan().any()) or bool(prediction.type_log_probs.isnan().any()):
        raise ArithmeticError("its predictions are no numbers")


def _event(n: int) -> SequenceEvent:
    return SequenceEvent(
        at=n * _HOUR_US,
        event_id=str(n),
        topic="warm-up",
        partition=0,
        offset=n,
        stream_id=0,
        kind=USER,
        type="warm-up",
        item=None,
        amount=None,
        currency=None,
        other=None,
        key=n,
    )
