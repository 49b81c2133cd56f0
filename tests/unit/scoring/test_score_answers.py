"""Predictions become answers; what is no number does not leave."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest

from contracts.scoring import ScoreAnswer, ScoreRequest
from learners.registry import build
from scoring.errors import Failed
from scoring.heads.next_event import Outlook, answer
from scoring.heads.request_decoding import question_of
from scoring.serve.live_model import Model
from storage.log.offsets import KafkaPartitionId, StreamRow
from storage.read_point import Standing

if TYPE_CHECKING:
    from tests.unit.scoring.conftest import MakeModel

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OUTLOOK = Outlook(
    history=[],
    seconds=(1.0, 2.0, 3.0),
    types=("a", "b", "c", "\0unknown"),
    probabilities=np.array([0.1, 0.4, 0.4, 0.1]),
)


@pytest.fixture
def model(make_model: MakeModel) -> Model:
    return make_model(build("prompttpp", hidden=4, layers=1))


def seen(*streams: StreamRow) -> Standing:
    return Standing(standby=False, newest_live=None, streams=list(streams), staleness_s=None)


def answered(request: ScoreRequest, outlook: Outlook, model: Model, standing: Standing) -> ScoreAnswer:
    found = answer(request, question_of(request), outlook, model, standing)
    assert isinstance(found, ScoreAnswer)
    return found


def stream(partition: int, *, retired: bool = False) -> StreamRow:
    place = KafkaPartitionId(topic="events.user", partition=partition, topic_id="t", cluster_id="c")
    return StreamRow(stream_id=partition, stream=place, epoch=1, next_offset=10 + partition, retired=retired)


def test_the_most_probable_types_come_first_and_the_rest_is_summed_up(model: Model) -> None:
    request = ScoreRequest(user_id="ann", at=NOW, types=2)
    found = answered(request, OUTLOOK, model, seen())
    assert [(one.type, one.probability) for one in found.next_type] == [("b", 0.4), ("c", 0.4)]
    assert found.other_types == pytest.approx(0.2)


def test_the_unknown_type_is_never_named(model: Model) -> None:
    request = ScoreRequest(user_id="ann", at=NOW, types=1000)
    found = answered(request, OUTLOOK, model, seen())
    assert [one.type for one in found.next_type] == ["b", "c", "a"]
    assert found.other_types == pytest.approx(0.1)


def test_a_time_that_may_never_come_is_null_and_one_beyond_the_calendar_has_seconds_only(model: Model) -> None:
    request = ScoreRequest(user_id="ann", at=NOW)
    outlook = replace(OUTLOOK, seconds=(60.0, 1e15, float("inf")))
    first, second, third = answered(request, outlook, model, seen()).next_event
    assert (first.seconds, first.at) == (60.0, NOW + timedelta(seconds=60))
    assert (second.seconds, second.at) == (1e15, None)
    assert (third.seconds, third.at) == (None, None)


def test_retired_streams_are_left_out_of_the_watermark(model: Model) -> None:
    request = ScoreRequest(user_id="ann", at=NOW)
    found = answered(request, OUTLOOK, model, seen(stream(0, retired=True), stream(1)))
    assert [(one.partition, one.next_offset) for one in found.watermark] == [(1, 11)]


@pytest.mark.parametrize(
    "outlook",
    [
        replace(OUTLOOK, seconds=(1.0, float("nan"), 3.0)),
        replace(OUTLOOK, seconds=(-1.0, 2.0, 3.0)),
        replace(OUTLOOK, probabilities=np.array([0.1, float("nan"), 0.4, 0.1])),
    ],
)
def test_what_is_no_number_never_leaves(model: Model, outlook: Outlook) -> None:
    request = ScoreRequest(user_id="ann", at=NOW)
    refused = answer(request, question_of(request), outlook, model, seen())
    assert isinstance(refused, Failed)
    assert "prompttpp-1-0000000001" in refused.where
