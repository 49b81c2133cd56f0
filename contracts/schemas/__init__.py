"""JSON Schemas of the records, generated from the types: `python -m contracts.schemas` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from contracts.records import DeadLetterNotice, DriftAlarm, Item, Label, Payment, Progress, Relation, UserEvent
from contracts.scoring import RankingResult, ScoreCall, ScoreFailure, ScoreResult

FOLDER = Path(__file__).parent

FILES: dict[str, Any] = {
    "events.user.json": UserEvent,
    "events.payment.json": Payment,
    "events.relational.json": Relation,
    "items.json": Item,
    "labels.json": Label,
    "learning.progress.json": Progress,
    "scores.requests.json": ScoreCall,
    "scores.results.json": ScoreResult | RankingResult | ScoreFailure,
    "drift.alarms.json": DriftAlarm,
    "events.dlq.json": DeadLetterNotice,
}


def schema_of(record: Any) -> bytes:
    """The JSON Schema (draft 2020-12) of a record, as the bytes of the committed file."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(record)}
    return msgspec.json.format(msgspec.json.encode(schema), indent=2) + b"\n"
