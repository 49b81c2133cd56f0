"""What changes in labels and in answers is told; what cannot be read is passed over."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from contracts import topics as names
from contracts.codec import encode
from contracts.scoring import NextEventQuantile, ScoreFailure, ScoreResult, TypeProbability
from runtime.kafka import KafkaConfig
from streams.drift.subject_state import BLOCK_ROWS
from tests.integration.drift.watching import START, Start, alarms, send_labels
from tests.integration.feeding import Sender


def answer(number: int, change: int) -> ScoreResult:
    """An answer of `score`; from `change` on users wait three times as long, and buy where they looked."""
    rng, after = random.Random(number), number >= change
    wait = (300.0 if after else 100.0) * rng.lognormvariate(0.0, 0.5)
    asked_at = START + timedelta(minutes=number)
    kinds = ["buy", "look"] if rng.random() < (0.7 if after else 0.2) else ["look", "buy"]
    return ScoreResult(
        user_id="ann",
        request_id=f"q-{number}",
        learner="prompttpp",
        learner_version="1",
        snapshot_id="prompttpp-1-0000000345",
        snapshot_step=345,
        asked_at=asked_at,
        events_seen=1,
        last_event_at=asked_at,
        next_event=[NextEventQuantile(quantile=0.5, seconds=wait, at=asked_at + timedelta(seconds=wait))],
        next_type=[
            TypeProbability(type=kind, probability=share) for kind, share in zip(kinds, (0.6, 0.3), strict=True)
        ],
        other_types=0.1,
        watermark=[],
        staleness_seconds=1.0,
    )


def test_a_label_rate_that_changes_is_told_and_what_cannot_be_read_is_passed_over(
    topics: KafkaConfig, start: Start
) -> None:
    blocks, change = 40, 36 * BLOCK_ROWS
    Sender(topics).put(names.PROGRESS, b"x", b"no json")
    send_labels(topics, range(blocks * BLOCK_ROWS), [0], change=change)
    running = start(topics)
    running.until(lambda: running.records == blocks * BLOCK_ROWS + 1)
    assert running.end()["unreadable"] == 1
    [alarm] = alarms(topics, at_least=1)
    assert (alarm.source, alarm.subject, alarm.series) == (names.LABELS, "fraud", "rate")
    assert abs(alarm.after.first_offset - change) <= BLOCK_ROWS
    assert alarm.before.mean == pytest.approx(0.05, abs=0.01)
    assert alarm.after.mean == pytest.approx(0.75, abs=0.01)
    assert alarm.z > 10


def test_answers_whose_types_and_waits_change_are_told_and_refusals_say_nothing(
    topics: KafkaConfig, start: Start
) -> None:
    blocks, change = 76, 70 * BLOCK_ROWS
    refusal = ScoreFailure(request_id="q", user_id="ann", reason="expired", message="m", where="w", hint="t")
    sender = Sender(topics)
    for number in range(blocks * BLOCK_ROWS):
        sender.put(names.RESULTS, b"ann", encode(answer(number, change)), partition=2, flush=False)
    sender.put(names.RESULTS, b"ann", encode(refusal), partition=2)
    running = start(topics)
    running.until(lambda: running.records == blocks * BLOCK_ROWS + 1)
    assert running.end()["unreadable"] == 0
    found = {alarm.series: alarm for alarm in alarms(topics, at_least=2)}
    assert found.keys() == {"answers", "log_wait"}
    for alarm in found.values():
        assert (alarm.source, alarm.subject, alarm.after.partition) == (names.RESULTS, "prompttpp", 2)
        assert abs(alarm.after.first_offset - change) <= BLOCK_ROWS
    was, now = found["answers"].shifts["buy"]
    assert was < 0.3
    assert now > 0.6
    assert found["log_wait"].after.mean > found["log_wait"].before.mean + 0.9
