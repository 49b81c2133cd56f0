"""From stored weights to a learner: what a snapshot's file and a bundle have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from learners.arms.group import LEARNER
from learners.contract.needs import TaskKind, TaskSpec
from learners.contract.protocol import ForeignState, Learner
from learners.registry import BrokenLearner, UnknownLearner, build, tasks_of

_PREFIX = f"{LEARNER}/"
SERVED: frozenset[TaskKind] = frozenset({"next_event", "ranking"})
"""Kinds of tasks that requests can be answered for."""


def is_served(name: str) -> bool:
    """Whether requests can be answered for a learner; of one that is not installed: no."""
    try:
        return any(task.kind in SERVED for task in tasks_of(name))
    except (UnknownLearner, BrokenLearner):
        return False


def task_of(name: str, config: Mapping[str, Any]) -> TaskSpec:
    """What a learner answers requests with.

    :param config: as for `born`.
    :raises ValueError: no such learner or option, or none of its tasks is served.
    """
    tasks = tasks_of(name, int(config["seed"]), **config["options"])
    for task in tasks:
        if task.kind in SERVED:
            return task
    raise ValueError(f"learner {name} answers no requests: its tasks are {', '.join(task.kind for task in tasks)}")


def own(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Of a snapshot's tensors the learner's, by the names it gives them: its references stay behind."""
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}


def born(name: str, config: Mapping[str, Any], *, version: object) -> Learner:
    """A learner that these weights can be loaded into, still without them.

    :param config: "seed" and "options", as `learners.registry.build` takes them.
    :param version: of the learner that they are of.
    :raises ForeignState: this code's is of another version. :raises ValueError: no such learner or option.
    """
    learner = build(name, int(config["seed"]), **config["options"])
    if version != learner.version:
        raise ForeignState(f"{name} of version {version!r}; this code's is {learner.version!r}")
    return learner
