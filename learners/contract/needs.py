"""What a learner asks for and what it is asked. Neither torch nor numpy: `maintain` and the command line read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskKind = Literal["next_event", "ranking", "outcome", "generation"]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The context a learner asks for."""

    last_n: int
    """How many of a user's latest events a history holds."""
    items_only: bool = False
    """Only events that carry an item count towards `last_n`; the others need not be there."""
    task: str | None = None
    """Task of the labels it learns, which speak of payments; None: it learns from events alone."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One question that a learner answers."""

    name: str
    """Unique among the tasks of one learner."""
    kind: TaskKind
    """What is asked: when and what next, candidates in order, the outcome of an event, an item made up of tokens."""
    label: str | None = None
    """Of outcomes: the task of the labels that decide them."""
    cost: str
    """Name of the loss that stands for the task: it grows when the world is no longer what was learnt."""
