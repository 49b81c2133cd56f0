"""`train` with a learner of outcomes: late labels and silence, whoever is killed wherever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts import topics
from learners.contract.made_up.payments import payments
from learners.tasks.outcome_measures import area_under_roc, log_loss
from runtime.kafka import KafkaConfig
from storage.dictionary import Dictionary
from storage.learning import label_resolutions
from storage.privacy import erasure
from streams.train.journal_replay import replay_journal
from tests.integration.feeding import REPOSITORY
from tests.integration.learning import Given, Place, School, Scribe, Told, schools

MINUTE_US = 60_000_000
DAY_US = 1_440 * MINUTE_US
STEPS = ("closed_step", "corrected_step")
PAID: Place = (topics.PAYMENT, 0)
KNOWN: Place = (topics.LABELS, 0)


@pytest.fixture
def school(database: str, tansu_topics: KafkaConfig, tmp_path: Path) -> Iterator[School]:
    with schools(database, tansu_topics, tmp_path, labels=True) as made:
        yield made


def pay(
    school: School, count: int, *, told: int | None = None, delay_us: int = 5 * 60 * MINUTE_US, halves: bool = False
) -> None:
    """Payments ten minutes apart, and labels of the first `told` of them, `delay_us` after each.

    :param halves: labels are sent after all payments, those of the second half first: the others come after a silence.
    """
    made = payments(3, count)
    labels = [
        Told(n, one.at + delay_us, one.at + delay_us, one.user, f"{PAID[0]}-{PAID[1]}-{n}", one.at, one.y)
        for n, one in enumerate(made[: count if told is None else told])
    ]
    if halves:
        half = len(labels) // 2
        sent = [*labels[half:], *labels[:half]]
        labels = [one._replace(offset=n, record_at=made[-1].at + n) for n, one in enumerate(sent)]
    with school.engine.begin() as connection:
        scribe = Scribe(connection, Dictionary(school.engine), school.streams)
        given = [
            Given(n, one.at, one.at, one.user, "buy", one.merchant, amount=one.amount) for n, one in enumerate(made)
        ]
        scribe.write(PAID, given)
        if labels:
            scribe.write(KNOWN, labels)


def learn(school: School, **given: Any) -> str:
    sha256 = school.train(learner="risk", **given).sha256
    assert sha256 is not None
    return sha256


def table(school: School) -> list[Any]:
    """Predictions, without what numbers of users there are: those are the database's own."""
    return school.query("SELECT p.* FROM prediction p ORDER BY stream_id, position")


def resolutions(school: School) -> list[Any]:
    """What came of each label."""
    return school.query("SELECT r.* FROM label_resolution r ORDER BY stream_id, position")


def assume_complete(school: School) -> None:
    """A person says that there may be no labels."""
    with school.engine.begin() as connection:
        label_resolutions.assume_complete(connection, "fraud")


def killed(school: School, failpoint: str, **given: Any) -> None:
    """A `train` of its own that is killed at a place, as kill -9 would."""
    settings = {"LEARNER": "risk", "STEP_ROWS": "8", "SNAPSHOT_EVERY_S": "3600", "PORT": "none", **given}
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "DRIFTLINE_POSTGRES_URL": school.database,
        "DRIFTLINE_KAFKA_BOOTSTRAP": school.config.bootstrap,
        "DRIFTLINE_TOPIC_PREFIX": school.config.prefix,
        "DRIFTLINE_DATA_DIR": str(school.folder.parent),
        "DRIFTLINE_FAILPOINT": failpoint,
        **{f"DRIFTLINE_TRAIN__{name}": value for name, value in settings.items()},
    }
    command = [sys.executable, "-m", "driftline", "train", "--once"]
    ended = subprocess.run(command, env=environment, cwd=school.folder.parent, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


def test_every_label_is_learnt_once_and_progress_tells_the_headline_beside_maturity(school: School) -> None:
    pay(school, 400)
    totals = school.train(learner="risk")
    assert (totals.rows, totals.labels, totals.ticks) == (800, 400, 0)
    rows = table(school)
    assert len(rows) == 400
    assert all(row.closed_step > row.step and row.silent is False for row in rows)
    told = school.progress(at_least=totals.steps - 1)
    for arm in ("learner", "reference.risk_rate"):
        for loss in ("risk", "risk_mature"):
            assert sum(record.losses[arm][loss].rows for record in told if loss in record.losses[arm]) == 400
    risks, y = np.asarray([row.risks for row in rows]), np.asarray([row.value for row in rows])
    total = sum(record.losses["learner"]["risk"].sum for record in told if "risk" in record.losses["learner"])
    assert total == pytest.approx(float(log_loss(risks[:, 0], y).sum()))
    assert area_under_roc(risks[200:, 0], y[200:] > 0.5) > area_under_roc(risks[200:, 1], y[200:] > 0.5)


@pytest.mark.parametrize(
    "failpoint", ["train.after_journal:9", "train.after_step:14", "train.after_step:19", "train.before_live"]
)
def test_killed_anywhere_and_started_again_it_ends_with_the_same_bytes_and_rows(school: School, failpoint: str) -> None:
    pay(school, 96, halves=True)
    horizon: dict[str, Any] = {"horizon_days": {"fraud": 0.17}}
    school.forget()
    expected, rows = learn(school, **horizon), table(school)
    assert {row.silent for row in rows} == {True, False}
    assert {row.corrected_value for row in rows} == {None, 0.0, 1.0}
    settled = resolutions(school)
    silent, corrected = (
        {getattr(row, name) for row in rows if row.silent and getattr(row, name) is not None} for name in STEPS
    )
    assert min(silent) < 18 < max(corrected), "the third is killed between a silence and its correction"
    school.forget()
    killed(school, failpoint, HORIZON_DAYS='{"fraud": 0.17}')
    again = school.train(learner="risk", **horizon)
    assert again.repeated_steps > 0
    assert again.sha256 == expected
    assert table(school) == rows
    assert resolutions(school) == settled


def test_a_snapshot_is_rebuilt_from_its_parent_byte_for_byte_and_changes_no_row(school: School) -> None:
    pay(school, 160, told=120, halves=True)
    school.train(learner="risk", snapshot_every_s=0, horizon_days={"fraud": 0.2})
    before = table(school)
    assert {row.silent for row in before} == {True, False, None}
    assert {row.corrected_value for row in before} == {None, 0.0, 1.0}
    last = school.live()[-1]
    with school.engine.connect() as connection:
        for snapshot in (school.live()[0], *school.live()[9::4], last):
            found = replay_journal(connection, snapshot, school.folder, threads=1)
            assert found.equal, snapshot
    assert table(school) == before


def test_labels_wait_for_their_subject_over_a_snapshot(school: School) -> None:
    pay(school, 40, delay_us=-60 * MINUTE_US)  # each an hour before its payment
    school.query("UPDATE stream_offset SET next_offset = 20 WHERE topic = 'events.payment' AND partition = 0")
    totals = school.train(learner="risk")
    assert (totals.labels, totals.snapshots) == (20, 1)
    school.query("UPDATE stream_offset SET next_offset = 40 WHERE topic = 'events.payment' AND partition = 0")
    totals = school.train(learner="risk")
    assert (totals.rows, totals.labels) == (20, 20)
    assert all(row.closed_step == row.step for row in table(school))
    school.forget()
    assert school.train(learner="risk").labels == 40


def test_silences_left_when_the_topics_end_are_learnt_before_a_bounded_run_stops(school: School) -> None:
    pay(school, 600, told=0)
    assume_complete(school)
    totals = school.train(learner="risk", step_rows=512, horizon_days={"fraud": 1.0})
    due = 600 - 4 - 144  # ten minutes apart, a day is 144 payments; the clock is the 5th newest of 9
    assert (totals.labels, totals.ticks) == (0, due)
    assert [len(row.ticks) for row in school.query("SELECT ticks FROM journal ORDER BY step") if row.ticks] == [
        256,
        due - 256,
    ]
    assert sum(row.silent or False for row in table(school)) == due


def test_where_no_label_was_ever_read_no_silence_counts_and_the_run_says_so(school: School) -> None:
    pay(school, 300, told=0)
    totals = school.train(learner="risk", horizon_days={"fraud": 1.0})
    assert (totals.labels, totals.ticks, totals.held) == (0, 0, 300)
    assume_complete(school)
    totals = school.train(learner="risk", horizon_days={"fraud": 1.0})
    assert (totals.ticks, totals.held) == (300 - 4 - 144, 0)


def test_an_erased_user_is_gone_from_what_was_predicted_and_training_goes_on(school: School) -> None:
    pay(school, 200, told=150)
    school.query("UPDATE stream_offset SET next_offset = 60 WHERE topic = 'labels' AND partition = 0")
    school.train(learner="risk")
    erasure.erase(school.engine, ["user 3", "merchant 2"])
    left = table(school)
    school.query("UPDATE stream_offset SET next_offset = 150 WHERE topic = 'labels' AND partition = 0")
    totals = school.train(learner="risk")
    assert totals.forgotten > 0
    assert 0 < totals.labels < 90
    assert len(table(school)) == len(left) < 200
    state = school.file(school.live()[-1]).read_bytes()
    assert b"user 4" in state
    assert b'"user 3"' not in state
    assert b'"merchant 2"' not in state


def test_learners_of_events_alone_pass_labels_by(school: School) -> None:
    pay(school, 40)
    totals = school.train(learner="markov")
    assert (totals.rows, totals.labels) == (40, 0)
    assert table(school) == []
    assert school.query("SELECT DISTINCT cursor, ticks FROM journal") == [(None, [])]
