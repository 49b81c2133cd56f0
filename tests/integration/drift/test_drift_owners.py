"""Partitions of `drift` that change hands: in order, by a death, by a process that froze; and topics made anew."""

from __future__ import annotations

import pytest

from contracts import topics
from runtime.kafka import KafkaConfig
from streams.drift.drift_series import of_progress
from streams.drift.subject_state import BLOCK_ROWS
from tests.integration.drift.watching import (
    CHANGE,
    Running,
    Start,
    alarmed,
    alarms,
    expected_of_labels,
    firsts,
    send,
    send_labels,
    step,
    streams_of,
)
from tests.integration.test_ingest_positions import recreate

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]  # many processes are started

PARTITIONS = range(4)
BLOCKS = 38
LABELS_CHANGE = 35 * BLOCK_ROWS
LEARNERS = ("markov", "prompttpp")


def offset_of(running: Running, partition: int) -> int:
    """The newest label it has seen there; -1 = none."""
    return running.steps.get(("fraud", partition), -1)


def test_partitions_that_move_to_another_process_and_back_tell_what_one_process_would(
    kafka_topics: KafkaConfig, start: Start
) -> None:
    sent = 0

    def more(blocks: int, *among: Running) -> None:
        nonlocal sent
        send_labels(kafka_topics, range(sent, blocks * BLOCK_ROWS), PARTITIONS, change=LABELS_CHANGE)
        sent = blocks * BLOCK_ROWS
        among[0].until(lambda: all(max(offset_of(one, n) for one in among) == sent - 1 for n in PARTITIONS))

    first = start(kafka_topics)
    more(12, first)
    second = start(kafka_topics)
    second.until_ready()
    more(20, first, second)
    assert second.steps, "they share the partitions"
    first.kill()
    more(28, second)
    third = start(kafka_topics)
    third.until_ready()
    more(BLOCKS, second, third)
    second.end()
    third.end()
    wanted = {
        name: alarm
        for stream in streams_of(kafka_topics, topics.LABELS)
        for name, alarm in expected_of_labels(stream, range(BLOCKS * BLOCK_ROWS), change=LABELS_CHANGE).items()
    }
    assert len(wanted) == len(PARTITIONS)
    assert firsts(alarms(kafka_topics, at_least=len(wanted))) == wanted


def test_a_process_that_was_frozen_does_not_write_over_its_successor(kafka_topics: KafkaConfig, start: Start) -> None:
    """Its old state of one learner would stand beside its successor's newer position."""
    first = start(kafka_topics)
    first.until_ready()
    second = start(kafka_topics)
    for running in (first, second):
        running.until_ready()
    send(kafka_topics, *range(CHANGE - 100), learners=LEARNERS)
    while not (owner := next((one for one in (first, second) if one.records > 50), None)):
        pass
    owner.freeze()
    successor = second if owner is first else first
    successor.until_step(CHANGE - 101, learners=LEARNERS)
    send(kafka_topics, *range(CHANGE - 100, CHANGE + 100), learners=LEARNERS)
    successor.until_step(CHANGE + 99, learners=LEARNERS)
    owner.thaw()
    owner.until(lambda: "stood still" in owner.log.read_text())
    send(kafka_topics, *range(CHANGE + 100, CHANGE + 200), learners=LEARNERS[:1])
    successor.until(lambda: max(one.steps.get((LEARNERS[0], 1), -1) for one in (first, second)) == CHANGE + 199)
    for running in (first, second):
        running.kill()
    third = start(kafka_topics)
    third.until_ready()
    send(kafka_topics, *range(CHANGE + 100, CHANGE + 200), learners=LEARNERS[1:])
    third.until(lambda: third.records >= 100)
    third.end()
    in_order = [(n, name) for n in range(CHANGE + 100) for name in LEARNERS]
    in_order += [(n, name) for name in LEARNERS for n in range(CHANGE + 100, CHANGE + 200)]
    (stream,) = streams_of(kafka_topics, topics.PROGRESS)
    wanted = alarmed(stream, enumerate(of_progress(step(n, name)) for n, name in in_order))
    assert {alarm.subject for alarm in wanted.values()} == set(LEARNERS)
    assert firsts(alarms(kafka_topics, at_least=len(wanted))) == wanted


@pytest.mark.parametrize("alive", [True, False])
def test_a_topic_made_anew_is_read_from_its_start_into_a_state_of_its_own(
    kafka_topics: KafkaConfig, start: Start, alive: bool
) -> None:
    send_labels(kafka_topics, range(20 * BLOCK_ROWS), [0], change=LABELS_CHANGE)
    running = start(kafka_topics)
    running.until(lambda: running.records == 20 * BLOCK_ROWS)
    if not alive:
        running.end()
    recreate(kafka_topics, topics.LABELS, 4)
    send_labels(kafka_topics, range(BLOCKS * BLOCK_ROWS), [0], change=LABELS_CHANGE)
    if not alive:
        running = start(kafka_topics)
    running.until(lambda: offset_of(running, 0) == BLOCKS * BLOCK_ROWS - 1)
    running.end()
    stream = streams_of(kafka_topics, topics.LABELS)[0]
    wanted = expected_of_labels(stream, range(BLOCKS * BLOCK_ROWS), change=LABELS_CHANGE)
    assert len(wanted) == 1
    assert firsts(alarms(kafka_topics, at_least=1)) == wanted
