"""`retire`: nothing waits for a learner that nobody runs, and its name is free for one that starts anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contracts import topics
from driftline.cli import run
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit, OperatorActionRequired
from storage.log import log_retention
from storage.sequences import sequence_retention
from tests.integration.learning import SECOND, Given, School, Scribe, schools

KEYED = {
    "journal": "learner",
    "label_resolution": "learner",
    "learner": "name",
    "learner_action": "learner",
    "prediction": "learner",
    "signature_table": "learner",
    "snapshot": "learner",
}
"""Table -> its column that says whose a row is."""


@pytest.fixture
def school(
    database: str, tansu_topics: KafkaConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[School]:
    """One that verbs find too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", database)
    monkeypatch.setenv("DRIFTLINE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("DRIFTLINE_MAINTAIN__PORT", "none")
    with schools(database, tansu_topics, tmp_path, labels=True) as made:
        yield made


def rows_of(school: School, learner: str) -> dict[str, int]:
    """Table -> rows of a learner, where it has any."""
    found = {
        table: school.query(f"SELECT count(*) FROM {table} WHERE {column} = :learner", learner=learner)[0][0]
        for table, column in KEYED.items()
    }
    return {table: rows for table, rows in found.items() if rows}


def test_every_table_that_knows_a_learner_is_looked_at(school: School) -> None:
    knowing = """
        SELECT table_name FROM information_schema.columns
        WHERE table_schema = 'public' AND (column_name = 'learner' OR (table_name, column_name) = ('learner', 'name'))
    """
    assert {row.table_name for row in school.query(knowing)} == set(KEYED)


def test_nothing_of_a_retired_learner_is_left_and_others_keep_theirs(
    school: School, capsys: pytest.CaptureFixture[str]
) -> None:
    paid = [Given(n, n * SECOND, n * SECOND, f"user-{n}", "card", other="shop", amount=5_000_000) for n in range(20)]
    with school.engine.begin() as connection:
        Scribe(connection, school._vocabulary, school.streams).write((topics.PAYMENT, 0), paid)
    school.train()
    school.train(learner="risk")
    school.query("INSERT INTO learner_action SELECT name, branch, next_step, 'erase', '\\x01' FROM learner")
    kept = rows_of(school, "markov")
    assert {"learner", "journal", "prediction", "learner_action", "snapshot"} == set(rows_of(school, "risk"))
    capsys.readouterr()
    assert run(["retire", "risk", "--yes", "--json"]) == Exit.DONE
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (told["learner"], told["branch"], told["snapshots"], told["predictions"]) == ("risk", 1, 1, 20)
    assert rows_of(school, "risk") == {"snapshot": 1}
    assert run(["maintain", "--once", "--json"]) == Exit.DONE
    assert rows_of(school, "risk") == {}
    assert rows_of(school, "markov") == kept
    assert {file.name.split("-")[0] for file in school.folder.iterdir()} == {"markov"}


def test_log_and_sequences_no_longer_wait_for_it(school: School) -> None:
    school.write(16)
    school.train(learner="risk_rate")
    school.train()
    school.write(16)
    school.train()
    # What collection does in time: of markov there is one snapshot, whose holder reads from there on.
    school.query("DELETE FROM snapshot WHERE learner = 'markov' AND parent IS NULL")
    with school.engine.begin() as connection:
        assert set(sequence_retention.askers(connection)) == {"markov", "risk_rate"}
        waiting = log_retention.read_from(connection)
    assert run(["retire", "risk_rate", "--yes"]) == Exit.DONE
    with school.engine.begin() as connection:
        assert set(sequence_retention.askers(connection)) == {"markov"}
        free = log_retention.read_from(connection)
    assert waiting is None, "risk_rate may have to start from the beginning"
    assert free
    assert max(free.values()) == 32


def test_one_that_starts_anew_has_settings_and_snapshot_ids_of_its_own(school: School) -> None:
    school.write(16)
    school.train()
    [old] = school.live()
    with pytest.raises(OperatorActionRequired, match="driftline retire markov"):
        school.train(seed=8)
    assert run(["retire", "markov", "--yes"]) == Exit.DONE
    again = school.train(seed=8)
    assert again.rows == 16
    [new] = school.live()
    assert (old, new) == ("markov-1-0000000003", "markov-2-0000000003")
    assert run(["retire", "markov", "--yes"]) == Exit.DONE
    school.train()
    assert school.live() == ["markov-3-0000000003"]


def test_a_train_that_still_runs_adds_nothing_and_ends(school: School) -> None:
    school.write(8)
    with school.refused() as said:
        assert run(["retire", "markov", "--yes"]) == Exit.DONE
        school.write(8)
    [refused] = said
    assert "or it was retired" in str(refused)
    assert set(rows_of(school, "markov")) <= {"snapshot"}
    assert school.live() == []


def test_pinned_snapshots_and_wrong_names_stop_it(school: School, capsys: pytest.CaptureFixture[str]) -> None:
    school.write(16)
    school.train()
    [pinned] = school.live()
    assert run(["snapshots", "pin", pinned]) == Exit.DONE
    before = rows_of(school, "markov")
    assert run(["retire", "markov", "--yes"]) == Exit.REFUSED
    assert f"driftline snapshots unpin {pinned}" in capsys.readouterr().err
    assert run(["retire", "marcov", "--yes"]) == Exit.USAGE
    assert "driftline status" in capsys.readouterr().err
    assert (rows_of(school, "markov"), school.live()) == (before, [pinned])
    assert run(["snapshots", "unpin", pinned]) == Exit.DONE
    assert run(["retire", "markov", "--yes"]) == Exit.DONE
