"""Histories out of Postgres as a learner reads them: the one way, for training and for scoring."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learners.contract.batch import Context, Strings
from storage.sequences import array_columns
from storage.sequences.history import PAYMENT, RELATION_ACTOR, RELATION_COUNTERPART, USER, History, SequenceEvent

strings = array_columns.strings
KIND_NAMES = {USER: "user", PAYMENT: "payment", RELATION_ACTOR: "relation", RELATION_COUNTERPART: "relation"}
_KINDS = strings([KIND_NAMES.get(kind) for kind in range(max(KIND_NAMES) + 1)])
_ROLES = strings(["counterpart" if kind == RELATION_COUNTERPART else "actor" for kind in range(len(_KINDS))])


def context_of(stacks: Sequence[Sequence[SequenceEvent]]) -> Context:
    """One stack a history, in the order given."""
    parts = [stack for stack in stacks if isinstance(stack, History)]
    if not parts or len(parts) != len(stacks):
        parts = [History.of(event for stack in stacks for event in stack)]
    kinds = np.concatenate([part.kind for part in parts])  # [E]
    return Context(
        offsets=np.cumsum([0, *(len(stack) for stack in stacks)]).astype(np.int64),
        at=np.concatenate([part.at for part in parts]),
        kind=_KINDS[kinds],
        type=_joined([part.type for part in parts]),
        item=_joined([part.item for part in parts]),
        amount=np.concatenate([part.amount for part in parts]),
        currency=_joined([part.currency for part in parts]),
        other=_joined([part.other for part in parts]),
        role=_ROLES[kinds],
        key=np.concatenate([part.key for part in parts]),
    )


def _joined(columns: Sequence[Strings]) -> Strings:
    joined: Strings = np.concatenate(columns)
    return joined
