"""The example in a bundle: a made-up past, a request as `POST /v1/score` takes it, and the answer to it.

No user's history is in it: types or items are some that the learner knows, in the order in which it met them, and the
times are made up. The numbers of the answer are those of `contracts.scoring`: "next_event", "next_type" and
"other_types", or "ranking".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import torch

from learners.contract.batch import Candidates, Context, Query, Strings
from learners.contract.needs import TaskSpec
from learners.contract.protocol import Learner, Prediction
from learners.models.sdim.learner import SDIM

QUANTILES = (0.1, 0.5, 0.9)
TYPES = 10
"""Most probable types that the answer names."""
EVENTS, ITEMS, CANDIDATES = 24, 16, 8
"""Events of the past; items in it; those of them that are asked about."""
THREADS = 1
"""Of torch, on which the answer is computed, on the CPU, wherever that is."""
UNKNOWN = "never seen"
"""Stands in every example: what is not known must be answered for too."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_START = datetime(2026, 1, 1, tzinfo=UTC)


@contextmanager
def one_way() -> Iterator[None]:
    """torch on `THREADS`, with algorithms that give the same bits each time; as before afterwards."""
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_num_threads(threads)


def example_for(task: TaskSpec, learner: Learner) -> dict[str, Any]:
    """An example of a learner's own types or items, with its answer."""
    asked = _ranking_request(learner) if task.kind == "ranking" else _next_event_request(learner)
    with one_way():
        answer = answer_of(learner, asked)
    return {**asked, "answer": answer}


def _next_event_request(learner: Learner) -> dict[str, Any]:
    nobody = Query(stack=np.zeros(1, np.int64), visible=np.zeros(1, np.int64), now=np.zeros(1, np.int64))
    known = learner.predict(_context([]), nobody).types[:-1][: TYPES - 1]
    history = _history(types=(*known, UNKNOWN), items=(None,))
    return _asked(history, quantiles=list(QUANTILES), types=TYPES)


def _ranking_request(learner: Learner) -> dict[str, Any]:
    published = learner.published.names if isinstance(learner, SDIM) else ()
    items = (*published[: ITEMS - 1], UNKNOWN) if published else tuple(f"item {n}" for n in range(ITEMS))
    return _asked(_history(types=("purchase",), items=items), candidates=[*items[:CANDIDATES], UNKNOWN + " at all"])


def _asked(history: list[dict[str, Any]], **how: Any) -> dict[str, Any]:
    at = datetime.fromisoformat(history[-1]["at"]) + timedelta(hours=1)
    return {"history": history, "request": {"user_id": "example", "at": at.isoformat(), **how}}


def _history(*, types: Sequence[str], items: Sequence[str | None]) -> list[dict[str, Any]]:
    """Events hours apart, as the rows of a `Context`."""
    hours = np.cumsum([1 + n * n % 7 for n in range(EVENTS)]).tolist()
    return [
        {
            "at": (_START + timedelta(hours=hour)).isoformat(),
            "kind": "user",
            "type": types[n % len(types)],
            "item": items[n % len(items)],
            "amount": 0,
            "currency": None,
            "other": None,
            "role": "actor",
            "key": n,
        }
        for n, hour in enumerate(hours)
    ]


def answer_of(learner: Learner, asked: Mapping[str, Any], *, named: Sequence[str] | None = None) -> dict[str, Any]:
    """The learner's answer to a request with its history."""
    request = asked["request"]
    rows = asked["history"][-learner.needs.last_n :]
    query = Query(
        stack=np.zeros(1, np.int64),
        visible=np.array([len(rows)], np.int64),
        now=np.array([_microseconds(request["at"])], np.int64),
        quantiles=tuple(request.get("quantiles", ())),
        candidates=_candidates(request["candidates"]) if "candidates" in request else None,
    )
    with torch.no_grad():
        prediction = learner.predict(_context(rows), query)
    if "candidates" in request:
        return _ranking(prediction, request["candidates"])
    return _next_event(prediction, request, named)


def _ranking(prediction: Prediction, items: Sequence[str]) -> dict[str, Any]:
    assert prediction.logits is not None, "a learner that ranks has logits"
    logits = prediction.logits[0].double().cpu()
    shares = torch.softmax(logits, 0).tolist()
    order = torch.argsort(-logits, stable=True).tolist()
    return {
        "ranking": [{"item_id": items[n], "logit": float(logits[n]), "probability": shares[n]} for n in order],
    }


def _next_event(prediction: Prediction, request: Mapping[str, Any], named: Sequence[str] | None) -> dict[str, Any]:
    seconds = prediction.quantiles[0].double().cpu().tolist()
    shares = prediction.type_log_probs[0].double().cpu().exp().tolist()
    known = dict(zip(prediction.types[:-1], shares[:-1], strict=True))
    if named is None:
        named = sorted(known, key=lambda name: -known[name])[: request["types"]]
    return {
        "next_event": [
            {"quantile": quantile, "seconds": None if math.isinf(at) else at}
            for quantile, at in zip(request["quantiles"], seconds, strict=True)
        ],
        "next_type": [{"type": name, "probability": known[name]} for name in named],
        "other_types": max(math.fsum([*shares, *(-known[name] for name in named)]), 0.0),
    }


def _candidates(items: Sequence[str]) -> Candidates:
    shape = (1, len(items))
    return Candidates(item=_strings(items)[None, :], mask=np.ones(shape, np.bool_), log_q=np.zeros(shape))


def _context(rows: Sequence[Mapping[str, Any]]) -> Context:
    """One stack."""
    return Context(
        offsets=np.array([0, len(rows)], np.int64),
        at=np.array([_microseconds(row["at"]) for row in rows], np.int64),
        amount=np.array([row["amount"] for row in rows], np.int64),
        key=np.array([row["key"] for row in rows], np.int64),
        **{name: _strings([row[name] for row in rows]) for name in _TEXTS},
    )


_TEXTS = ("kind", "type", "item", "currency", "other", "role")


def _strings(values: Sequence[str | None]) -> Strings:
    return np.array(values, dtype=np.object_)


def _microseconds(at: str) -> int:
    return (datetime.fromisoformat(at) - _EPOCH) // timedelta(microseconds=1)
