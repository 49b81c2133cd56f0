"""What comes next, and when: predictions as answers that say what they knew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from contracts.scoring import NextEventQuantile, ScoreAnswer, ScoreRequest, StreamPosition, TypeProbability
from learners.contract.batch import Floats
from learners.contract.protocol import Prediction
from scoring.errors import Failed
from scoring.heads.request_decoding import Question, microseconds, now_of, query_of, question_of, time_of
from scoring.serve.live_model import Model
from scoring.serve.state_reader import Read
from storage.log.offsets import StreamRow
from storage.read_point import Standing
from storage.sequences.user_sequences import SequenceEvent


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The model's answer to one question."""

    history: Sequence[SequenceEvent]
    seconds: tuple[float, ...]
    """One for each quantile asked for; inf: perhaps nothing comes."""
    types: tuple[str, ...]
    probabilities: Floats
    """[K] of `types`; the last is the model's unknown type."""


def outlooks(
    model: Model,
    questions: Sequence[Question],
    histories: Sequence[Sequence[SequenceEvent]],
    quantiles: tuple[float, ...],
) -> list[Outlook]:
    """One pass of the model over all questions."""
    prediction = model.learner.predict(*query_of(questions, histories, quantiles))
    seconds, probabilities = _numbers(prediction)
    return [
        Outlook(history=history, seconds=tuple(row), types=prediction.types, probabilities=shares)
        for history, row, shares in zip(histories, seconds, probabilities, strict=True)
    ]


def replies(model: Model, requests: Sequence[ScoreRequest], read: Read) -> list[ScoreAnswer | Failed]:
    """The answer to each request, or that the model gave no number for it."""
    questions = [question_of(request) for request in requests]
    distinct = list(dict.fromkeys(questions))
    asks = [question.ask(model.learner.needs.last_n) for question in distinct]
    seen = read(lambda reader: reader.histories(asks))
    histories = dict(zip(distinct, seen.found, strict=True))
    groups: dict[tuple[float, ...], dict[Question, None]] = {}
    for request, question in zip(requests, questions, strict=True):
        groups.setdefault(request.quantiles, {})[question] = None
    found: dict[tuple[float, ...], dict[Question, Outlook]] = {}
    for quantiles, asked in groups.items():
        results = outlooks(model, list(asked), [histories[question] for question in asked], quantiles)
        found[quantiles] = dict(zip(asked, results, strict=True))
    return [
        answer(request, question, found[request.quantiles][question], model, seen.standing)
        for request, question in zip(requests, questions, strict=True)
    ]


def answer(
    request: ScoreRequest, question: Question, outlook: Outlook, model: Model, standing: Standing
) -> ScoreAnswer | Failed:
    """The reply to a request.

    Where nobody said when, and nothing is known of the user, the quantiles come without times: nothing says where on
    the calendar that user is.
    """
    # NaN compares as False, so it fails both.
    if not (all(seconds >= 0 for seconds in outlook.seconds) and bool((outlook.probabilities >= 0).all())):
        return Failed.not_a_number(f"snapshot {model.snapshot.id}")
    now = now_of(question, outlook.history)
    named, others = _types(outlook, request.types)
    last_at = outlook.history[-1].at if outlook.history else None
    return ScoreAnswer(
        next_event=[
            _quantile(quantile, seconds, now)
            for quantile, seconds in zip(request.quantiles, outlook.seconds, strict=True)
        ],
        next_type=named,
        other_types=others,
        **standing_of(request, question, model, standing, events=len(outlook.history), last_at=last_at),
    )


def standing_of(
    request: ScoreRequest, question: Question, model: Model, standing: Standing, *, events: int, last_at: int | None
) -> dict[str, Any]:
    """The fields of `Answer`: who answers, from what.

    For a user without a past asked about without a time, `asked_at` is the record time the model has learnt up to.

    :param events: of the user, that were looked at; :param last_at: the newest of them, microseconds since 1970.
    """
    info = model.info
    front = model.snapshot.front or model.snapshot.created_at
    now = last_at if question.at is None else question.at
    return {
        "user_id": request.user_id,
        "request_id": request.request_id,
        "learner": info.learner,
        "learner_version": info.learner_version,
        "snapshot_id": info.snapshot_id,
        "snapshot_step": info.snapshot_step,
        "asked_at": time_of(microseconds(front) if now is None else now) or front,
        "events_seen": events,
        "last_event_at": None if last_at is None else time_of(last_at),
        "watermark": watermark(standing.streams),
        "staleness_seconds": standing.staleness_s,
    }


def watermark(streams: Sequence[StreamRow]) -> list[StreamPosition]:
    """The streams that still move."""
    return [
        StreamPosition(
            topic=row.stream.topic,
            partition=row.stream.partition,
            topic_id=row.stream.topic_id,
            next_offset=row.next_offset,
        )
        for row in streams
        if not row.retired
    ]


def _numbers(prediction: Prediction) -> tuple[list[list[float]], Floats]:
    """Seconds [B][Q] and type probabilities [B, K]."""
    seconds: list[list[float]] = prediction.quantiles.double().cpu().tolist()
    return seconds, np.exp(prediction.type_log_probs.detach().double().cpu().numpy())


def _quantile(quantile: float, seconds: float, now: int | None) -> NextEventQuantile:
    if math.isinf(seconds):
        return NextEventQuantile(quantile=quantile, seconds=None, at=None)
    return NextEventQuantile(quantile=quantile, seconds=seconds, at=None if now is None else time_of(now, seconds))


def _types(outlook: Outlook, wanted: int) -> tuple[list[TypeProbability], float]:
    """The most probable known types, the first of equals first; and what is left."""
    known = outlook.probabilities[:-1]
    best = np.argsort(-known, kind="stable")[:wanted]
    named = [TypeProbability(type=outlook.types[n], probability=float(known[n])) for n in best]
    left = float(outlook.probabilities.sum()) - math.fsum(one.probability for one in named)
    return named, max(left, 0.0)
