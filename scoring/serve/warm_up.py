"""A model's first answers, given to nobody: memory is touched and kernels are chosen before a question waits for it."""

from __future__ import annotations

from itertools import islice
from typing import Final

import numpy as np
from torch import Tensor

from contexts.batch_builder import context_of, strings
from contracts.scoring import DEFAULT_QUANTILES
from learners.contract.batch import Query
from learners.contract.protocol import Learner
from learners.models.sdim.embedding_version import EmbeddingVersion
from scoring.heads.request_decoding import candidates_of
from scoring.heads.user_state import context_of as context_of_behaviours
from storage.sequences.item_events import NONE, Behaviours
from storage.sequences.user_sequences import USER, SequenceEvent

_HOUR_US: Final = 3_600_000_000
_CANDIDATES: Final = tuple(f"warm-up {n}" for n in range(16))


def warm_up(learner: Learner, *, ranks: bool, published: EmbeddingVersion | None) -> None:
    """One answer for a full and one for an empty history.

    :param ranks: whether it orders candidates; :param published: what it ranks with, where it has tables of users.
    :raises ArithmeticError: they are no numbers.
    """
    if published is not None:
        found: list[Tensor | None] = [_by_tables(published)]
    else:
        full = [
            _event(n, item=_CANDIDATES[n % len(_CANDIDATES)] if ranks else None) for n in range(learner.needs.last_n)
        ]
        query = Query(
            stack=np.array([0, 1]),
            visible=np.array([len(full), 0]),
            now=np.array([full[-1].at] * 2),
            quantiles=() if ranks else DEFAULT_QUANTILES,
            candidates=candidates_of([_CANDIDATES] * 2) if ranks else None,
        )
        prediction = learner.predict(context_of([full, []]), query)
        found = [prediction.quantiles, prediction.type_log_probs, *([prediction.logits] if ranks else [])]
    if any(part is None or bool(part.isnan().any()) for part in found):
        raise ArithmeticError("its predictions are no numbers")


def _by_tables(published: EmbeddingVersion) -> Tensor:
    """[2, C + 16] logits, of items it knows among them."""
    known = list(islice(published.names, published.config.last_n)) or list(_CANDIDATES)
    count = len(known)
    full = Behaviours(
        at=np.arange(count, dtype=np.int64) * _HOUR_US, item=strings(known), behind=np.zeros(count, np.bool_)
    )
    tables = [published.table(known), published.table([])]
    shorts = context_of_behaviours([full.newest(published.config.short_n), NONE])
    return published.rank_rows(tables, shorts, candidates_of([[*known[:16], *_CANDIDATES]] * 2))


def _event(n: int, *, item: str | None) -> SequenceEvent:
    return SequenceEvent(
        at=n * _HOUR_US,
        event_id=str(n),
        topic="warm-up",
        partition=0,
        offset=n,
        stream_id=0,
        kind=USER,
        type="warm-up",
        item=item,
        amount=None,
        currency=None,
        other=None,
        key=n,
    )
