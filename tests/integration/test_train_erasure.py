"""An erasure reaches the learners: a journalled action that is repeated like any step."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts import topics
from driftline.cli import run
from runtime.admin_app import Health
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit, OperatorActionRequired, Stop
from runtime.settings import MaintainSettings
from storage.dictionary import Dictionary
from storage.privacy import erasure
from streams.maintain.process import Maintain
from streams.train.journal_replay import replay_journal
from tests.integration.feeding import eventually
from tests.integration.learning import Given, School, Scribe, schools

GONE = "user-3"
HOUR = 3_600_000_000


@pytest.fixture
def school(database: str, tansu_topics: KafkaConfig, tmp_path: Path) -> Iterator[School]:
    with schools(database, tansu_topics, tmp_path, labels=True) as made:
        yield made


def meet(school: School, rows: int) -> None:
    """So many more relations: each of five users with each other, in turn."""
    place = (topics.RELATIONAL, 0)
    with school.engine.begin() as connection:
        scribe = Scribe(connection, Dictionary(school.engine), school.streams)
        first = scribe.next[place]
        given = [
            Given(n, n * HOUR, n * HOUR, f"user-{n % 5}", "met", f"user-{_other(n)}")
            for n in range(first, first + rows)
        ]
        scribe.write(place, given)


def left(first: int, end: int) -> int:
    """Of these rows of `meet`, those that are not of or about GONE."""
    return sum(GONE not in (f"user-{n % 5}", f"user-{_other(n)}") for n in range(first, end))


def _other(n: int) -> int:
    return (n + 1 + n // 5 % 4) % 5


def shop(school: School, rows: int) -> None:
    """So many more purchases by five users."""
    with school.engine.begin() as connection:
        scribe = Scribe(connection, Dictionary(school.engine), school.streams)
        first = scribe.next[topics.USER, 0]
        given = [
            Given(n, n * HOUR, n // 3 * HOUR, f"user-{n % 5}", "bought", item=f"item-{n * n % 7}")
            for n in range(first, first + rows)
        ]
        scribe.write((topics.USER, 0), given)


def erase(school: School, *users: str) -> erasure.Erased:
    return erasure.erase(school.engine, users or [GONE])


def equal(school: School, snapshot: str) -> bool:
    with school.engine.connect() as connection:
        return replay_journal(connection, snapshot, school.folder, threads=1).equal


def test_a_learner_that_waits_forgets_at_once_and_takes_a_snapshot(school: School) -> None:
    school.write(20)
    stop = Stop()
    process = school.process(stop=stop, merge_wait_s=0.0, step_linger_s=0.0)
    running = threading.Thread(target=process.run)
    running.start()
    try:
        eventually(lambda: process.totals.rows == 20)
        erase(school)
        eventually(lambda: process.totals.snapshots > 0, why="nobody forgot")
    finally:
        stop.set()
        running.join(20)
    [first, *_] = school.query(
        "SELECT rows, snapshot FROM journal JOIN learner_action USING (learner, branch, step) ORDER BY step"
    )
    assert (first.rows, first.snapshot) == ([], True)
    assert process.totals.rows == 20


def test_what_was_read_ahead_of_an_erased_user_is_not_learnt(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    """The erasure comes while the second step is on its way, with the rest of the log in memory."""
    meet(school, 40)
    steps = []

    def then(name: str) -> None:
        steps.extend([name] if name == "train.after_journal" else [])
        if name == "train.after_journal" and len(steps) == 2:
            erase(school)

    monkeypatch.setattr("streams.train.process.failpoint", then)
    assert school.train().rows == 16 + left(16, 40)
    monkeypatch.undo()
    again = school.undisturbed()
    assert school.train().sha256 == again
    assert school.train().rows == 0


def test_repeated_steps_go_on_without_the_rows_that_are_gone(school: School) -> None:
    meet(school, 40)
    school.train_and_die()
    erased = erase(school)
    totals = school.train()
    assert erased.log_rows == 40 - left(0, 40)
    assert totals.rows == left(0, 40)
    assert (totals.repeated_steps, totals.forgotten) == (6, 1)
    meet(school, 20)
    assert school.train().rows == left(40, 60)
    flags = school.query("SELECT irreproducible FROM snapshot WHERE status = 'live' ORDER BY step")
    assert [row.irreproducible for row in flags] == [True, False, False]
    with pytest.raises(OperatorActionRequired, match="an erasure removed events") as refused:
        equal(school, school.live()[0])
    assert refused.value.code is Exit.REFUSED
    assert all(equal(school, snapshot) for snapshot in school.live()[1:])


def test_a_reaction_that_differs_because_rows_are_gone_is_no_quarrel(school: School) -> None:
    """Without the erased user's types nobody's row is taken by another, as the journal has it."""
    school.write(1280, types=1200)
    school.train_and_die(step_rows=256)
    assert any(row.actions for row in school.query("SELECT actions FROM journal"))
    erase(school, *(f"user-{n}" for n in range(4)))
    assert school.train(step_rows=256).rows == 256


def test_forgetting_is_part_of_the_step_when_the_journal_is_replayed(school: School) -> None:
    shop(school, 60)
    school.train(learner="sdim")
    erase(school)
    shop(school, 30)
    school.train(learner="sdim")
    young = school.live()[1:]
    [first, *_] = school.query("SELECT j.step FROM journal j JOIN learner_action USING (learner, branch, step)")
    assert f"sdim-1-{first.step + 1:010d}" in young
    assert young
    assert all(equal(school, snapshot) for snapshot in young)
    for snapshot in young:
        school.file(snapshot).unlink()
    assert school.train(learner="sdim").repeated_steps > 0


def test_an_interrupted_erasure_keeps_nobody_from_starting_again(school: School) -> None:
    """Told at its beginning, learners pass over what it did not come to take out."""
    meet(school, 40)

    def die(done: str) -> None:
        if done == "suppressed":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        erasure.erase(school.engine, [GONE], done=die)
    school.train_and_die()
    assert school.query("SELECT sum(accepted) FROM log_segment") == [(40,)]
    assert sum(len(run) for run in school.query("SELECT rows FROM journal")) > 0
    erase(school)
    totals = school.train()
    assert totals.rows == left(0, 40)


def test_who_learns_while_others_are_mended_is_told_again_at_the_end(school: School) -> None:
    meet(school, 16)
    school.train()
    meet(school, 24)
    learnt = []

    def meanwhile(done: str) -> None:
        if done == "log":
            learnt.append(school.train())

    erasure.erase(school.engine, [GONE], done=meanwhile)
    again = school.train()
    assert (learnt[0].rows, learnt[0].forgotten) == (left(16, 40), 1)
    assert (again.rows, again.forgotten) == (0, 1)
    flags = school.query("SELECT irreproducible FROM snapshot WHERE status = 'live' ORDER BY step")
    assert [row.irreproducible for row in flags] == [True] * (len(flags) - 1) + [False]
    assert equal(school, school.live()[-1])
    erase(school)
    assert len(school.query("SELECT DISTINCT step FROM learner_action")) == 2, "called again it has nothing to tell"


def named_in_files(school: School, user: str = GONE) -> bool:
    return any(user.encode() in file.read_bytes() for file in school.folder.iterdir())


def test_no_snapshot_of_a_learner_of_items_holds_a_name(school: School) -> None:
    shop(school, 60)
    school.train(learner="sdim")
    assert not named_in_files(school)


def pay(school: School) -> None:
    """Payments between users, learnt by the learner that counts by name."""
    place = (topics.PAYMENT, 0)
    with school.engine.begin() as connection:
        scribe = Scribe(connection, Dictionary(school.engine), school.streams)
        scribe.write(
            place, [Given(n, n * HOUR, n * HOUR, f"user-{n % 5}", "paid", other=f"user-{n % 4}") for n in range(40)]
        )
    school.train(learner="risk")
    assert named_in_files(school)


def test_snapshots_that_name_the_erased_are_collected_once_a_younger_one_has_forgotten(school: School) -> None:
    pay(school)
    erase(school)
    assert collect(school) == 0, "nobody has forgotten yet"
    school.train(learner="risk")
    assert collect(school) == 1
    assert not named_in_files(school)
    assert len(school.live()) == 1
    assert school.train(learner="risk").repeated_steps == 0


def collect(school: School) -> int:
    """As `maintain` does."""
    return (
        Maintain(
            postgres_url=school.database,
            snapshots=school.folder,
            settings=MaintainSettings(port=None),
            duplicate_window=1,
            health=Health("maintain"),
            stop=Stop(),
        )
        .run(once=True)
        .snapshots
    )


@pytest.mark.parametrize("gone", ["user-4", "user-3"], ids=["a payer", "a payee"])
def test_snapshots_that_name_whom_retention_has_left_no_event_of_are_collected_too(school: School, gone: str) -> None:
    pay(school)
    # As retention leaves it: the log is gone, and of sequences there is a number.
    school.query("UPDATE log_segment SET rows = NULL")
    school.query("DELETE FROM user_segment")
    school.query("INSERT INTO trimmed_sequence SELECT id, 8, 0 FROM vocabulary WHERE space = 1 AND value <> 'user-3'")
    school.query("DELETE FROM prediction")
    assert named_in_files(school, gone)
    erase(school, gone)
    school.train(learner="risk")
    assert collect(school) == 1
    assert not named_in_files(school, gone)


def test_a_pinned_snapshot_that_names_the_erased_is_told_of_and_stays_until_it_is_unpinned(
    school: School, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", school.database)
    pay(school)
    [kept] = school.live()
    assert run(["snapshots", "pin", kept]) == Exit.DONE
    assert run(["erase", GONE, "--yes"]) == Exit.DONE
    assert f"driftline snapshots unpin {kept}" in capsys.readouterr().err
    school.train(learner="risk")
    assert collect(school) == 0
    assert named_in_files(school)
    capsys.readouterr()
    assert run(["snapshots", "list", "--json"]) == Exit.DONE
    told = {one["id"]: one["names_erased"] for one in json.loads(capsys.readouterr().out)}
    assert told == {kept: True, school.live()[-1]: False}
    assert run(["snapshots", "unpin", kept, "none"]) == Exit.USAGE, "all of them, or none"
    assert collect(school) == 0
    assert run(["snapshots", "unpin", kept]) == Exit.DONE
    assert collect(school) == 1
    assert not named_in_files(school)
    capsys.readouterr()
    assert run(["erase", "somebody-else", "--yes"]) == Exit.REFUSED, "nothing was known of them"
    assert "unpin" not in capsys.readouterr().err
