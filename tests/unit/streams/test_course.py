"""A learner's course: repeated from its journal it gives the same bytes, wherever it is taken up again."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median_low

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from contracts.topics import PAYMENT, USER
from learners.contract.protocol import ForeignState
from learners.learner_config import LearnerConfig
from runtime.lifecycle import OperatorActionRequired
from storage.dictionary import Dictionary
from storage.engine import open_engine
from storage.learning import journal, snapshot_files
from storage.learning.journal import Step
from streams.train.merge import LogRow, Merge, runs_of
from streams.train.step_runner import StepRunner, check_actions, journalled, load_tensors, make_deterministic
from streams.train.watermark import Front
from tests.integration.learning import Given, Place, Scribe, streams_of, undone

OPTIONS = {
    "hidden": 8,
    "time_dim": 4,
    "layers": 1,
    "pool": 4,
    "prompt_length": 2,
    "retrieved": 2,
    "last_n": 4,
    "warmup_events": 10,
}
PLAN = LearnerConfig(learner="prompttpp", seed=3, options=OPTIONS, resolution_us=1_000_000)
COUNTS = LearnerConfig(learner="markov", seed=0, options={"max_types": 4}, resolution_us=1_000_000)
FAR = 4_102_444_800
"""The year 2100."""
PLACES: list[Place] = [(PAYMENT, 0), (USER, 0)]
property_test = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    make_deterministic(1)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    engine = open_engine(database, application_name="test")
    with engine.connect() as made:
        yield made


def written(connection: Connection, late: list[int], *, types: int = 3) -> list[LogRow]:
    """A row an entry, on two streams in turn: so many seconds late."""
    scribe = Scribe(connection, Dictionary(connection.engine), streams_of(*PLACES))
    for turn, place in enumerate(PLACES):
        rows = [
            Given(n // 2, 1000 + (n - late[n]) * 1_000_000, n * 1_000_000, f"user-{n % 3}", f"type-{n % types}", "shop")
            for n in range(turn, len(late), 2)
        ]
        if rows:
            scribe.write(place, rows)
    merge = Merge({})
    merge.refresh(connection)
    merge.set_ends(scribe.ends())
    found = []
    while (row := merge.pop()) is not None:
        assert isinstance(row, LogRow)
        found.append(row)
    assert len(found) == len(late)
    return found


def step_of(number: int, rows: list[LogRow], *, actions: tuple[str, ...] = ()) -> Step:
    return Step(number=number, rows=runs_of(rows), front=None, idle=(), late=0, snapshot=False, actions=actions)


def digest(runner: StepRunner) -> str:
    return snapshot_files.digest(runner.tensors())


@given(st.lists(st.integers(0, 9), min_size=14, max_size=60), st.integers(4, 9))
@property_test
def test_late_rows_are_counted_and_learnt(connection: Connection, late: list[int], size: int) -> None:
    with undone(connection):
        rows, runner = written(connection, late), StepRunner(COUNTS, COUNTS.fresh(), {}, front=None)
        counted, learnt = 0, 0
        for start in range(0, len(rows), size):
            step = rows[start : start + size]
            counted += runner.late(step)
            report = runner.learn(connection, step)
            assert report is not None
            learnt += report.losses["learner"]["type"].count
        times = [row.record_at for row in rows]
        fronts = [median_low(times[max(0, n - 33) : n]) if n else time for n, time in enumerate(times)]
        assert counted == sum(time < front for time, front in zip(times, fronts, strict=True))
        assert learnt == len(rows)
        assert runner.front == median_low(times[-33:])


@pytest.mark.parametrize("taken_up_at", range(5))
def test_a_course_taken_up_at_any_step_goes_on_to_the_same_bytes(connection: Connection, taken_up_at: int) -> None:
    with undone(connection):
        rows = written(connection, [n % 3 for n in range(40)])
        steps = [step_of(n, rows[8 * n : 8 * n + 8]) for n in range(5)]
        live = StepRunner(PLAN, PLAN.fresh(), {}, front=None)
        for number in range(5):
            if number == taken_up_at:
                tensors, cursor, front = (
                    {k: v.copy() for k, v in live.tensors().items()},
                    dict(live.cursor),
                    live.recent,
                )
            live.learn(connection, rows[8 * number : 8 * number + 8])
        arm_group = PLAN.fresh()
        load_tensors(arm_group, tensors)
        again = StepRunner(PLAN, arm_group, cursor, front=front)
        for step in steps[taken_up_at:]:
            again.repeat(connection, step)
        assert digest(again) == digest(live)
        assert (again.cursor, again.recent) == (live.cursor, live.recent)


def test_one_row_of_2100_moves_no_front() -> None:
    front = Front().after(range(100))
    assert front.at == 83
    assert front.after([FAR]).at == 84
    assert front.after([FAR]).late([99, 83, 82]) == 2, "behind 84 and 84; not one in the whole of what follows"
    assert front.after([0]).at == 83


def test_after_forty_rows_of_today_few_rows_of_the_past_are_late() -> None:
    """25,733 of 25,734 were, while the largest record time was the front."""
    today = Front().after(range(FAR, FAR + 40))
    assert today.late(range(25_000)) == 17


def test_other_rows_in_another_order_are_other_bytes(connection: Connection) -> None:
    with undone(connection):
        rows = written(connection, [0] * 16)
        one, other = (StepRunner(PLAN, PLAN.fresh(), {}, front=None) for _ in range(2))
        one.learn(connection, rows[:8])
        one.learn(connection, rows[8:])
        other.learn(connection, rows)
        assert digest(one) != digest(other)


def test_tensors_of_another_learner_are_foreign() -> None:
    runner = StepRunner(COUNTS, COUNTS.fresh(), {}, front=None)
    with pytest.raises(ForeignState):
        load_tensors(PLAN.fresh(), runner.tensors())


def test_a_plan_survives_its_way_through_the_database() -> None:
    assert LearnerConfig.from_json("prompttpp", PLAN.as_json()) == PLAN


def test_a_reaction_other_than_the_journalled_one_is_refused() -> None:
    check_actions(step_of(4, [], actions=("grew",)), ("grew",))
    with pytest.raises(
        OperatorActionRequired, match=r"repeating step 3 the learner reported \[\]; the journal says \['grew'\]"
    ):
        check_actions(step_of(4, [], actions=("grew",)), ())


def test_a_gap_in_the_journal_is_refused(connection: Connection) -> None:
    with undone(connection):
        lease, _ = journal.acquire_lease(connection, learner="markov", version="1", config={})
        for number in range(3):
            journal.append(connection, lease, step_of(number, []))
        assert [step.number for step in journalled(connection, "markov", 1, 0, 3)] == [0, 1, 2]
        with pytest.raises(OperatorActionRequired, match="of the steps 1 to 4 the journal holds 2"):
            journalled(connection, "markov", 1, 1, 5)


def test_a_long_journal_is_read_page_by_page(connection: Connection) -> None:
    with undone(connection):
        lease, _ = journal.acquire_lease(connection, learner="markov", version="1", config={})
        for number in range(7):
            journal.append(connection, lease, step_of(number, []))
        found = journal.steps(connection, "markov", 1, 1, 7, page=2)
        assert [step.number for step in found] == list(range(1, 7))
