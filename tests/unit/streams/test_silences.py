"""When silences end: by the streams that could still break them, read to the end that the broker has."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from sqlalchemy import Connection

from contracts.topics import LABELS, PAYMENT, USER
from storage.dictionary import Dictionary
from storage.engine import open_engine
from storage.learning import label_resolutions
from storage.privacy import suppression
from streams.train.step_runner import make_deterministic
from tests.integration.learning import Given, Told, undone
from tests.unit.streams.label_histories import DAY, FAR, HOUR, JUNE, TODAY, Passage, World


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


def paid(n: int, *, at: int | None = None) -> Given:
    """The n-th payment of partition 0, half a day after the one before."""
    at = JUNE + n * 12 * HOUR if at is None else at
    return Given(n, at, at, f"user {n % 5}", "paid", "shop", amount=10**7)


def told(n: int, number: int, *, known_at: int | None = None, value: float = 1.0) -> Told:
    """A label of the n-th payment, as the record of that number."""
    at = JUNE + n * 12 * HOUR
    known = at + 5 * DAY if known_at is None else known_at
    return Told(number, TODAY, known, f"user {n % 5}", f"{PAYMENT}-0-{n}", at, value)


def passage_of(
    connection: Connection, payments: list[Given], told_: list[Told], visits: list[Given] | None = None
) -> Passage:
    """All of it at the broker and in the log, and learnt as far as rows go; no silence was looked for."""
    world = World()
    world.records[PAYMENT, 0], world.records[LABELS, 0] = list(payments), list(told_)
    world.records[USER, 0] = list(visits or [])
    passage = Passage(connection, Dictionary(connection.engine), world, seed=0)
    passage.broker |= {place: len(records) for place, records in world.records.items()}
    passage._dice.random = lambda: 0.5  # type: ignore[method-assign]  # the broker always answers
    passage.ingest(all_of_it=True)
    return passage


def silent(passage: Passage) -> int:
    """Payments that count as good by silence once everything is learnt."""
    idle = 0
    while idle < 3:
        idle = 0 if passage.step() else idle + 1
        passage.clock.now += 2.0
    return sum(len(taken.ticked) for taken in passage.taken)


def test_a_user_event_of_today_ends_no_silence(connection: Connection) -> None:
    with undone(connection):
        visits = [Given(0, TODAY, TODAY, "anna")]
        passage = passage_of(connection, [paid(n) for n in range(15)], [told(0, 0)], visits)
        assert silent(passage) == 0, "the payments have come no farther than a week"
        assert list(passage.fates().values()) == ["learnt"]


@pytest.mark.parametrize("where", ["payments", "labels", "both"])
def test_a_record_of_2100_ends_no_silence(connection: Connection, where: str) -> None:
    with undone(connection):
        payments, labels_ = [paid(n) for n in range(15)], [told(0, 0)]
        if where in ("payments", "both"):
            payments.append(paid(15, at=FAR))
        if where in ("labels", "both"):
            labels_.append(told(99, 1, known_at=FAR))
        assert silent(passage_of(connection, payments, labels_)) == 0


def test_an_ingest_that_lags_on_labels_is_not_silence(connection: Connection) -> None:
    with undone(connection):
        many = [told(n, n) for n in range(40)]
        passage = passage_of(connection, [paid(n) for n in range(80)], many[:1])
        passage.world.records[LABELS, 0] = list(many)
        passage.broker[LABELS, 0] = len(many)  # they are at the broker; the log ends behind the first
        assert silent(passage) == 0
        passage.ingest(all_of_it=True)
        due = silent(passage)
        assert set(passage.fates().values()) == {"learnt"}
        assert due == 80 - 40 - 4 - 20, "not told, and ten days before the clock"


def test_a_broker_that_does_not_answer_ends_no_silence_and_its_answer_is_kept_for_a_second(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with undone(connection):
        passage = passage_of(connection, [paid(n) for n in range(80)], [told(0, 0)])
        answers, asked = [None, passage.ends()], list[float]()

        def ask() -> object:
            asked.append(passage.clock.now)
            return answers[0]

        passage.watch._asked = ask  # type: ignore[misc, assignment]
        monkeypatch.setattr(passage._dice, "choice", lambda options: 0.3)
        for _ in range(20):
            passage.step()
        assert not any(taken.ticked for taken in passage.taken)
        answers.pop(0)
        for _ in range(8):
            passage.step()
        assert sum(len(taken.ticked) for taken in passage.taken) == 80 - 4 - 20 - 1
        assert all(later - earlier >= 1.0 for earlier, later in pairwise(asked))


def test_a_partition_of_labels_that_nobody_has_read_holds_silences_back(connection: Connection) -> None:
    with undone(connection):
        passage = passage_of(connection, [paid(n) for n in range(80)], [told(0, 0)])
        ends = passage.ends()
        assert ends is not None
        passage.watch._asked = lambda: {**ends, ("id-labels", LABELS, 7): 1}  # type: ignore[misc]
        assert silent(passage) == 0
        passage.watch._asked = lambda: {**ends, ("id-labels", LABELS, 7): 0}  # type: ignore[misc]
        assert silent(passage) > 0, "an empty one holds nothing"


def test_without_a_label_ever_no_payment_counts_as_good_until_a_person_says_so(connection: Connection) -> None:
    with undone(connection):
        other = told(0, 0)._replace(task="default")
        passage = passage_of(connection, [paid(n) for n in range(80)], [other])
        assert silent(passage) == 0
        assert passage.watch.live(connection, 10_000).held
        label_resolutions.assume_complete(connection, "fraud")
        assert silent(passage) == 80 - 4 - 20
        label_resolutions.assume_no_more(connection, "fraud")


def test_a_label_after_the_correction_window_is_too_late(connection: Connection) -> None:
    with undone(connection):
        passage = passage_of(connection, [paid(n) for n in range(80)], [told(79, 0)])
        silent(passage)
        assert passage.runner.outcomes is not None
        passage.runner.outcomes._correction_us = 30 * DAY  # type: ignore[misc]
        late = [told(n, n) for n in range(1, 50)]
        passage.world.records[LABELS, 0] += late
        passage.broker[LABELS, 0] += len(late)
        passage.ingest(all_of_it=True)
        silent(passage)
        clock = JUNE + 75 * 12 * HOUR
        expected = {n: "corrected" if JUNE + n * 12 * HOUR + 30 * DAY >= clock else "too_late" for n in range(1, 50)}
        stream = passage.scribe.stream_id((LABELS, 0))
        assert {n: passage.fates()[stream, n] for n in range(1, 50)} == expected
        assert set(expected.values()) == {"corrected", "too_late"}


def test_a_correction_whose_context_is_gone_teaches_nothing_and_is_counted(connection: Connection) -> None:
    with undone(connection):
        passage = passage_of(connection, [paid(n) for n in range(80)], [told(79, 0)])
        silent(passage)
        connection.exec_driver_sql("DELETE FROM user_segment")
        passage.runner._histories.forget()
        passage.world.records[LABELS, 0].append(told(1, 1))
        passage.broker[LABELS, 0] += 1
        passage.ingest(all_of_it=True)
        silent(passage)
        assert passage.fates()[passage.scribe.stream_id((LABELS, 0)), 1] == "context_gone"
        [row] = connection.exec_driver_sql("SELECT silent, corrected_step FROM prediction WHERE position = 1").all()
        assert tuple(row) == (True, None), "the silence stays written"


def test_a_label_whose_user_was_erased_while_its_step_was_in_hand_is_written_nowhere(connection: Connection) -> None:
    with undone(connection):
        passage = passage_of(connection, [paid(n) for n in range(10)], [told(n, n) for n in range(10)])
        suppression.suppress(connection, ["user 3"])
        silent(passage)
        assert sorted(position for _, position in passage.fates()) == [0, 1, 2, 4, 5, 6, 7, 9]


def test_labels_that_wait_are_counted_by_how_long_ago_they_became_known(connection: Connection) -> None:
    with undone(connection):
        early = [told(500 + n, 1 + n, known_at=JUNE + 40 * DAY - n * 3 * DAY) for n in range(12)]
        passage = passage_of(connection, [paid(n) for n in range(80)], [told(0, 0), *early])
        silent(passage)
        assert passage.runner.outcomes is not None
        clock = JUNE + 40 * DAY
        bounds = [clock - 30 * DAY, clock - 7 * DAY, clock - DAY]
        assert passage.runner.outcomes.waiting_by_age(connection, bounds) == [1, 8, 2, 1]
