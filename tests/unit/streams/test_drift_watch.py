"""What `drift` keeps of a subject: blocks, bounded series, alarms; and that repetition changes nothing."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from contracts import topics
from contracts.codec import encode
from contracts.records import DriftAlarm, Label, LossSum, Progress
from contracts.scoring import NextEventQuantile, ScoreResult, TypeProbability
from runtime.kafka import PartitionOfTopic
from streams.drift.detectors import MAX_INPUTS, REFERENCE
from streams.drift.drift_series import WatchedSubject, of_label, of_progress, of_result
from streams.drift.subject_state import (
    BLOCK_ROWS,
    MAX_NAMES,
    OTHERS,
    OpenBlock,
    Watch,
    added,
    closed,
    distance,
    emptied,
    mixed,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = 32
STEPS_A_BLOCK = BLOCK_ROWS // ROWS
FIRST_OFFSET = 7
STREAM = PartitionOfTopic(cluster_id="cluster", topic_id="topic-id", topic=topics.PROGRESS, partition=0)


def step(number: int, *, loss: float = 2.0, buys: int = 8, rows: int = ROWS, branch: int = 1) -> Progress:
    """A step whose mean loss is about `loss`, always the same for one number."""
    rng = random.Random(number)
    return Progress(
        learner="markov",
        branch=branch,
        step=number,
        rows=rows,
        late=0,
        first_event_at=START + timedelta(minutes=number),
        last_event_at=START + timedelta(minutes=number + 1),
        front=START,
        losses={"learner": {"type": LossSum(sum=rows * rng.gauss(loss, 0.2), rows=rows)}},
        types={"buy": buys + rng.randrange(5), "look": rows - buys - rng.randrange(5)},
    )


def changed(at: int, end: int, **then: float | int) -> list[Progress]:
    """Steps 0 to `end`, otherwise from step `at` on."""
    return [step(n) if n < at else step(n, **then) for n in range(end)]  # type: ignore[arg-type]


class Process:
    """`drift` for one subject, with a state that can be taken away and given back."""

    def __init__(self, watch: Watch | None = None, block: OpenBlock | None = None) -> None:
        self.watch, self.block = watch or Watch(), block or OpenBlock()
        self.alarms: list[DriftAlarm] = []

    def take(self, record: Progress, offset: int) -> None:
        seen = of_progress(record)
        self.block = added(self.block, seen, offset)
        if self.block.full:
            self.watch, alarms = closed(self.watch, self.block, seen.subject, stream=STREAM)
            self.block = emptied(self.block)
            self.alarms += alarms

    def take_all(self, records: Iterable[tuple[int, Progress]]) -> Process:
        for offset, record in records:
            self.take(record, offset)
        return self

    @property
    def state(self) -> tuple[Watch, OpenBlock]:
        return self.watch, self.block


def at_offsets(records: list[Progress]) -> list[tuple[int, Progress]]:
    """As they stand in the topic."""
    return list(enumerate(records, FIRST_OFFSET))


def stored(state: tuple[Watch, OpenBlock]) -> tuple[Watch, OpenBlock]:
    """As it comes back from the changelog."""
    watch, block = (msgspec.json.encode(part) for part in state)
    return msgspec.json.decode(watch, type=Watch), msgspec.json.decode(block, type=OpenBlock)


CHANGE = 400
STEPS = at_offsets(changed(CHANGE, 700, loss=2.5))


def test_a_planted_change_is_told_with_its_window_and_offsets() -> None:
    [alarm] = Process().take_all(STEPS).alarms
    assert alarm.source == topics.PROGRESS
    assert (alarm.subject, alarm.branch, alarm.series) == ("markov", 1, "learner/type")
    assert alarm.id == f"topic-id/learning.progress/markov/1/learner/type/{alarm.detector}/{alarm.step}"
    assert CHANGE <= alarm.step <= CHANGE + 40 * STEPS_A_BLOCK
    assert abs(alarm.after.first_step - CHANGE) <= 2 * STEPS_A_BLOCK
    assert alarm.after.first_offset == alarm.after.first_step + FIRST_OFFSET == alarm.before.next_offset
    assert (alarm.before.first_step, alarm.before.first_offset) == (0, FIRST_OFFSET)
    assert alarm.after.next_offset == alarm.step + 1 + FIRST_OFFSET
    assert alarm.raised_at == alarm.after.last_event_at == START + timedelta(minutes=alarm.step + 1)
    assert alarm.before.mean == pytest.approx(2.0, abs=0.05)
    assert alarm.after.mean == pytest.approx(2.5, abs=0.15)
    assert alarm.before.rows + alarm.after.rows == ROWS * (alarm.step + 1)


def test_one_event_of_2100_dates_no_alarm() -> None:
    """Nor the windows it names: they would stand above all others in `driftline alarms` for 74 years."""
    [alarm] = Process().take_all(STEPS).alarms
    false = {alarm.step - 40, alarm.step - 200, alarm.step}
    far = datetime(2100, 1, 1, tzinfo=UTC)
    given = [(at, msgspec.structs.replace(one, last_event_at=far) if one.step in false else one) for at, one in STEPS]
    [again] = Process().take_all(given).alarms
    assert again.id == alarm.id
    for told, true in ((again.raised_at, alarm.raised_at), (again.after.last_event_at, alarm.after.last_event_at)):
        assert true - timedelta(minutes=2 * STEPS_A_BLOCK) <= told <= true
    assert again.before.last_event_at <= alarm.after.last_event_at


def test_a_stream_without_a_change_raises_nothing() -> None:
    assert Process().take_all(at_offsets(changed(10**9, 3000))).alarms == []


def test_a_loss_that_falls_is_forgotten_and_a_later_growth_from_there_is_told() -> None:
    records = [step(n, loss=3.0 if n < 300 else 2.0 if n < 900 else 2.5) for n in range(1200)]
    alarms = Process().take_all(at_offsets(records)).alarms
    assert alarms
    assert alarms[0].before.first_step >= 300 - 2 * STEPS_A_BLOCK
    assert abs(alarms[0].after.first_step - 900) <= 2 * STEPS_A_BLOCK


def test_a_repeated_or_older_step_changes_nothing() -> None:
    process = Process().take_all(STEPS[:50])
    before = process.state
    for _, record in STEPS[:50]:
        process.take(record, 10_000)
    assert process.state == before
    assert process.block is before[1]


def test_another_branch_is_another_subject() -> None:
    subjects = {of_progress(step(1, branch=branch)).subject for branch in (1, 2)}
    assert len(subjects) == 2


def test_a_state_that_is_stored_after_each_step_gives_the_same_alarms() -> None:
    once = Process().take_all(STEPS)
    process = Process()
    for offset, record in STEPS:
        alarms = process.alarms
        process = Process(*stored(process.state))
        process.alarms = alarms
        process.take(record, offset)
    assert [encode(alarm) for alarm in process.alarms] == [encode(alarm) for alarm in once.alarms]
    assert process.state == once.state


@pytest.mark.parametrize("cut", [1, 57, 200, CHANGE + 10, CHANGE + 75, CHANGE + 76, 650])
def test_a_restart_that_repeats_what_was_seen_gives_the_same_alarms(cut: int) -> None:
    once = Process().take_all(STEPS)
    first = Process().take_all(STEPS[:cut])
    again = Process(*stored(first.state)).take_all(STEPS[max(0, cut - 40) :])
    sent = {alarm.id: encode(alarm) for alarm in [*first.alarms, *again.alarms]}
    assert sent == {alarm.id: encode(alarm) for alarm in once.alarms}
    assert again.state == once.state


def kills(records: list[tuple[int, Progress]]) -> Iterator[tuple[int, Process]]:
    """(next record, process) for deaths between the write of a closed block and that of what is open."""
    process = Process()
    for number, (offset, record) in enumerate(records):
        open_before = process.block
        watch_before = process.watch
        process.take(record, offset)
        if process.watch is not watch_before:
            yield number, Process(process.watch, open_before)


def test_a_death_between_the_two_writes_takes_a_block_in_once() -> None:
    once = Process().take_all(STEPS)
    some = list(kills(STEPS))
    assert len(some) == len(STEPS) // STEPS_A_BLOCK
    for number, left in some[::10]:
        alarms = left.take_all(STEPS[number:]).alarms
        assert left.state == once.state
        assert {alarm.id for alarm in alarms} <= {alarm.id for alarm in once.alarms}


def test_a_mix_that_moves_is_told_with_the_names_that_moved() -> None:
    alarms = Process().take_all(at_offsets(changed(CHANGE, 700, buys=16))).alarms
    [alarm] = [alarm for alarm in alarms if alarm.series == "types"]
    was, now = alarm.shifts["buy"]
    assert was == pytest.approx(10 / 32, abs=0.05)
    assert now > was + 0.1
    assert abs(alarm.after.first_step - CHANGE) <= 2 * STEPS_A_BLOCK


def test_small_steps_are_gathered_until_a_block_is_full() -> None:
    process = Process().take_all(at_offsets([step(n, rows=20, buys=4) for n in range(7)]))
    [block] = process.watch.blocks
    assert (block.first_step, block.last_step, block.rows) == (0, 6, 140)


def test_the_state_is_bounded_however_long_the_stream() -> None:
    process = Process().take_all(at_offsets(changed(10**9, (MAX_INPUTS + 10) * STEPS_A_BLOCK)))
    assert len(process.watch.blocks) <= MAX_INPUTS
    assert all(len(series.inputs) <= len(process.watch.blocks) for series in process.watch.series.values())
    assert len(msgspec.json.encode(process.watch)) < 30_000


def test_a_loss_that_is_no_number_is_left_out() -> None:
    records = changed(CHANGE, 700, loss=2.5)
    bad = {"learner": {"type": LossSum(sum=float("nan"), rows=ROWS)}}
    records[100] = msgspec.structs.replace(records[100], losses=bad)
    process = Process().take_all(at_offsets(records))
    assert [alarm.series for alarm in process.alarms] == ["learner/type"]
    assert stored(process.state) == process.state


def test_a_series_that_comes_later_is_placed_in_the_blocks_it_had() -> None:
    records = changed(CHANGE, 700, loss=2.5)
    late = [msgspec.structs.replace(record, losses={}) if record.step < 100 else record for record in records]
    [alarm] = Process().take_all(at_offsets(late)).alarms
    assert alarm.before.first_step == 100
    assert abs(alarm.after.first_step - CHANGE) <= 2 * STEPS_A_BLOCK


def test_after_an_alarm_a_series_starts_over() -> None:
    process = Process()
    for offset, record in STEPS:
        process.take(record, offset)
        if process.alarms:
            break
    assert process.watch.series["learner/type"].inputs == ()
    assert len(process.watch.series["types"].inputs) == len(process.watch.blocks) - REFERENCE


def test_distance_is_0_for_equal_shares_and_1_for_nothing_in_common() -> None:
    assert distance({"a": 3, "b": 1}, {"a": 30, "b": 10}) == pytest.approx(0.0, abs=1e-12)
    assert distance({"a": 3}, {"b": 1}) == 1.0
    assert distance({"a": 1}, {"a": 1, "b": 1}) == pytest.approx(1 - 0.5**0.5)


def test_a_mix_of_too_many_names_counts_the_rest_together() -> None:
    found = mixed({}, {f"type-{n:04}": 1 for n in range(MAX_NAMES + 5)})
    assert len(found) == MAX_NAMES + 1
    assert found[OTHERS] == 5


def test_calibration_is_confidence_minus_hits_over_the_same_rows() -> None:
    record = msgspec.structs.replace(
        step(1),
        losses={"learner": {"error": LossSum(sum=8.0, rows=32)}, "reference.slow": {"type": LossSum(sum=1.0, rows=32)}},
        confidence=LossSum(sum=28.0, rows=32),
    )
    seen = of_progress(record)
    assert seen.sums["calibration"] == LossSum(sum=28.0 - 24.0, rows=32)
    assert set(seen.sums) == {"learner/error", "calibration"}, "only the learner and the frozen arm are watched"


def test_labels_are_a_rate_by_task_and_partition() -> None:
    record = Label(
        event_id="l-1", user_id="ann", task="fraud", ref_time=START, known_at=START, value=1.0, source="bank"
    )
    seen = of_label(record, partition=2, offset=11)
    assert seen.subject == WatchedSubject(source=topics.LABELS, name="fraud", branch=2)
    assert (seen.step, seen.rows, seen.sums) == (11, 1, {"rate": LossSum(sum=1.0, rows=1)})


def test_answers_are_a_wait_and_a_mix() -> None:
    record = ScoreResult(
        user_id="ann",
        request_id="q",
        learner="prompttpp",
        learner_version="1",
        snapshot_id="s",
        snapshot_step=1,
        asked_at=START,
        events_seen=1,
        last_event_at=START,
        next_event=[
            NextEventQuantile(quantile=0.1, seconds=1.0, at=START),
            NextEventQuantile(quantile=0.5, seconds=1.0, at=START),
        ],
        next_type=[TypeProbability(type="buy", probability=0.2), TypeProbability(type="look", probability=0.7)],
        other_types=0.1,
        watermark=[],
        staleness_seconds=None,
    )
    seen = of_result(record, partition=0, offset=3)
    assert seen.sums == {"log_wait": LossSum(sum=0.0, rows=1)}
    assert seen.counts == {"answers": {"look": 1}}
