"""Task clocks: what ends a silence, and that they follow from the log and the cursor alone."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection

from contracts.topics import LABELS, PAYMENT, USER
from storage.dictionary import Dictionary
from storage.engine import open_engine
from storage.log import log_retention
from streams.train.merge import Merge
from streams.train.task_clocks import Progress, TaskClocks, lower_median, watermark
from tests.integration.learning import Given, Place, Scribe, Told, streams_of, undone

PLACES: list[Place] = [(PAYMENT, 0), (PAYMENT, 1), (USER, 0), (LABELS, 0)]
TOPIC_OF = {PAYMENT, LABELS}


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    engine = open_engine(database, application_name="test")
    with engine.connect() as made:
        yield made


def test_the_clock_is_the_earlier_of_the_two_in_the_middle() -> None:
    assert [lower_median(times) for times in ([5], [9, 5], [9, 5, 7], [1, 2, 3, 4])] == [5, 5, 7, 2]


def moving(clock: int | None) -> Progress:
    return Progress(clock=clock, drained=False)


def drained(clock: int | None) -> Progress:
    return Progress(clock=clock, drained=True)


@pytest.mark.parametrize(
    ("payments", "labels", "until"),
    [
        ([drained(50), drained(90)], [drained(10)], 90),  # all is read: the farthest counts, quiet labels hold nothing
        ([moving(50), drained(90)], [drained(10)], 50),  # payments on their way may still be of an earlier time
        ([moving(50), drained(40)], [drained(10)], 50),
        ([drained(90)], [moving(30), moving(70)], 30),  # labels on their way speak of what comes after the slowest
        ([drained(90)], [moving(95)], 90),
        ([drained(90)], [drained(None)], 90),  # an empty partition, read to its end, does not count
        ([drained(90)], [moving(None)], None),  # one that never yielded may hold anything
        ([drained(90), moving(None)], [drained(10)], None),
        ([drained(90), drained(None)], [drained(10)], 90),
        ([drained(90)], [], 90),
        ([drained(None)], [drained(10)], None),
        ([], [moving(10)], None),
    ],
)
def test_silence_has_lasted_as_far_as_no_stream_on_its_way_could_break_it(
    payments: list[Progress], labels: list[Progress], until: int | None
) -> None:
    found = watermark(payments, labels).until
    assert (found if found is not None and found > 0 else None) == until


def test_one_far_row_moves_no_clock_and_five_of_nine_do() -> None:
    usual = list(range(100, 109))
    assert lower_median([*usual[1:], 4_000]) == 105
    assert lower_median([*usual[4:], *[4_000] * 4]) == 108
    assert lower_median([*usual[5:], *[4_000] * 5]) == 4_000


def log_of(connection: Connection, seed: int) -> Scribe:
    """Segments of a few rows each, tasks in turn, with offsets that hold no row."""
    dice, scribe = random.Random(seed), Scribe(connection, Dictionary(connection.engine), streams_of(*PLACES))
    for _ in range(12):
        place = dice.choice(PLACES)
        offset, rows = scribe.next[place], list[Given | Told]()
        for _ in range(dice.randrange(1, 5)):
            at = dice.randrange(10**6)
            offset += dice.randrange(2)
            task = dice.choice(["fraud", "fraud", "default"])
            if place[0] == LABELS:
                rows.append(Told(offset, 0, at, dice.choice(["ann", "bob"]), "x", at, task=task))
            else:
                rows.append(Given(offset, 0, at, dice.choice(["ann", "bob"]), "paid", dice.choice(["shop", "cem"])))
            offset += 1
        scribe.write(place, rows, next_offset=offset + dice.randrange(2), known=False)
    return scribe


@pytest.mark.parametrize("seed", range(12))
def test_clocks_kept_row_by_row_are_those_that_the_log_gives_at_each_cursor(connection: Connection, seed: int) -> None:
    with undone(connection):
        scribe, erased = log_of(connection, seed), frozenset({"cem"} if seed % 2 else set())
        merge, kept = Merge({}, labels=True), TaskClocks("fraud")
        merge.exclude_users(erased)
        merge.refresh(connection)
        merge.set_ends(scribe.ends())
        topic_of = [(scribe.stream_id(place), place[0]) for place in PLACES]
        taken = 0
        while merge.refresh(connection) or not merge.at_ends():
            if (row := merge.pop()) is None:
                continue
            taken += 1
            kept.take([row])
            read = TaskClocks("fraud")
            read.rebuild(connection, merge.cursor, topic_of, erased)
            assert [read.of(stream) for stream, _ in topic_of] == [kept.of(stream) for stream, _ in topic_of]
        assert taken > 5
        assert kept.of(scribe.stream_id((USER, 0))) is None


def test_retention_leaves_the_rows_that_a_clock_is_made_of(connection: Connection) -> None:
    with undone(connection):
        scribe = Scribe(connection, Dictionary(connection.engine), streams_of(*PLACES))
        for n in range(40):
            scribe.write((PAYMENT, 0), [Given(n, n, n, "ann", "paid")], known=False)
            scribe.write((LABELS, 0), [Told(n, n, n, "ann", "x", n, task="fraud" if n % 4 == 0 else "default")])
        connection.exec_driver_sql(
            """INSERT INTO learner (name, version, config) VALUES ('risk', '2', '{"options": {}, "label": "fraud"}')"""
        )
        pay, tell = scribe.stream_id((PAYMENT, 0)), scribe.stream_id((LABELS, 0))
        cursor = {pay: 30, tell: 38}
        assert log_retention._clocked(connection, PAYMENT, pay, cursor) == 21
        assert log_retention._clocked(connection, LABELS, tell, cursor) == 4  # 36, 32, .., 4 are the nine of the task
        assert log_retention._clocked(connection, LABELS, tell, {tell: 9}) == 0, "fewer than nine: all there are"
        assert log_retention._clocked(connection, USER, scribe.stream_id((USER, 0)), cursor) == 2**63 - 1
