"""`train`: the journal runs ahead, a restart repeats it to the same bytes, and one process holds the lease."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contexts.batch_builder import context_of
from contracts import topics
from learners.arms.group import ArmGroupReport, LossTotal
from learners.baselines.markov import MarkovCounts
from learners.contract.batch import Query
from runtime.admin_app import Health
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit, OperatorActionRequired, Stop
from storage.learning.journal import Step, WriterLease
from storage.sequences.user_sequences import SequenceEvent
from streams.train.merge import LogRow
from streams.train.process import TrainTotals
from streams.train.progress import ProgressLedger, Undelivered
from tests.integration.feeding import REPOSITORY, Sender, eventually
from tests.integration.learning import School, StopAtLook, schools

NONE = np.zeros(0, np.int64)


@pytest.fixture
def school(database: str, tansu_topics: KafkaConfig, tmp_path: Path) -> Iterator[School]:
    with schools(database, tansu_topics, tmp_path) as made:
        yield made


def test_a_bounded_run_learns_every_row_once_in_full_steps_and_takes_a_snapshot(school: School) -> None:
    school.write(20)
    school.write(10, place=(topics.USER, 3))
    totals = school.train()
    assert (totals.rows, totals.steps, totals.snapshots, totals.repeated_steps) == (30, 5, 1, 0)
    steps = school.query("SELECT step, rows, snapshot FROM journal ORDER BY step")
    assert [step.step for step in steps] == [0, 1, 2, 3, 4]
    assert [sum(run[2] - run[1] for run in step.rows) for step in steps] == [8, 8, 8, 6, 0]
    assert [step.snapshot for step in steps] == [False] * 4 + [True]
    assert school.live() == [totals.snapshot_id]
    assert school.health.is_ready()


def test_a_second_run_goes_on_from_the_snapshot(school: School) -> None:
    school.write(40)
    expected = school.undisturbed()
    school.query("UPDATE stream_offset SET next_offset = 24 WHERE next_offset = 40")  # the rest is not there yet
    school.train()
    school.query("UPDATE stream_offset SET next_offset = 40 WHERE next_offset = 24")
    totals = school.train()
    assert (totals.rows, totals.repeated_steps) == (16, 0)
    assert totals.sha256 == expected


def test_a_run_stopped_anywhere_and_started_again_ends_with_the_same_bytes(school: School) -> None:
    school.write(40)
    expected = school.undisturbed(snapshot_every_s=0)
    for look in (2, 9, 17):
        first = school.train(stop=StopAtLook(look), snapshot_every_s=0)
        second = school.train(snapshot_every_s=0)
        newest = second.sha256 or first.sha256
        assert newest == expected, f"stopped at look {look}"
        school.forget()


def test_a_restart_repeats_the_journalled_steps_verbatim(school: School) -> None:
    school.write(40)
    expected = school.undisturbed()
    assert school.train_and_die().snapshots == 0
    before = school.query("SELECT * FROM journal ORDER BY step")
    assert len(before) > 4
    school.write(8)
    totals = school.train(step_rows=3)
    after = school.query("SELECT * FROM journal ORDER BY step")
    assert after[: len(before)] == before
    assert totals.repeated_steps == len(before)
    assert totals.rows == 48
    repeated = school.query("SELECT sha256 FROM snapshot WHERE step = :step", step=len(before))
    assert [row.sha256 for row in repeated] == [expected]


def test_the_same_holds_for_the_learner_that_has_weights(school: School) -> None:
    school.write(24)
    expected = school.undisturbed(learner="prompttpp")
    school.train_and_die(learner="prompttpp")
    assert school.train(learner="prompttpp").sha256 == expected


def test_a_stop_while_steps_are_repeated_is_no_quarrel_and_loses_nothing(school: School) -> None:
    school.write(40)
    expected = school.undisturbed()
    school.train_and_die()
    steps = school.journalled()
    for look in (1, 3, 5):
        school.train(stop=StopAtLook(look))
        assert school.journalled() == steps
    assert school.train().sha256 == expected


def test_a_silent_partition_is_waited_for_a_while_then_passed_by_and_that_is_journalled(school: School) -> None:
    school.write(8)
    stop = Stop()
    running = threading.Thread(target=school.process(stop=stop, merge_wait_s=0.3, step_linger_s=0.0).run)
    running.start()
    try:
        eventually(lambda: school.journalled() >= 1, why="nobody was passed by")
    finally:
        stop.set()
        running.join(20)
    [first, *_] = school.query("SELECT idle, rows FROM journal ORDER BY step")
    [stream] = school.query("SELECT stream_id FROM stream_offset WHERE next_offset > 0")
    others = school.query("SELECT stream_id FROM stream_offset WHERE next_offset = 0 ORDER BY stream_id")
    assert set(first.idle) >= {row.stream_id for row in others}
    assert first.rows[0][:2] == [stream.stream_id, 0]


def test_a_bounded_run_waits_without_bound_for_what_the_topics_held_and_learns_it_in_full_steps(school: School) -> None:
    school.write(20)
    school.write(4, place=(topics.USER, 3))
    school.write(4, place=(topics.USER, 3))
    expected = school.undisturbed(step_rows=16)
    sender = Sender(school.config)
    for _ in range(8):  # one by one: of a batch Tansu counts the first only
        sender.put(topics.USER, b"user-0", b"{}", partition=3)
    school.query("UPDATE stream_offset SET next_offset = 4 WHERE next_offset = 8")  # ingest is not there yet
    found = list[TrainTotals]()
    impatient: dict[str, Any] = {"step_rows": 16, "merge_wait_s": 0.0, "step_linger_s": 0.0}
    running = threading.Thread(target=lambda: found.append(school.train(**impatient)))
    running.start()
    try:
        eventually(school.health.is_ready)
        running.join(1.5)
        assert running.is_alive()
        assert school.journalled() == 0, "it went on without a partition that has more"
    finally:
        school.query("UPDATE stream_offset SET next_offset = 8 WHERE next_offset = 4")
        running.join(20)
    steps = school.query("SELECT rows, idle FROM journal ORDER BY step")
    assert [sum(run[2] - run[1] for run in step.rows) for step in steps] == [16, 12, 0]
    assert [step.idle for step in steps] == [[], [], []]
    assert [totals.sha256 for totals in found] == [expected]


def test_a_second_train_fences_the_first_which_stops_with_exit_code_3(school: School) -> None:
    school.write(8)
    with school.refused() as said:
        assert school.train().repeated_steps >= 1
        school.write(8)
    [refused] = said
    assert refused.code is Exit.REFUSED
    assert "another `train` took over" in str(refused)
    assert "run one `train` a learner" in str(refused)


def test_a_step_is_journalled_before_it_runs_and_a_zombie_can_add_nothing(school: School, tmp_path: Path) -> None:
    school.write(40)
    expected = school.undisturbed()
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "DRIFTLINE_POSTGRES_URL": school.database,
        "DRIFTLINE_KAFKA_BOOTSTRAP": school.config.bootstrap,
        "DRIFTLINE_TOPIC_PREFIX": school.config.prefix,
        "DRIFTLINE_DATA_DIR": str(school.folder.parent),
        "DRIFTLINE_TRAIN__LEARNER": "markov",
        "DRIFTLINE_TRAIN__STEP_ROWS": "8",
        "DRIFTLINE_TRAIN__PORT": "none",
        "DRIFTLINE_FAILPOINT": "train.after_journal:3:stop",
    }
    log = tmp_path / "zombie.log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "driftline", "train", "--once"]
        zombie = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=out, stderr=out)
    try:
        eventually(lambda: _frozen(zombie.pid) or zombie.poll() is not None, within_s=40)
        assert zombie.poll() is None, log.read_text()
        assert school.journalled() == 3
        told = {(record.branch, record.step) for record in school.progress(at_least=5)[5:]}
        assert told <= {(1, 0), (1, 1)}, "the third step is journalled and did not run"
        assert school.train().sha256 == expected
        state = school.query("SELECT * FROM journal ORDER BY step"), school.query("SELECT * FROM snapshot")
        zombie.send_signal(signal.SIGCONT)
        assert zombie.wait(20) == Exit.REFUSED, log.read_text()
        assert "another `train` took over" in log.read_text()
        assert (school.query("SELECT * FROM journal ORDER BY step"), school.query("SELECT * FROM snapshot")) == state
    finally:
        zombie.kill()
        zombie.wait()


def _frozen(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except FileNotFoundError:
        return False


def test_a_repeated_step_repeats_its_progress_under_the_same_id(school: School) -> None:
    school.write(40)
    school.train_and_die()
    school.train()
    found = school.progress(at_least=10)
    told = [(record.learner, record.branch, record.step) for record in found]
    assert sorted(told) == sorted([("markov", 1, step) for step in range(5)] * 2)
    for record in found:
        assert [other for other in found if other.step == record.step] == [record, record]


def test_progress_that_no_broker_takes_is_given_up_aloud() -> None:
    event = SequenceEvent(0, "e", topics.USER, 0, 0, 1, 1, "click", None, None, None, None, 0)
    lease = WriterLease(learner="markov", branch=1, epoch=1, next_step=1, config={})
    step = Step(number=0, rows=((1, 0, 1),), front=None, idle=(), late=0, snapshot=False, actions=())
    losses = {"learner": {"type": LossTotal(sum=1.0, count=1)}}
    nothing = MarkovCounts().predict(context_of([]), Query(stack=NONE, visible=NONE, now=NONE))
    report = ArmGroupReport(losses=losses, trained={}, actions=(), prediction=nothing)
    ledger = ProgressLedger(KafkaConfig("127.0.0.1:1", options={"message.timeout.ms": "200"}))
    ledger.tell(lease, step, [LogRow(0, topics.USER, 0, 0, 1, "ann", event)], report)
    with pytest.raises(Undelivered, match=r"learning\.progress"):
        ledger.flush(Stop())


def test_train_is_unready_while_kafka_owes_the_acknowledgement_a_snapshot_waits_for(school: School) -> None:
    school.write(16)
    stop = Stop()
    process = school.process(stop=stop, snapshot_every_s=0, merge_wait_s=0.0, step_linger_s=0.0)
    running = threading.Thread(target=process.run)
    try:
        with _frozen_broker(school.config.bootstrap):
            running.start()
            eventually(lambda: "waiting for Kafka to acknowledge" in str(school.health.report()))
            assert not school.health.is_ready()
            assert school.live() == []
        eventually(school.health.is_ready, why="Kafka is back and it stays unready")
        eventually(lambda: len(school.live()) >= 2)
    finally:
        stop.set()
        running.join(20)


def test_train_is_unready_until_it_has_repeated_what_was_journalled_snapshots_included(school: School) -> None:
    school.write(24)
    school.train(snapshot_every_s=0)
    for snapshot in school.live():
        school.file(snapshot).unlink()
    school.health = health = NotedHealth("train")
    assert school.train(snapshot_every_s=0).repeated_steps == 3
    said = [why for _, why in health.noted]
    assert said[0] == "repeating 3 journalled steps"
    assert [ready for ready, _ in health.noted] == [not why for why in said]
    assert said.index("") == len(said) - said[::-1].index("repeating 1 journalled steps")
    assert health.is_ready()


class NotedHealth(Health):
    """Keeps what was said."""

    def __init__(self, *parts: str) -> None:
        super().__init__(*parts)
        self.noted: list[tuple[bool, str]] = []

    def set_ready(self, part: str, ready: bool, why: str = "") -> None:
        self.noted.append((ready, why))
        super().set_ready(part, ready, why)


@contextmanager
def _frozen_broker(address: str) -> Iterator[None]:
    """The embedded broker at an address takes connections and answers nobody, as one that hangs."""
    commands = ((int(file.parent.name), file) for file in Path("/proc").glob("[0-9]*/cmdline"))
    [pid] = [pid for pid, file in commands if f"\0tcp://{address}\0".encode() in _content(file)]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""  # that process ended meanwhile


def test_another_configuration_is_refused(school: School) -> None:
    school.write(8)
    school.train()
    with pytest.raises(OperatorActionRequired, match="the settings now say") as refused:
        school.train(seed=1)
    assert refused.value.code is Exit.REFUSED
    assert school.train().steps == 0


def test_a_learner_of_another_version_is_refused(school: School) -> None:
    school.write(8)
    school.train()
    school.query("UPDATE learner SET version = '0'")
    with pytest.raises(OperatorActionRequired, match="made by version 0; this is 1"):
        school.train()


def test_reactions_are_journalled_with_the_next_step_even_over_a_restart(school: School) -> None:
    """The 1,025th type takes another's place: the one reaction of a learner that counts."""
    school.write(1280, types=1200)
    many: dict[str, Any] = {"step_rows": 256, "snapshot_every_s": 0}
    assert school.train(**many).snapshots == 5
    school.write(20, types=1200)
    school.train(**many)
    [last] = school.query("SELECT actions FROM journal WHERE step = 5")
    assert len(last.actions) == 1200 - 1024
    for snapshot in school.live()[-2:]:
        school.file(snapshot).unlink()
    totals = school.train(**many)
    assert (totals.repeated_steps, totals.snapshots) == (2, 2)


def test_another_reaction_than_the_journalled_one_is_refused(school: School) -> None:
    school.write(24)
    school.train_and_die()
    school.query("""UPDATE journal SET actions = '["grew"]' WHERE step = 2""")
    with pytest.raises(OperatorActionRequired, match=r"repeating step 1 .* the journal says \['grew'\]") as refused:
        school.train()
    assert refused.value.code is Exit.REFUSED
    assert school.live() == []


def test_a_gap_in_the_journal_is_refused(school: School) -> None:
    school.write(24)
    school.train_and_die()
    school.query("DELETE FROM journal WHERE step = 1")
    with pytest.raises(OperatorActionRequired, match="the journal holds"):
        school.train()


def test_a_log_that_lost_a_segment_is_refused(school: School) -> None:
    school.write(8)
    school.write(8)
    school.train_and_die()
    school.query("DELETE FROM log_segment WHERE first_offset = 8")
    with pytest.raises(OperatorActionRequired, match="stream") as refused:
        school.train()
    assert refused.value.code is Exit.REFUSED
