"""What a learner sees: the values that travel from the stream into a learner.

Shape legend, used by every file of this folder:

    B rows of a step      S stacks (shared histories)   E events of all stacks together
    L history length      K event types                 D width
    H heads               Q quantiles                   M prompts of a pool
    C candidates of a row G signatures of an item F features of a subject

Times are int64 microseconds of UTC since 1970. They are exact there; a learner re-bases them to its own
stack before it turns them into floats, so that adding a constant to every time changes nothing.
Strings stay strings: a learner numbers them itself (`learners/contract/string_index.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

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
class Candidates:
    """Items a ranking learner is asked to order. A column's place says nothing: a learner that permuted columns
    would answer with permuted logits (`tests/contract/test_learners.py` asks that of all)."""

    item: Strings
    """[B, C] item ids; None where the mask is False."""
    mask: Bools
    """[B, C] False for padding; a row with no True is not ranked."""
    log_q: Floats
    """[B, C] log-probability with which the sampler proposes the item (0 where nothing was sampled). Training
    subtracts it from the logit; answers never do."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The events whose outcome is asked for, as they happen: nothing of what came of them is here."""

    amount: Ints
    """[B] money in millionths of the currency unit."""
    other: Strings
    """[B] the other party, or None."""
    features: Floats
    """[B, F] what the learner's `Parties` knew when each event was handled. It is kept with the prediction: at
    maturity nobody could tell it any more."""


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
    user: Strings | None = None
    """[B] whose history the row stands behind. Only bookkeeping reads it (tables kept per user, baskets): no
    prediction may depend on a user's name."""
    candidates: Candidates | None = None
    """What to rank; None where nothing is. In training a `Ranking` of `learners/tasks/ranking.py` fills it in,
    the same for every arm."""
    subject: Subject | None = None
    """Whose outcome to predict: the row's own event, at `now`; None where no outcome is asked for."""

    def __len__(self) -> int:
        return len(self.stack)


class Drawn(IntEnum):
    """How a candidate came to be asked about."""

    CHOSEN = 0
    """It is the item of the row's event."""
    UNIFORM = 1
    """Every known item was as likely."""
    POPULAR = 2
    """Items were as likely as they had been frequent strictly before the event."""
    CATALOGUE = 3
    """All known items were asked about."""


class TargetKind(StrEnum):
    EVENT = "event"
    """The user's next event happened."""
    TICK = "tick"
    """Nothing happened until `at`: a censored gap."""
    OUTCOME = "outcome"
    """What came of an earlier event became known at `at`, or the silence about it grew so long that it counts as
    one: see `y`. The context is that of the event, as it was handled."""


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
    item: Strings | None = None
    """[B] item of the event, None where it has none; None as a whole where nobody ranks."""
    wanted: Bools | None = None
    """[B] whether the item is a choice that counts: it makes the item more frequent, and it is ranked if anybody
    ever chose the item before."""
    drawn: Ints | None = None
    """[B, C] a `Drawn` for each of `Query.candidates`."""
    repeat: Bools | None = None
    """[B] whether the item stands in the history the row may see."""
    y: Floats | None = None
    """[B] outcomes, 0 to 1; None for events and ticks."""
    supersedes: Floats | None = None
    """[B] where the row corrects an outcome that was learnt before, what that was; NaN elsewhere. Counts move the case
    from one to the other; what follows a gradient takes the row as it is. None as a whole: nothing is corrected."""
    superseded_at: Ints | None = None
    """[B] microseconds; when the outcome that is corrected had become known; 0 elsewhere."""


def superseded(target: Target) -> Floats:
    """[B] outcomes that the rows correct; NaN where they correct none."""
    return np.full(len(target.at), np.nan) if target.supersedes is None else target.supersedes


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the rows come from. Learners use `key` alone, as the seed of row-wise randomness."""

    key: Ints
    """[B] 64-bit digest of the identity of the row's event."""
    newest: Bools | None = None
    """[B] True where nothing of the row's user in the log so far (below the step's cursor, and the step's earlier
    rows) lies at or behind the row's event time, so that the visible history and the row are the user's whole
    sequence; None: not known. Only tables kept per user read it."""
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
