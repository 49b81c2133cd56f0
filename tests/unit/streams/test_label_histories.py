"""A thousand shuffled histories: every label is learnt once or counted with its reason, and the losses are right.

Seven troubles: none, a user's event of today, a payment of 2100, a label of 2100, labels before all payments, labels
after them, a partition without payments (foreign.md, part 4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sqlalchemy import Connection, text

from contracts.identity import event_key
from contracts.topics import PAYMENT
from learners.tasks.outcome_measures import log_loss
from storage.dictionary import Dictionary
from storage.engine import open_engine
from streams.train.merge import LabelRow, LogRow
from streams.train.step_runner import make_deterministic
from tests.integration.learning import Told, undone
from tests.unit.streams.label_histories import HORIZON, PLAN, TROUBLES, Passage, world_of
from tests.unit.streams.label_oracle import Oracle

HEARD = {"learnt", "after_horizon", "corrected", "confirmed_silence", "repeated", "contradicting"}


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


def check(passage: Passage, trouble: str) -> Counter[str]:
    """One history that came to its end."""
    oracle = Oracle(horizon_us=HORIZON, correction_us=PLAN.correction_us).run(passage.taken)
    fates = passage.fates()
    assert fates == oracle.fates
    labels = [row for taken in passage.taken for row in taken.rows if isinstance(row, LabelRow)]
    sent = [one for some in passage.world.records.values() for one in some if isinstance(one, Told)]
    assert len(fates) == len(labels) == len(sent), "each label ends in exactly one count"
    unheard = Counter(fates.values())
    assert {fate for fate in unheard if fate not in HEARD} <= {"waiting"}
    assert unheard["waiting"] == (trouble == "label of 2100"), "its payment never comes"
    first: dict[int, float] = {}
    for label in labels:
        assert label.subject is not None
        first.setdefault(event_key(PAYMENT, label.user, label.subject), label.value)
    rows = passage.connection.execute(
        text("SELECT subject, risks[1] AS risk, coalesce(corrected_value, value) AS value, closed_step FROM prediction")
    ).all()
    known = {row.subject: row.value for row in rows}
    assert all(known[key] == value for key, value in first.items() if key in known), "the first label counts"
    closed = [row for row in rows if row.closed_step is not None]
    losses = log_loss(np.array([row.risk for row in closed]), np.array([row.value for row in closed]))
    told = passage.losses["risk"].sum + (
        passage.losses["risk_corrected"].sum if "risk_corrected" in passage.losses else 0
    )
    assert told == pytest.approx(float(losses.sum())), "as issued, as if every label had come in time"
    assert passage.losses["risk"].count == len(closed)
    assert passage.losses["risk_mature"].count == len(closed) + unheard["corrected"]
    return unheard


def histories(connection: Connection, count: int) -> dict[str, Counter[str]]:
    """Trouble -> what came of its labels."""
    vocabulary, found = Dictionary(connection.engine), {trouble: Counter[str]() for trouble in TROUBLES}
    for seed in range(count):
        trouble = TROUBLES[seed % len(TROUBLES)]
        with undone(connection):
            passage = Passage(connection, vocabulary, world_of(seed, trouble), seed)
            passage.run()
            found[trouble] += check(passage, trouble)
            found[trouble]["early corrections"] += early_corrections(passage)
            found[trouble]["silences"] += sum(len(taken.ticked) for taken in passage.taken)
    return found


def early_corrections(passage: Passage) -> int:
    """Labels that were known within the horizon of their payment, and came after its silence was learnt."""
    fates, found = passage.fates(), 0
    at = {row.event.key: row.event.at for taken in passage.taken for row in taken.rows if isinstance(row, LogRow)}
    for taken in passage.taken:
        for row in taken.rows:
            if isinstance(row, LabelRow) and fates[row.stream_id, row.offset] in ("corrected", "confirmed_silence"):
                assert row.subject is not None
                found += row.known_at <= at[event_key(PAYMENT, row.user, row.subject)] + HORIZON
    return found


def judge(found: dict[str, Counter[str]], most: float) -> None:
    """Labels that come in the order of their world are hardly ever late; those that cannot be known sooner are
    corrections.

    :param most: share of the labels that may come after a silence though they were known in time.
    """
    of_labels = {*HEARD, "waiting"}
    labels = sum(count for some in found.values() for fate, count in some.items() if fate in of_labels)
    early = sum(some["early corrections"] for trouble, some in found.items() if trouble != "labels late")
    print(f"{labels} labels; corrections of labels known in time: {early}; {found}")
    assert all(some["silences"] for some in found.values())
    assert found["labels late"]["corrected"] > 0
    assert found["labels late"]["confirmed_silence"] > 0
    assert early <= most * labels


def test_a_hundred_histories_each_label_once_or_counted(connection: Connection) -> None:
    found = histories(connection, 98)
    judge(found, 0.02)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousand_histories_each_label_once_or_counted(connection: Connection) -> None:
    found = histories(connection, 1_001)
    judge(found, 0.01)
