"""Candidates in order, for learners that rank: from users' signature tables, or else from their sequences.

Requests about one user as of one time share what is read; each has its candidates to itself. Requests of about equal
length go through the model together, so that a short one does not pay for a long one's candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np
from torch import Tensor

from contracts.scoring import RankedItem, RankingAnswer, ScoreRequest, UserState
from learners.contract.batch import Floats
from runtime import metrics
from scoring.errors import Failed
from scoring.heads.next_event import standing_of
from scoring.heads.request_decoding import Question, candidates_of, query_of, question_of
from scoring.heads.user_state import context_of
from scoring.serve.live_model import Model
from scoring.serve.state_reader import Read
from storage.read_point import Standing

_SHORT: Final = 16
"""Candidate lists up to this length are one size class; above, each power of two is one."""


@dataclass(frozen=True)
class RankedRow:
    """One row of a pass: whose past, and the candidates."""

    question: Question
    items: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Past:
    """What a ranking says of the user's past."""

    state: UserState
    cache_updated: int = 0
    events: int
    last_at: int | None
    """Microseconds since 1970; None: there is none."""


@dataclass(frozen=True, kw_only=True)
class Pasts:
    """What was read for a batch, and the pass over it."""

    standing: Standing
    of: dict[Question, Past]
    rank: Callable[[Sequence[RankedRow]], Tensor | None]
    """[B, C] logits; 0 behind the end of a shorter list."""


def replies(model: Model, requests: Sequence[ScoreRequest], read: Read) -> list[RankingAnswer | Failed]:
    """The answer to each request, or that the model gave no number for it.

    :param requests: all with candidates.
    """
    rows = [RankedRow(question_of(request), tuple(dict.fromkeys(request.candidates or ()))) for request in requests]
    questions = list(dict.fromkeys(row.question for row in rows))
    pasts = (_by_tables if model.published is not None else _by_sequences)(model, questions, read)
    _count(pasts.of.values())
    logits: dict[RankedRow, Floats] = {}
    for some in _size_classes(rows):
        found = pasts.rank(some)
        assert found is not None, "a learner that ranks gives logits"
        for row, line in zip(some, found.detach().double().cpu().numpy(), strict=True):
            logits[row] = line[: len(row.items)]
    return [
        _answer(request, row, logits[row], pasts.of[row.question], model, pasts.standing)
        for request, row in zip(requests, rows, strict=True)
    ]


def _by_tables(model: Model, questions: Sequence[Question], read: Read) -> Pasts:
    published = model.published
    assert published is not None
    seen = read(lambda reader: reader.interests(published, questions))
    held = dict(zip(questions, seen.found, strict=True))

    def rank(rows: Sequence[RankedRow]) -> Tensor:
        interests = [held[row.question] for row in rows]
        tables, shorts = [one.table for one in interests], [one.short for one in interests]
        return published.rank_rows(tables, context_of(shorts), candidates_of([row.items for row in rows]))

    of = {
        question: Past(state=one.state, cache_updated=one.cache_updated, events=one.events, last_at=one.last_at)
        for question, one in held.items()
    }
    return Pasts(standing=seen.standing, of=of, rank=rank)


def _by_sequences(model: Model, questions: Sequence[Question], read: Read) -> Pasts:
    learner, needs = model.learner, model.learner.needs
    asks = [question.ask(needs.last_n) for question in questions]
    seen = read(lambda reader: reader.histories(asks, items_only=needs.items_only))
    held = dict(zip(questions, seen.found, strict=True))

    def rank(rows: Sequence[RankedRow]) -> Tensor | None:
        candidates = candidates_of([row.items for row in rows])
        asked = [row.question for row in rows]
        return learner.predict(*query_of(asked, [held[one] for one in asked], (), candidates)).logits

    of = {
        question: Past(
            state="from_history" if events else "no_history",
            events=len(events),
            last_at=events[-1].at if events else None,
        )
        for question, events in held.items()
    }
    return Pasts(standing=seen.standing, of=of, rank=rank)


def _size_classes(rows: Sequence[RankedRow]) -> Iterator[list[RankedRow]]:
    """Distinct rows, those of about equal length together."""

    def size(row: RankedRow) -> int:
        return max(len(row.items) - 1, _SHORT - 1).bit_length()

    for _, some in groupby(sorted(dict.fromkeys(rows), key=size), key=size):
        yield list(some)


def _count(pasts: Iterable[Past]) -> None:
    for past in pasts:
        metrics.score_user_states.inc(1, past.state)
        if past.state == "cache_updated":
            metrics.score_cache_updated.observe(past.cache_updated)


def _answer(
    request: ScoreRequest, row: RankedRow, logits: Floats, past: Past, model: Model, standing: Standing
) -> RankingAnswer | Failed:
    if not np.isfinite(logits).all():
        return Failed.not_a_number(f"snapshot {model.snapshot.id}")
    published = model.published
    weights = np.exp(logits - logits.max())
    shares = weights / weights.sum()
    best = np.argsort(-logits, kind="stable")[: request.top]
    return RankingAnswer(
        ranking=[
            RankedItem(
                item_id=row.items[n],
                logit=float(logits[n]),
                probability=float(shares[n]),
                known=None if published is None else row.items[n] in published.rows,
            )
            for n in best
        ],
        candidates=len(row.items),
        embedding=None if published is None else published.embedding,
        state=past.state,
        cache_updated=past.cache_updated,
        **standing_of(request, row.question, model, standing, events=past.events, last_at=past.last_at),
    )
