"""Predictions as issued: written once however often a step runs, seen as of a step, gone with whom they speak of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine

from contracts import topics
from contracts.identity import event_key
from storage.learning import journal, predictions, snapshot_registry
from storage.learning.journal import WriterLease
from storage.learning.predictions import Closed, StoredPrediction
from storage.log import log_retention
from storage.privacy import erasure
from tests.integration.feeding import engine_of, payment, query
from tests.integration.owning import MakeOwner

AT = datetime(2018, 4, 1, tzinfo=UTC)
THIRD = 1 / 3


@pytest.fixture
def engine(database: str, owner: MakeOwner) -> Engine:
    """With four payments in the log, of ann and bob in turn, to `shop`."""
    owner((topics.PAYMENT, 0)).write_events(
        *(payment(f"p{n}", "bob" if n % 2 else "ann", n) for n in range(4)), topic=topics.PAYMENT
    )
    made: Engine = engine_of(database)
    return made


def seated(engine: Engine) -> WriterLease:
    with engine.begin() as connection:
        return journal.acquire_lease(connection, learner="risk", version="1", config={})[0]


def key_of(n: int) -> int:
    return event_key(topics.PAYMENT, "bob" if n % 2 else "ann", f"p{n}")


def issued(*numbers: int) -> list[StoredPrediction]:
    """Of payments p0, p1, ..., a day apart."""
    return [
        StoredPrediction(
            user="bob" if n % 2 else "ann",
            subject=key_of(n),
            stream_id=1,
            position=n,
            at=AT + timedelta(days=n),
            features=[THIRD, float(n)],
            risks=[THIRD / 10, 0.01],
        )
        for n in numbers
    ]


def put(engine: Engine, step: int, *numbers: int) -> WriterLease:
    lease = seated(engine)
    with engine.begin() as connection:
        predictions.put(connection, lease, step, "fraud", issued(*numbers))
    return lease


def close(engine: Engine, lease: WriterLease, step: int, n: int, value: float = 1.0) -> None:
    found = open_at(engine, step, n)[0]
    with engine.begin() as connection:
        closed = Closed(user_id=found.user_id, subject=key_of(n), value=value, known_at=AT, silent=False)
        predictions.close(connection, lease, step, [closed])


def open_at(engine: Engine, step: int, *numbers: int) -> dict[int, predictions.OpenPrediction]:
    asks = [("bob" if n % 2 else "ann", key_of(n)) for n in numbers]
    with engine.begin() as connection:
        return predictions.of_users(connection, "risk", 1, step, asks)


def test_a_prediction_comes_back_to_the_last_bit_and_a_repeated_step_doubles_nothing(
    engine: Engine, database: str
) -> None:
    for _ in range(2):
        put(engine, 3, 0, 1)
    assert query(database, "SELECT count(*) FROM prediction") == [(2,)]
    found = open_at(engine, 3, 1, 0, 2)
    assert (found[0].user, found[1].user, set(found)) == ("bob", "ann", {0, 1})
    assert (found[0].features, found[0].risks) == ((THIRD, 1.0), (THIRD / 10, 0.01))
    assert (found[0].step, found[0].stream_id, found[0].position, found[0].at) == (3, 1, 1, AT + timedelta(days=1))


def test_what_a_later_step_did_is_not_there_yet_for_an_earlier_one(engine: Engine) -> None:
    lease = put(engine, 3, 0)
    close(engine, lease, 5, 0)
    assert open_at(engine, 2, 0) == {}
    assert [open_at(engine, step, 0)[0].closed for step in range(3, 8)] == [False, False, False, True, True]
    close(engine, lease, 5, 0)  # repeated
    with engine.begin() as connection:
        [row] = predictions.closed(connection, "risk", 1)
        assert (row.risks, row.value, row.silent) == ([THIRD / 10, 0.01], 1.0, False)
        assert predictions.count_open(connection, "risk", 1) == 0


def test_the_oldest_open_subjects_come_first(engine: Engine) -> None:
    lease = put(engine, 3, 2, 0, 1)
    close(engine, lease, 4, 0)
    with engine.begin() as connection:
        found = predictions.oldest(connection, "risk", 1, limit=1)
        assert [(subject, at) for _, subject, at in found] == [(key_of(1), AT + timedelta(days=1))]
        again = predictions.of_numbers(connection, "risk", 1, 4, [(user_id, subject) for user_id, subject, _ in found])
        assert again[0].user == "bob"
    assert open_at(engine, 4, 1) == again


@pytest.mark.parametrize(("erased", "left"), [("ann", 2), ("shop", 0)])
def test_an_erasure_takes_predictions_of_the_user_and_of_events_that_name_them(
    engine: Engine, database: str, erased: str, left: int
) -> None:
    put(engine, 3, 0, 1, 2, 3)
    erasure.erase(engine, [erased])
    assert query(database, "SELECT count(*) FROM prediction") == [(left,)]


def test_a_step_that_an_erasure_overtook_keeps_nothing_of_the_user(engine: Engine, database: str) -> None:
    erasure.erase(engine, ["ann"])
    put(engine, 3, 0, 1)
    assert query(database, "SELECT position FROM prediction") == [(1,)]


def test_the_log_is_needed_from_the_oldest_subject_that_is_open_or_may_be_learnt_again(engine: Engine) -> None:
    lease = put(engine, 3, 0, 1, 2)
    needed = []
    for n, step in ((0, 4), (1, 6)):
        close(engine, lease, step, n)
    for parent, step in ((None, 5), ("s5", 7), ("s7", 9)):
        with engine.begin() as connection:
            new = snapshot_registry.NewSnapshot(
                id=f"s{step}", learner="risk", branch=1, step=step, parent=parent, cursor={1: 4}, front=None
            )
            snapshot_registry.begin(connection, lease, new)
            connection.exec_driver_sql("UPDATE snapshot SET irreproducible = parent IS NULL")
            needed.append(predictions.needed_from(connection))
    # Nobody starts before s5, which is learnt from no more; s7 is rebuilt from it, and p1 was closed in between.
    assert needed == [AT + timedelta(days=1)] * 3
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE snapshot SET status = 'deleting' WHERE id IN ('s5', 's7')")
        assert predictions.needed_from(connection) == AT + timedelta(days=2)
        assert log_retention.open_from(connection, {}) == AT + timedelta(days=2)
