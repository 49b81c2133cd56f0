"""Late labels and silence against a plain reading of the rule: which step learns what, and what it may see.

The context of an outcome is what its subject's own prediction saw: what came before the subject in the order of the
merge, strictly before the reference time. An outcome is learnt in the first step that covers label and subject.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from contracts.identity import event_key
from contracts.topics import LABELS, PAYMENT, USER
from learners.arms.group import ArmGroup, ArmGroupReport
from learners.baselines.logistic_risk import columns
from learners.contract.batch import Batch, TargetKind
from learners.learner_config import LearnerConfig
from storage.dictionary import Dictionary
from storage.engine import open_engine
from storage.learning import journal, label_resolutions, predictions, snapshot_files
from storage.learning.journal import Step, WriterLease
from storage.learning.label_resolutions import Resolution
from storage.log import event_log, offsets
from storage.sequences.user_sequences import SequenceEvent
from streams.train.merge import LabelRow, LogRow, Merge, Row, runs_of
from streams.train.silences import Silences, SilenceWatch
from streams.train.step_runner import StepRunner, make_deterministic
from tests.integration.learning import Given, Place, Scribe, Told, streams_of, undone
from tests.unit.streams.label_oracle import Oracle, Taken

SECOND = 1_000_000
LAST_N = 4
HORIZON = 30 * SECOND
PLAN = LearnerConfig(learner="risk", seed=0, options={"last_n": LAST_N, "prior": 0.1}, resolution_us=SECOND)
SILENT = LearnerConfig(**{**vars(PLAN), "horizon_us": HORIZON})
PLACES: list[Place] = [(PAYMENT, 0), (PAYMENT, 1), (USER, 0), (LABELS, 0)]
property_test = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class Happening(NamedTuple):
    """A payment or a visit, and what is told of it."""

    payment: bool
    user: str
    shop: str
    late: int
    """Seconds by which its event time lies before its record time."""
    delay: int | None
    """Seconds of record time from it to its label, below 0 for a label that comes first; None: nobody tells."""
    early_ref: int
    """Seconds by which the label's reference time lies before the event."""
    y: float
    sent: int = 0
    """Seconds by which its record time lies behind the time when it became known."""


happenings = st.builds(
    Happening,
    payment=st.sampled_from([True, True, True, False]),
    user=st.sampled_from(["ann", "ann", "bob", "cem"]),
    shop=st.sampled_from(["deli", "books"]),
    late=st.sampled_from([0, 0, 0, 1, 7]),
    delay=st.one_of(st.none(), st.integers(-9, 60), st.integers(0, 20)),
    early_ref=st.sampled_from([0, 0, 0, 0, 5]),
    y=st.sampled_from([0.0, 1.0]),
    sent=st.sampled_from([0, 0, 0, 30, 200]),
)
worlds = st.lists(happenings, min_size=2, max_size=30)
cuts = st.sets(st.integers(1, 59), max_size=14)
HELD_BACK = [Happening(True, "ann", "deli", 0, 1, 0, 1.0, sent=200 if n == 0 else 0) for n in range(30)]
"""The label of the first payment is sent when all others have come."""
AHEAD = [Happening(True, "ann", "deli", 0, -9, 0, 1.0)] * 8
"""Each label comes before its payment."""


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


def record_us(number: int) -> int:
    """Record time of the n-th happening, two seconds after the one before."""
    return (1000 + 2 * number) * SECOND


def written(connection: Connection, world: Sequence[Happening]) -> list[Row]:
    """The world in the log, as the merge gives it back."""
    told = list[Told]()
    rows: dict[Place, list[Given | Told]] = {place: [] for place in PLACES}
    for number, one in enumerate(world):
        place = (PAYMENT, ord(one.user[0]) % 2) if one.payment else (USER, 0)
        offset, at = len(rows[place]), record_us(number) - one.late * SECOND
        amount = (7 * number % 50 + 1) * 10**6 if one.payment else None
        rows[place].append(
            Given(offset, record_us(number), at, one.user, "paid", one.shop if one.payment else None, amount=amount)
        )
        if one.delay is not None:
            told_at = record_us(number) + one.delay * SECOND
            subject, ref_time = f"{place[0]}-{place[1]}-{offset}", at - one.early_ref * SECOND
            sent_at = told_at + one.sent * SECOND
            told.append(Told(0, sent_at, told_at, one.user, subject, ref_time, one.y))
    ordered = sorted(told, key=lambda one: one.record_at)
    rows[LABELS, 0] = [one._replace(offset=offset) for offset, one in enumerate(ordered)]
    return merged(connection, rows)


def merged(connection: Connection, rows: Mapping[Place, Sequence[Given | Told]]) -> list[Row]:
    """Rows of each stream, written to the log, as the merge gives them back."""
    scribe = Scribe(connection, Dictionary(connection.engine), streams_of(*PLACES))
    for place, some in rows.items():
        if some:
            scribe.write(place, some)
    merge, found = Merge({}, labels=True), list[Row]()
    merge.refresh(connection)
    merge.set_ends(scribe.ends())
    while merge.refresh(connection) or not merge.at_ends():
        if (row := merge.pop()) is not None:
            found.append(row)
    assert len(found) == sum(len(some) for some in rows.values())
    return found


def steps_of(rows: Sequence[Row], cut: set[int]) -> list[Sequence[Row]]:
    ends = sorted({*(at for at in cut if at < len(rows)), len(rows)})
    return [rows[start:end] for start, end in zip([0, *ends], ends, strict=False)]


class Watched(ArmGroup):
    """Notes what it is asked."""

    def __init__(self, plain: ArmGroup) -> None:
        super().__init__(plain.learner, {"risk_rate": plain.arms["reference.risk_rate"]}, parties=plain.parties)
        self._last_n = plain.needs.last_n
        self.asked: dict[int, tuple[list[float], list[int]]] = {}
        """Event -> (columns, keys of the history it may see), when it was predicted."""
        self.matured: list[tuple[int, list[float], list[int], float, float]] = []
        """(event, columns, history, outcome, known at), in the order of learning."""

    def _take(self, batch: Batch, census: Batch | None) -> ArmGroupReport:
        x = columns(batch.context, batch.query, last_n=self._last_n).tolist()
        for n, key in enumerate(batch.origin.key.tolist()):
            start = int(batch.context.offsets[batch.query.stack[n]])
            end = start + int(batch.query.visible[n])
            seen = batch.context.key[max(start, end - self._last_n) : end].tolist()
            if batch.target.kind is TargetKind.EVENT:
                self.asked[key] = (x[n], seen)
            else:
                assert batch.target.y is not None
                self.matured.append((key, x[n], seen, float(batch.target.y[n]), float(batch.target.at[n])))
        return super()._take(batch, census)


class Walk:
    """A course that journals each step ahead and runs it, as `train` does."""

    def __init__(self, connection: Connection, plan: LearnerConfig) -> None:
        self.connection = connection
        self.lease: WriterLease = journal.acquire_lease(connection, learner="risk", version="1", config={})[0]
        self.arm_group = Watched(plan.fresh())
        self.runner = StepRunner(plan, self.arm_group, {}, front=None, lease=self.lease)
        self.watch = SilenceWatch(self.runner, asked=lambda: None)
        self.silent: bool = plan.horizon_us is not None
        self.steps: list[Step] = []
        self.taken: list[Taken] = []
        self.learnt: list[list[int]] = []
        """Events whose outcome each step learnt."""

    def silences(self) -> Silences:
        """Of the next step, as far as the log goes."""
        ends, merge = offsets.watermark(self.connection), self.runner.merge
        merge.refresh(self.connection)
        merge.set_ends(ends)
        assert merge.settled()
        return self.watch.bounded(self.connection, ends)

    def step(self, rows: Sequence[Row]) -> None:
        found = self.silences() if self.silent else Silences()
        step = Step(
            number=len(self.steps), rows=runs_of(rows), front=None, idle=(), late=0, snapshot=False, actions=(),
            ticks=found.ticks, cursor=dict(self.runner.cursor), drained=found.drained,
            task_clock=None if found.clock is None else event_log.time_of(found.clock),
        )  # fmt: skip
        journal.append(self.connection, self.lease, step)
        self.steps.append(step)
        self.taken.append(Taken(rows, frozenset(subject for _, subject in found.ticks), found.clock))
        before = len(self.arm_group.matured)
        self.runner.learn(self.connection, rows, number=step.number, ticks=step.ticks, task_clock=step.task_clock)
        self.learnt.append([key for key, *_ in self.arm_group.matured[before:]])
        if self.silent:
            for run in step.rows:
                self.runner.merge.pop_run(self.connection, run)

    def finish(self) -> None:
        """Silences that are left when everything is read."""
        while self.silences().ticks:
            self.step([])

    def fates(self) -> dict[tuple[int, int], str]:
        """What came of each label, by its place."""
        found = self.connection.execute(text("SELECT stream_id, position, resolution FROM label_resolution"))
        return {(row.stream_id, row.position): row.resolution or "waiting" for row in found}

    def table(self) -> list[Any]:
        return list(self.connection.execute(text("SELECT * FROM prediction ORDER BY user_id, subject")))

    def labels(self) -> list[Any]:
        return list(self.connection.execute(text("SELECT * FROM label_resolution ORDER BY stream_id, position")))


def subject_of(row: LabelRow) -> int:
    assert row.subject is not None
    return event_key(PAYMENT, row.user, row.subject)


def history_of(rows: Sequence[Row], number: int, before: int) -> list[int]:
    """The rule: the last events of the user that came earlier in the merge and lie strictly before the time."""
    row = rows[number]
    own = [other for other in rows[:number] if isinstance(other, LogRow) and other.user == row.user]
    return [event.key for event in sorted(one.event for one in own if one.event.at < before)][-LAST_N:]


def expected_of(rows: Sequence[Row], steps: Sequence[Sequence[Row]]) -> dict[int, tuple[int, list[int], float]]:
    """Event -> (step that learns its outcome, what it may see, outcome); the first label in the merge counts."""
    step_of = {id(row): number for number, step in enumerate(steps) for row in step}
    paid = {row.event.key: n for n, row in enumerate(rows) if isinstance(row, LogRow) and row.topic == PAYMENT}
    found: dict[int, tuple[int, list[int], float]] = {}
    for label in rows:
        if isinstance(label, LabelRow) and (key := subject_of(label)) in paid and key not in found:
            place = paid[key]
            step = max(step_of[id(label)], step_of[id(rows[place])])
            found[key] = (step, history_of(rows, place, label.ref_time), label.value)
    return found


@given(worlds, cuts)
@property_test
def test_an_outcome_is_learnt_in_the_first_step_that_covers_both_and_sees_what_its_subject_saw(
    connection: Connection, world: list[Happening], cut: set[int]
) -> None:
    with undone(connection):
        rows, walk = written(connection, world), Walk(connection, PLAN)
        steps = steps_of(rows, cut)
        for step in steps:
            walk.step(step)
        expected = expected_of(rows, steps)
        learnt = {key: number for number, keys in enumerate(walk.learnt) for key in keys}
        assert learnt == {key: step for key, (step, _, _) in expected.items()}
        assert len(walk.arm_group.matured) == len(expected), "each is learnt once"
        for key, x, seen, y, _ in walk.arm_group.matured:
            assert (seen, y) == expected[key][1:]
            if seen == walk.arm_group.asked[key][1] and on_time(rows, key):
                assert x == walk.arm_group.asked[key][0], "to the bit"
        waiting = {row.subject for row in walk.labels() if row.resolution is None}
        told = {subject_of(row) for row in rows if isinstance(row, LabelRow)}
        assert waiting == told - set(expected), "labels of visits wait for a payment"
        assert walk.fates() == Oracle(horizon_us=None, correction_us=None).run(walk.taken).fates


def on_time(rows: Sequence[Row], key: int) -> bool:
    """Whether the label's reference time is its event's own time."""
    at = next(row.event.at for row in rows if isinstance(row, LogRow) and row.event.key == key)
    return any(isinstance(row, LabelRow) and subject_of(row) == key and row.ref_time == at for row in rows)


@given(worlds, cuts, st.integers(0, 14))
@example(HELD_BACK, {20, 40, 50}, 2)
@example(AHEAD, {3, 6, 9}, 0)
@property_test
def test_a_course_repeated_from_any_step_gives_the_same_bytes_and_the_same_rows(
    connection: Connection, world: list[Happening], cut: set[int], taken_up_at: int
) -> None:
    with undone(connection):
        rows, walk = written(connection, world), Walk(connection, SILENT)
        steps = steps_of(rows, cut)
        taken_up_at = min(taken_up_at, len(steps) - 1)
        for number, step in enumerate(steps):
            if number == taken_up_at:
                tensors, cursor, front = walk.runner.tensors(), dict(walk.runner.cursor), walk.runner.recent
                tensors = {name: array.copy() for name, array in tensors.items()}
            walk.step(step)
        walk.finish()
        before, settled = walk.table(), walk.labels()
        for lease in (walk.lease, None):
            again = StepRunner(SILENT, SILENT.fresh(), cursor, front=front, lease=lease)
            again.load(tensors)
            for stored in journal.steps(connection, "risk", 1, taken_up_at, len(walk.steps)):
                assert stored == walk.steps[stored.number]
                again.repeat(connection, stored)
            assert snapshot_files.digest(again.tensors()) == snapshot_files.digest(walk.runner.tensors())
            assert (walk.table(), walk.labels()) == (before, settled)


def until_of(rows: Sequence[Row], taken: int) -> int | None:
    """The rule W2: up to where silences end once so many rows are taken, all others being on their way."""
    times: dict[int, list[int]] = {}
    for row in rows[:taken]:
        if isinstance(row, LabelRow) or row.topic == PAYMENT:
            at = row.known_at if isinstance(row, LabelRow) else row.event.at
            times.setdefault(row.stream_id, []).append(at)
    clocks = {stream: sorted(some[-9:])[(len(some[-9:]) - 1) // 2] for stream, some in times.items()}
    paying = {row.stream_id for row in rows if row.topic == PAYMENT}
    telling = {row.stream_id for row in rows if row.topic == LABELS}
    left = {row.stream_id for row in rows[taken:]}
    if not paying & clocks.keys() or not telling & clocks.keys():
        return None
    bounds = [clocks.get(stream, -(2**62)) for stream in (paying | telling) & left]
    return min([max(clocks[stream] for stream in paying & clocks.keys()), *bounds])


@given(worlds, cuts)
@example(HELD_BACK, {20, 40, 50})
@property_test
def test_silence_to_the_horizon_is_a_negative_label_once_and_whoever_speaks_later_corrects_it(
    connection: Connection, world: list[Happening], cut: set[int]
) -> None:
    with undone(connection):
        rows, walk = written(connection, world), Walk(connection, SILENT)
        for step in steps_of(rows, cut):
            walk.step(step)
        walk.finish()
        at = {row.event.key: row.event.at for row in rows if isinstance(row, LogRow) and row.topic == PAYMENT}
        done = 0
        for taken in walk.taken:
            until = until_of(rows, done)
            assert until is not None or not taken.ticked
            assert all(until is not None and at[key] + HORIZON <= until for key in taken.ticked)
            done += len(taken.rows)
        oracle = Oracle(horizon_us=HORIZON, correction_us=None).run(walk.taken)
        assert walk.fates() == oracle.fates
        assert world is not HELD_BACK or "corrected" in oracle.fates.values()
        known = {row.subject: (row.corrected_value, row.value, row.silent) for row in walk.table()}
        assert known == {
            key: (one.corrected, one.value, one.silent if one.value is not None else None)
            for key, one in oracle.subjects.items()
        }
        learnt = [(key, y) for key, _, _, y, _ in walk.arm_group.matured]
        expected = [(key, one.value) for key, one in oracle.subjects.items() if one.value is not None]
        expected += [(key, one.corrected) for key, one in oracle.subjects.items() if one.corrected]
        assert sorted(learnt) == sorted(expected), "each outcome once, and each correction once"
        until = until_of(rows, len(rows))
        open_ = {key for key, one in oracle.subjects.items() if one.value is None}
        assert until is None or all(at[key] + HORIZON > until for key in open_)
        assert predictions.count_open(connection, "risk", 1) == len(open_)


def test_of_two_labels_the_first_counts_and_those_of_other_tasks_or_of_users_are_passed_over(
    connection: Connection,
) -> None:
    with undone(connection):
        rows = written(connection, [Happening(True, "ann", "deli", 0, 5, 0, 1.0)] * 2)
        walk = Walk(connection, PLAN)
        [first, second] = [row for row in rows if isinstance(row, LabelRow)]
        walk.step([row for row in rows if isinstance(row, LogRow)])
        more = [
            first,
            second._replace(task="default"),
            second._replace(subject=None),
            first._replace(value=0.0),
        ]
        walk.step([row._replace(offset=n) for n, row in enumerate(more)])
        assert walk.runner.outcomes is not None
        handled = walk.runner.outcomes.handled
        assert dict(handled.labels) == {
            Resolution.LEARNT: 1, Resolution.OTHER_TASK: 1, Resolution.NO_SUBJECT: 1, Resolution.CONTRADICTING: 1,
        }  # fmt: skip
        walk.step([first._replace(offset=4, value=0.0), first._replace(offset=5)])
        assert dict(walk.runner.outcomes.handled.labels) == {Resolution.CONTRADICTING: 1, Resolution.REPEATED: 1}
        assert [y for *_, y, _ in walk.arm_group.matured] == [1.0]


def test_a_time_leap_closes_the_silent_in_portions_oldest_first(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.train.delayed_labels.TICKS", 3)
    with undone(connection):
        label_resolutions.assume_complete(connection, "fraud")
        quiet = Happening(True, "ann", "deli", 0, None, 0, 0.0)
        rows, walk = written(connection, [quiet] * 30), Walk(connection, SILENT)
        walk.step(rows)
        closed = []
        while ticks := walk.silences().ticks:
            walk.step([])
            closed.append([key for _, key in ticks])
        clock = record_us(25)  # the median of the last nine
        due = [row.event.key for row in rows if isinstance(row, LogRow) and row.event.at + HORIZON <= clock]
        assert [len(keys) for keys in closed] == [3, 3, 3, 2]
        assert [key for keys in closed for key in keys] == due


def test_a_prediction_whose_event_an_erasure_took_goes_with_its_tick_and_teaches_nothing(
    connection: Connection,
) -> None:
    with undone(connection):
        label_resolutions.assume_complete(connection, "fraud")
        quiet = Happening(True, "ann", "deli", 0, None, 0, 0.0)
        rows, walk = written(connection, [quiet] * 24), Walk(connection, SILENT)
        walk.step(rows)
        due = len(walk.silences().ticks)
        assert due == 5
        connection.execute(text("DELETE FROM user_segment"))
        walk.runner.learn(connection, [], erased=frozenset({b"somebody"}), number=1)
        walk.step([])
        assert walk.silences().ticks == ()
        assert (walk.arm_group.matured, len(walk.table())) == ([], 24 - due)


def test_of_labels_that_come_before_their_event_the_first_waits_and_none_is_let_go(connection: Connection) -> None:
    with undone(connection):
        walk = Walk(connection, PLAN)
        label = LabelRow(0, LABELS, 0, 0, 9, "ann", 5, "fraud", "unknown-0", 1, 1.0)
        walk.step([label._replace(offset=n, subject=f"unknown-{n % 3}", value=float(n < 4)) for n in range(6)])
        walk.step([label._replace(offset=6)])
        assert list(walk.fates().values()) == ["waiting"] * 3 + [
            "repeated",
            "contradicting",
            "contradicting",
            "repeated",
        ]
        assert sorted(row.subject for row in walk.labels() if row.resolution is None) == sorted(
            event_key(PAYMENT, "ann", f"unknown-{n}") for n in range(3)
        )


def test_a_history_beyond_what_is_remembered_is_read_as_it_was(connection: Connection) -> None:
    """Between subject and label the user paid so often that memory no longer reaches back."""
    with undone(connection):
        first = [Happening(True, "ann", "deli", 0, None, 0, 0.0)] * 6
        told = Happening(True, "ann", "books", 0, 170, 0, 1.0)
        rows = written(connection, [*first, told, *([Happening(True, "ann", "deli", 3, None, 0, 0.0)] * 60)])
        walk = Walk(connection, PLAN)
        for start in range(0, len(rows), 5):
            walk.step(rows[start : start + 5])
        [(key, x, seen, y, _)] = walk.arm_group.matured
        assert (x, seen) == walk.arm_group.asked[key]
        assert (len(seen), y) == (LAST_N, 1.0)


def card_payments(connection: Connection, folder: Path, *, count: int, labels: int) -> list[Row]:
    """Payments of the recording, one in fifty up to an hour late, and labels of some of them, picked at random, from
    six hours before to three days after; as the merge gives them back."""
    rng = np.random.default_rng(11)
    table = pq.read_table(folder / "fdh_payments" / "events.parquet").slice(0, count)
    users, shops = (table[name].to_numpy() for name in ("user_id", "merchant_id"))
    at, amounts = table["ts"].to_numpy() * SECOND, np.round(table["amount"].to_numpy() * 1e6).astype(np.int64)
    record_at = at + np.where(rng.random(count) < 0.02, rng.integers(0, 3600, count), 0) * SECOND
    frauds, told = table["is_fraud"].to_numpy(), set(rng.choice(count, labels, replace=False).tolist())
    rows: dict[Place, list[Given | Told]] = {place: [] for place in PLACES}
    known = list[Told]()
    for n in np.argsort(record_at, kind="stable").tolist():
        place, user = (PAYMENT, int(users[n]) % 2), str(users[n])
        offset = len(rows[place])
        given = Given(offset, int(record_at[n]), int(at[n]), user, "payment", str(shops[n]), amount=int(amounts[n]))
        rows[place].append(given)
        if n in told:
            late = int(record_at[n]) + int(rng.integers(-6 * 3600, 3 * 86_400)) * SECOND
            known.append(Told(0, late, late, user, f"{PAYMENT}-{place[1]}-{offset}", int(at[n]), float(frauds[n])))
    ordered = sorted(known, key=lambda one: one.record_at)
    rows[LABELS, 0] = [one._replace(offset=offset) for offset, one in enumerate(ordered)]
    return merged(connection, rows)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_shuffled_labels_of_card_payments_see_what_was_known_as_of_their_reference_time(
    connection: Connection, shared_data: Path
) -> None:
    with undone(connection):
        rows = card_payments(connection, shared_data, count=40_000, labels=10_000)
        plan = LearnerConfig(learner="risk", seed=0, options={}, resolution_us=SECOND)
        walk, size = Walk(connection, plan), 256
        for start in range(0, len(rows), size):
            walk.step(rows[start : start + size])
        place = {row.event.key: n for n, row in enumerate(rows) if isinstance(row, LogRow)}
        known = {subject_of(row): n for n, row in enumerate(rows) if isinstance(row, LabelRow)}
        learnt = {key: number for number, keys in enumerate(walk.learnt) for key in keys}
        assert len(known) == len(walk.arm_group.matured) == 10_000
        assert learnt == {key: max(n, place[key]) // size for key, n in known.items()}
        own: dict[str, list[tuple[int, SequenceEvent]]] = {}
        for n, row in enumerate(rows):
            if isinstance(row, LogRow):
                own.setdefault(row.user, []).append((n, row.event))
        for key, x, seen, _, _ in walk.arm_group.matured:
            row = rows[place[key]]
            assert isinstance(row, LogRow)
            before = sorted(event for n, event in own[row.user] if n < place[key] and event.at < row.event.at)
            assert seen == [event.key for event in before][-32:]
            assert (x, seen) == walk.arm_group.asked[key], "to the bit"


def means(losses: Mapping[str, Any]) -> dict[str, float]:
    return {name: tally.mean for name, tally in losses.items() if tally.count}


def test_the_headline_is_the_stored_prediction(connection: Connection) -> None:
    with undone(connection):
        rows, walk = written(connection, [Happening(True, "ann", "deli", 0, 3, 0, 1.0)] * 12), Walk(connection, PLAN)
        walk.step(rows[:12])
        connection.execute(text("UPDATE prediction SET risks = '{0.5,0.25}' WHERE closed_step IS NULL"))
        stack = [row for row in rows[12:] if isinstance(row, LabelRow)]
        report = walk.runner.learn(connection, stack, number=0)
        assert report is not None
        assert means(report.losses["learner"])["risk"] == pytest.approx(np.log(2.0))
        assert means(report.losses["reference.risk_rate"])["risk"] == pytest.approx(np.log(4.0))
        assert event_log.time_of(stack[0].known_at) in {row.known_at for row in walk.table()}
