"""What a learner sees: the values that travel from the stream into a learner.

Shape legend, used by every file of this folder:

    B rows of a step      S stacks (shared histories)   E events of all stacks together
    L history length      K event types                 D width
    H heads               Q quantiles                   M prompts of a pool

Times are int64 microseconds of UTC since 1970. They are exact there; a learner re-bases them to its own
stack before it turns them into floats, so that adding a constant to every time changes nothing.
Strings stay strings: a learner numbers them itself (`learners/vocabulary.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Strings = NDArray[np.object_]


@dataclass(frozen=True, kw_only=True)
class Context:
    """Histories, ragged. Stack `s` is the slice `offsets[s]:offsets[s + 1]`, sorted by event time.

    Rows of one user in one step share a stack; `Query.visible` says how much of it a row may see.
    """

    offsets: Ints
    """[S + 1] start of each stack; the last entry is E."""
    at: Ints
    """[E] event time, microseconds; not decreasing inside a stack."""
    kind: Strings
    """[E] "user", "payment" or "relation"."""
    type: Strings
    """[E] what happened, as the producer names it."""
    item: Strings
    """[E] item id, or None."""
    amount: Ints
    """[E] money in millionths of `currency`; 0 where there is none."""
    currency: Strings
    """[E] ISO 4217 code, or None where there is no money."""
    other: Strings
    """[E] the other party: counterpart of a relation, payee of a payment, or None."""
    role: Strings
    """[E] "actor" where the stack's user acted, "counterpart" where somebody acted on them."""
    key: Ints
    """[E] 64-bit digest of the event's identity (topic, record key, event id)."""

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is asked: row `b` stands behind the first `visible[b]` events of stack `stack[b]`."""

    stack: Ints
    """[B] which stack."""
    visible: Ints
    """[B] events of that stack that lie before the row; 0 = empty history."""
    now: Ints
    """[B] microseconds; the user is known to have been silent from the last visible event until now."""
    quantiles: tuple[float, ...] = ()
    """Quantiles of the next event's time that `predict` computes; () spares their cost in training."""

    def __len__(self) -> int:
        return len(self.stack)


class TargetKind(StrEnum):
    EVENT = "event"
    """The user's next event happened."""
    TICK = "tick"
    """Nothing happened until `at`: a censored gap."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What came: only `score` and `learn` see it."""

    kind: TargetKind
    at: Ints
    """[B] microseconds; when it happened (or until when nothing did)."""
    type: Strings
    """[B] type of the event; ignored for a tick."""
    resolution: Ints
    """[B] microseconds; width of the stream's clock tick: the gap is only known up to it."""
    timed: Bools
    """[B] False where only the type counts: a user's first event, and the 2nd, 3rd, .. event of one
    instant (simultaneous events are one mark set: its time is scored once)."""
    weight: Floats
    """[B] weight in the loss."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the rows come from. Learners use `key` alone, as the seed of row-wise randomness."""

    key: Ints
    """[B] 64-bit digest of the identity of the row's event."""
    snapshot: str | None = None
    """Snapshot that issued the prediction, where it was issued by a serving process."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of one step."""

    context: Context
    query: Query
    target: Target
    origin: Origin

    def __len__(self) -> int:
        return len(self.query)
