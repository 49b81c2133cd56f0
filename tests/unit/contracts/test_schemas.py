"""The committed JSON Schemas are those of the types, and real records satisfy them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest

from contracts import topics
from contracts.codec import encode, topic_of
from contracts.records import DeadLetterNotice, DriftAlarm, DriftWindow, LossSum, Progress, Record
from contracts.schemas import FILES, FOLDER, schema_of
from contracts.scoring import (
    NextEventQuantile,
    RankedItem,
    RankingResult,
    ScoreCall,
    ScoreFailure,
    ScoreResult,
    StreamPosition,
    TypeProbability,
)
from tests.unit.contracts.test_codec import EXAMPLES

AT = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = DriftWindow(
    partition=0,
    first_offset=0,
    next_offset=9,
    first_step=0,
    last_step=8,
    first_event_at=AT,
    last_event_at=AT,
    rows=288,
    mean=0.5,
)
OTHERS: dict[str, Any] = {
    topics.PROGRESS: Progress(
        learner="l",
        branch=1,
        step=2,
        rows=3,
        late=0,
        first_event_at=AT,
        last_event_at=AT,
        front=AT,
        losses={"main": {"nll": LossSum(sum=1.5, rows=3)}},
        types={"click": 3},
        confidence=LossSum(sum=1.5, rows=3),
        prompts={"0.1": 3},
    ),
    topics.RESULTS: ScoreResult(
        user_id="ann",
        request_id="q-1",
        learner="l",
        learner_version="1",
        snapshot_id="l-1-0000000002",
        snapshot_step=2,
        asked_at=AT,
        events_seen=1,
        last_event_at=AT,
        next_event=[NextEventQuantile(quantile=0.5, seconds=60.0, at=AT)],
        next_type=[TypeProbability(type="click", probability=0.5)],
        other_types=0.5,
        watermark=[StreamPosition(topic="labels", partition=0, topic_id="x", next_offset=1)],
        staleness_seconds=None,
    ),
    topics.ALARMS: DriftAlarm(
        id="learning.progress/l/1/types/adwin/17",
        source=topics.PROGRESS,
        subject="l",
        branch=1,
        series="types",
        detector="adwin",
        step=17,
        raised_at=AT,
        before=WINDOW,
        after=WINDOW,
        z=9.5,
        budget=1.0,
        shifts={"click": (0.5, 0.25)},
    ),
    topics.DEAD_LETTERS: DeadLetterNotice(
        id="1:2", reason="not_json", topic="items", partition=0, offset=2, size=3, sha256="00"
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_the_committed_schema_is_the_generated_one(name: str) -> None:
    assert (FOLDER / name).read_bytes() == schema_of(FILES[name]), "run: python -m contracts.schemas"


def test_every_topic_has_a_schema() -> None:
    assert {topic.name for topic in topics.ALL} == {name.removesuffix(".json") for name in FILES}
    assert {file.name for file in FOLDER.glob("*.json")} == set(FILES)


def validate(topic: str, value: object) -> None:
    schema = json.loads((FOLDER / f"{topic}.json").read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: record.KIND)
def test_encoded_records_satisfy_their_schema(record: Record) -> None:
    value = json.loads(encode(record))
    validate(topic_of(record), value)
    validate(topic_of(record), {**value, "schema": "1.5", "of_a_later_minor_version": [1]})
    for name in ("source", next(name for name in value if name.endswith("_id"))):
        with pytest.raises(jsonschema.ValidationError):
            validate(topic_of(record), {key: part for key, part in value.items() if key != name})


def test_so_do_a_question_on_kafka_and_the_reason_why_it_has_no_answer() -> None:
    validate(topics.REQUESTS, json.loads(encode(ScoreCall(user_id="ann", deadline=AT))))
    validate(topics.REQUESTS, json.loads(encode(ScoreCall(user_id="ann", candidates=("a", "b"), top=1))))
    failure = ScoreFailure(request_id="q-1", user_id=None, reason="invalid", message="m", where="w", hint="t")
    validate(topics.RESULTS, json.loads(encode(failure)))


def test_so_does_a_ranking() -> None:
    ranking = RankingResult(
        user_id="ann",
        request_id="q-1",
        learner="l",
        learner_version="1",
        snapshot_id="l-1-0000000002",
        snapshot_step=2,
        asked_at=AT,
        events_seen=1,
        last_event_at=AT,
        ranking=[RankedItem(item_id="a", logit=0.5, probability=1.0, known=True)],
        candidates=1,
        embedding="3-0123456789abcdef",
        state="cache_updated",
        cache_updated=2,
        watermark=[StreamPosition(topic="labels", partition=0, topic_id="x", next_offset=1)],
        staleness_seconds=None,
    )
    validate(topics.RESULTS, json.loads(encode(ranking)))


@pytest.mark.parametrize("topic", OTHERS)
def test_so_do_the_records_driftline_writes(topic: str) -> None:
    validate(topic, json.loads(encode(OTHERS[topic])))
