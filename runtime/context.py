"""Histories out of Postgres as a learner reads them: the one way, for training and for scoring."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learners.batch import Context, Strings
from storage import sequences
from storage.sequences import SequenceEvent

KIND_NAMES = {
    sequences.USER: "user",
    sequences.PAYMENT: "payment",
    sequences.RELATION_ACTOR: "relation",
    sequences.RELATION_COUNTERPART: "relation",
}


def context_of(stacks: Sequence[Sequence[SequenceEvent]]) -> Context:
    """One stack a history, in the order given."""
    events = [event for stack in stacks for event in stack]
    acted_on = sequences.RELATION_COUNTERPART
    return Context(
        offsets=np.cumsum([0, *(len(stack) for stack in stacks)]).astype(np.int64),
        at=np.array([event.at for event in events], np.int64),
        kind=strings([KIND_NAMES[event.kind] for event in events]),
        type=strings([event.type for event in events]),
        item=strings([event.item for event in events]),
        amount=np.array([event.amount or 0 for event in events], np.int64),
        currency=strings([event.currency for event in events]),
        other=strings([event.other for event in events]),
        role=strings(["counterpart" if event.kind == acted_on else "actor" for event in events]),
        key=np.array([event.key for event in events], np.int64),
    )


def strings(values: Sequence[str | None]) -> Strings:
    """An array of objects: numpy would cut or pad its own string type."""
    array = np.empty(len(values), np.object_)
    array[:] = values
    return array
