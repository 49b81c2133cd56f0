"""Strings and numbers as tensors, and how a state is checked before it is taken."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learners.contract.protocol import ForeignState, State


def json_tensor(value: object) -> Tensor:
    """uint8 tensor of the UTF-8 bytes of canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # A lone surrogate is no UTF-8, but a producer may send one; it must come back as it was.
    return torch.from_numpy(np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8).copy())


def from_json_tensor(tensor: Tensor) -> Any:
    """Inverse of `json_tensor`.

    :raises ForeignState: not such a tensor.
    """
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise ForeignState(f"expected a flat uint8 tensor, got {tensor.dtype} of shape {tuple(tensor.shape)}")
    try:
        return json.loads(tensor.cpu().numpy().tobytes().decode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise ForeignState(f"not the JSON of a learner: {error}") from error


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> State:
    """The same tensors under longer names."""
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def below(prefix: str, state: Mapping[str, Tensor]) -> State:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def check_names(found: Mapping[str, Tensor], expected: set[str]) -> None:
    """:raises ForeignState: with the names that are missing or foreign."""
    missing, foreign = sorted(expected - set(found)), sorted(set(found) - expected)
    if missing or foreign:
        raise ForeignState(f"names differ: missing {missing[:8]}, foreign {foreign[:8]}")


def check_like(name: str, found: Tensor, like: Tensor) -> None:
    """:raises ForeignState: another shape or dtype than `like`."""
    if found.shape != like.shape or found.dtype != like.dtype:
        raise ForeignState(f"{name}: found {found.dtype} {tuple(found.shape)}, need {like.dtype} {tuple(like.shape)}")


def check_config(found: Mapping[str, object], own: Mapping[str, object]) -> None:
    """:raises ForeignState: naming each field in which the state's configuration differs from ours."""
    names = sorted(set(found) | set(own))
    differing = [name for name in names if found.get(name) != own.get(name)]
    if differing:
        said = ", ".join(f"{name}: state {found.get(name)!r}, own {own.get(name)!r}" for name in differing)
        raise ForeignState(f"configurations differ: {said}")
