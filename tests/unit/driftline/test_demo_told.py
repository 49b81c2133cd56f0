"""What the demo concludes from progress records."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from contracts.records import DriftAlarm, DriftWindow, LossSum, Progress
from driftline.demo.render import surprise
from driftline.demo.report import by_step, first_of_id


def _progress(step: int, loss: float = 1.0) -> Progress:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return Progress(
        learner="prompttpp",
        branch=1,
        step=step,
        rows=2,
        late=0,
        first_event_at=at,
        last_event_at=at,
        front=at,
        losses={"learner": {"time": LossSum(sum=loss, rows=2)}},
    )


def test_a_repeated_step_counts_once() -> None:
    once, repeated = by_step([_progress(1), _progress(0), _progress(1)])
    assert [record.step for record in once] == [0, 1]
    assert repeated == {"same": 1, "different": 0}


def test_a_repeated_step_with_another_loss_is_told() -> None:
    almost = msgspec.structs.replace(_progress(1, loss=1.0000000000000002))
    _, repeated = by_step([_progress(1), almost])
    assert repeated == {"same": 0, "different": 1}


def test_surprise_is_that_of_time_and_type_together() -> None:
    assert surprise({"time": 9.0, "type": 1.5, "error": 0.6}) == pytest.approx(10.5)
    assert surprise({"time": 9.0, "type": None}) is None
    assert surprise({}) is None


def _alarm(z: float = 8.0) -> DriftAlarm:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    window = DriftWindow(
        partition=0,
        first_offset=0,
        next_offset=1,
        first_step=0,
        last_step=0,
        first_event_at=at,
        last_event_at=at,
        rows=128,
        mean=1.0,
    )
    return DriftAlarm(
        id="learning.progress/prompttpp/1/types/adwin/7",
        source="learning.progress",
        subject="prompttpp",
        branch=1,
        series="types",
        detector="adwin",
        step=7,
        raised_at=at,
        before=window,
        after=window,
        z=z,
        budget=1.0,
    )


def test_an_alarm_that_comes_again_counts_once() -> None:
    assert first_of_id([_alarm(), _alarm()]) == ([_alarm()], 0)


def test_an_alarm_that_comes_again_and_says_something_else_is_told() -> None:
    assert first_of_id([_alarm(z=8.0), _alarm(z=8.1)]) == ([_alarm(z=8.0)], 1)
