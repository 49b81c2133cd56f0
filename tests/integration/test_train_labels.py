"""Late labels through the whole of `train`: backfilled ones, far records, an `ingest` that lags; and their audit."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from contracts import topics
from contracts.codec import encode
from contracts.records import Label
from driftline.audit.label_check import audit_learners
from driftline.cli import run
from runtime import kafka
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit, Stop
from storage.dictionary import Dictionary
from storage.learning import predictions
from storage.log import event_log
from storage.privacy import erasure
from streams.train.process import Train
from tests.integration.feeding import eventually
from tests.integration.learning import Given, Place, School, Scribe, Told, schools

HOUR = 3_600_000_000
DAY = 24 * HOUR
JUNE = 1_780_272_000_000_000
TODAY = JUNE + 180 * DAY
FAR = 4_102_444_800_000_000
"""The year 2100."""
HORIZON = {"fraud": 10.0}
PAID: Place = (topics.PAYMENT, 0)
KNOWN: Place = (topics.LABELS, 0)
VISITS: Place = (topics.USER, 0)


@pytest.fixture
def school(
    database: str, tansu_topics: KafkaConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[School]:
    """One that verbs find too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", database)
    monkeypatch.setenv("DRIFTLINE_KAFKA_BOOTSTRAP", tansu_topics.bootstrap)
    monkeypatch.setenv("DRIFTLINE_TOPIC_PREFIX", tansu_topics.prefix)
    with schools(database, tansu_topics, tmp_path, labels=True) as made:
        yield made


def write(school: School, rows: dict[Place, list[Given | Told]]) -> None:
    """More rows of the log, numbered on."""
    with school.engine.begin() as connection:
        scribe = Scribe(connection, Dictionary(school.engine), school.streams)
        for place, some in rows.items():
            first = scribe.next[place]
            if some:
                scribe.write(place, [row._replace(offset=first + n) for n, row in enumerate(some)])


def payments(count: int, *, sent: int | None = None) -> list[Given | Told]:
    """Half a day apart; with the record time `sent`, or their own."""
    times = [JUNE + n * 12 * HOUR for n in range(count)]
    return [Given(0, sent or at, at, f"user {n % 7}", "paid", "shop", amount=10**7) for n, at in enumerate(times)]


def told(
    numbers: list[int], *, sent: int | None = None, value: float = 1.0, after: int = 5 * DAY
) -> list[Given | Told]:
    """Labels of these payments, known five days later; with the record time `sent`, or that."""
    found: list[Given | Told] = []
    for n in numbers:
        at = JUNE + n * 12 * HOUR
        known = at + after
        found.append(Told(0, sent or known, known, f"user {n % 7}", f"{PAID[0]}-{PAID[1]}-{n}", at, value))
    return found


def ends(school: School) -> Counter[str]:
    """What came of the labels, as the audit of it says too."""
    found = school.query("SELECT coalesce(resolution, 'waiting') AS resolution FROM label_resolution")
    [report] = audit_learners(school.database)
    counts = Counter(row.resolution for row in found)
    assert (report.details, report.labels) == ([], sum(counts.values()))
    assert Counter({name: count for name, count in report.counts.items() if count}) == counts
    return counts


@pytest.mark.parametrize("far", ["nothing", "visit", "payment", "label", "both"])
@pytest.mark.parametrize("backfilled", [False, True])
def test_chargebacks_of_june_to_august_are_all_learnt_whatever_else_comes(
    school: School, far: str, backfilled: bool
) -> None:
    """165 of them, none of which was learnt beside one event of today."""
    visits: list[Given | Told] = [Given(0, TODAY, TODAY, "anna")] if far == "visit" else []
    paid, labels = payments(180), told(list(range(15, 180)), sent=TODAY if backfilled else None)
    if far in ("payment", "both"):
        paid.append(Given(0, FAR, FAR, "mallory", "paid", "shop", amount=1))
    if far in ("label", "both"):
        labels.append(Told(0, FAR, FAR, "mallory", f"{PAID[0]}-{PAID[1]}-180", FAR, 1.0))
    write(school, {VISITS: visits, PAID: paid, KNOWN: labels})
    totals = school.train(learner="risk", horizon_days=HORIZON)
    heard = 165 + (far == "both")
    assert (totals.labels, totals.corrections) == (heard, 0)
    assert totals.ticks == 15
    assert ends(school) == Counter(learnt=heard) + Counter(waiting=int(far == "label"))


def test_labels_that_come_when_all_their_payments_are_silent_are_learnt_as_corrections(school: School) -> None:
    write(school, {PAID: payments(100), KNOWN: told([99])})
    totals = school.train(learner="risk", horizon_days=HORIZON)
    assert (totals.labels, totals.ticks) == (1, 100 - 4 - 20)
    write(school, {KNOWN: [*told([1, 2, 3], sent=TODAY), *told([4, 5], sent=TODAY, value=0.0), *told([1], value=0.0),
                           *told([2]), *told([90], sent=TODAY)]})  # fmt: skip
    totals = school.train(learner="risk", horizon_days=HORIZON)
    assert (totals.labels, totals.corrections) == (1, 3)
    assert ends(school) == Counter(learnt=2, corrected=3, confirmed_silence=2, contradicting=1, repeated=1)
    corrected = school.query("SELECT * FROM prediction WHERE corrected_step IS NOT NULL ORDER BY position")
    assert [(row.value, row.silent, row.corrected_value) for row in corrected] == [
        *[(0.0, True, 1.0)] * 3, *[(0.0, True, 0.0)] * 2,
    ]  # fmt: skip
    records = school.progress(at_least=2)
    assert (
        sum(one.losses["learner"]["risk_corrected"].sum for one in records if "risk_corrected" in one.losses["learner"])
        > 0
    )
    assert {name for one in records for name in one.idle} >= {"labels[0]", "events.payment[0]"}


def test_what_a_correction_needs_stays_in_the_log_for_so_many_days_of_the_task_clock(school: School) -> None:
    write(school, {PAID: payments(100), KNOWN: told([99])})
    school.train(learner="risk", horizon_days=HORIZON, correction_days=20.0)
    clock = JUNE + 95 * 12 * HOUR
    [(needed,)] = school.query("SELECT task_clock FROM journal ORDER BY step DESC LIMIT 1")
    assert needed == event_log.time_of(clock)
    school.query("UPDATE prediction SET closed_step = 0, silent = true")  # nothing is open, nothing repeated
    school.query("UPDATE snapshot SET irreproducible = true")
    school.query("UPDATE journal SET task_clock = NULL WHERE step = (SELECT max(step) FROM journal)")
    with school.engine.begin() as connection:
        assert predictions.needed_from(connection) == event_log.time_of(clock - 20 * DAY)


def test_an_erased_user_s_labels_are_counted_no_more(school: School) -> None:
    write(school, {PAID: payments(60), KNOWN: told(list(range(0, 60, 2)))})
    school.train(learner="risk", horizon_days=HORIZON)
    before = ends(school)
    erasure.erase(school.engine, ["user 3"])
    after = ends(school)
    assert 0 < after.total() < before.total()
    write(school, {KNOWN: told([1])})
    school.train(learner="risk", horizon_days=HORIZON)
    assert ends(school).total() == after.total() + 1


def test_the_audit_finds_what_is_wrong_with_the_counts(school: School) -> None:
    write(school, {PAID: payments(60), KNOWN: told(list(range(10, 40)))})
    school.train(learner="risk", horizon_days=HORIZON)
    assert ends(school) == Counter(learnt=30)
    for spoil, detail in (
        ("DELETE FROM label_resolution WHERE position = 3", "ended in no count"),
        ("UPDATE label_resolution SET position = 1000 WHERE position = 4", "no label stands there"),
        ("UPDATE label_resolution SET resolution = 'repeated' WHERE position = 5", "not what its labels told"),
        ("UPDATE label_resolution SET subject = 1 WHERE position = 6", "another subject"),
        ("UPDATE prediction SET value = 0 WHERE position = 20", "not what its labels told"),
    ):
        kept = {name: f"kept_{name}" for name in ("label_resolution", "prediction")}
        for name, copy in kept.items():
            school.query(f"CREATE TABLE {copy} AS SELECT * FROM {name}")
        school.query(spoil)
        [report] = audit_learners(school.database)
        assert any(detail in one for one in report.details), (spoil, report.details)
        for name, copy in kept.items():
            school.query(f"DELETE FROM {name}")
            school.query(f"INSERT INTO {name} SELECT * FROM {copy}")
            school.query(f"DROP TABLE {copy}")
    assert ends(school) == Counter(learnt=30)


def test_the_verbs_say_what_came_of_labels_and_let_silence_count(
    school: School, capfd: pytest.CaptureFixture[str]
) -> None:
    write(school, {PAID: payments(60)})
    assert school.train(learner="risk", horizon_days=HORIZON).held == 60
    assert run(["labels", "status"]) == Exit.DONE
    said = capfd.readouterr()
    assert "risk (task fraud): 0 labels, 60 payments wait" in said.out
    sentence = "task fraud: 60 payments wait, no label was ever read; if there are none to come: driftline labels "
    assert sentence + "assume-complete fraud" in said.err
    assert run(["labels", "assume-complete", "fraud"]) == Exit.DONE
    assert run(["labels", "assume-complete", "fraud"]) == Exit.DONE
    assert "(as before)" in capfd.readouterr().out
    assert school.train(learner="risk", horizon_days=HORIZON).ticks == 60 - 4 - 20
    assert run(["status"]) == Exit.DONE
    said = capfd.readouterr()
    assert (
        "labels of fraud to risk: none; 24 payments wait; idle when silences ended last: events.payment[0]" in said.out
    )
    assert sentence not in said.err
    assert run(["labels", "assume-complete", "fraud", "--undo"]) == Exit.DONE
    assert run(["labels", "status", "--json"]) == Exit.DONE
    [one] = json.loads(capfd.readouterr().out.split("train` knows within a second\n")[-1])
    assert (one["learner"], one["open"], one["unlabelled"]) == ("risk", 24, True)
    assert run(["labels", "assume-complete", " "]) == Exit.USAGE


def test_a_running_train_lets_silence_count_soon_after_a_person_said_so_though_no_row_comes(school: School) -> None:
    write(school, {PAID: payments(80)})
    with running(school) as process:
        eventually(lambda: school.query("SELECT count(*) FROM prediction")[0][0] == 80)
        threading.Event().wait(1.5)
        assert school.query("SELECT count(*) FROM prediction WHERE silent")[0][0] == 0
        assert run(["labels", "assume-complete", "fraud"]) == Exit.DONE
        eventually(lambda: school.query("SELECT count(*) FROM prediction WHERE silent")[0][0] == 80 - 4 - 20)
    assert process.totals.ticks == 56


@contextmanager
def running(school: School) -> Iterator[Train]:
    """A `train` beside the block."""
    stop = Stop()
    process = school.process(
        learner="risk", stop=stop, horizon_days=HORIZON, merge_wait_s=0.0, step_linger_s=0.0, snapshot_every_s=1
    )
    thread = threading.Thread(target=process.run)
    thread.start()
    try:
        yield process
    finally:
        stop.set()
        thread.join(20)


@pytest.mark.kafka
def test_a_live_train_hears_labels_that_ingest_has_not_taken_in_yet(
    database: str, kafka_topics: KafkaConfig, tmp_path: Path
) -> None:
    """They are at the broker: no silence ends beyond the newest label that was read, however long it takes."""
    with schools(database, kafka_topics, tmp_path, labels=True) as school:
        labels = told(list(range(40)))
        write(school, {PAID: payments(80), KNOWN: labels[:1]})
        send(kafka_topics, [one for one in labels if isinstance(one, Told)])
        with running(school) as process:
            eventually(lambda: school.query("SELECT count(*) FROM prediction")[0][0] == 80)
            threading.Event().wait(3.0)
            assert school.query("SELECT count(*) FROM prediction WHERE silent")[0][0] == 0
            write(school, {KNOWN: labels[1:]})  # `ingest` goes on
            eventually(lambda: school.query("SELECT count(*) FROM prediction WHERE silent")[0][0] == 80 - 40 - 24)
        assert process.totals.labels == 40
        assert process.totals.corrections == 0


def send(config: KafkaConfig, labels: list[Told]) -> None:
    producer = kafka.producer(config)
    for n, one in enumerate(labels):
        record = Label(
            event_id=f"l-{n}", user_id=one.user, task=one.task, subject_event_id=one.subject, source="bank",
            ref_time=event_log.time_of(one.ref_time), known_at=event_log.time_of(one.known_at), value=one.value,
        )  # fmt: skip
        producer.produce(config.physical(topics.LABELS), key=one.user, value=encode(record), partition=KNOWN[1])
    assert producer.flush(20) == 0
