"""`replay-journal`: the journal gives a snapshot's bytes again, or it is said why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from contracts import topics
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit, OperatorActionRequired
from storage.learning import snapshot_files
from storage.log import event_log
from streams.train.journal_replay import Rebuilt, replay_journal
from tests.integration.learning import School, schools


@pytest.fixture
def school(database: str, tansu_topics: KafkaConfig, tmp_path: Path) -> Iterator[School]:
    """24 rows, learnt in three steps with a snapshot after each."""
    with schools(database, tansu_topics, tmp_path) as made:
        made.write(16)
        made.write(8, place=(topics.USER, 2))
        made.train(snapshot_every_s=0)
        yield made


def replay(school: School, snapshot: str, *, threads: int = 1) -> Rebuilt:
    with school.engine.connect() as connection:
        return replay_journal(connection, snapshot, school.folder, threads=threads)


def test_three_snapshots_in_a_row_are_rebuilt_to_the_same_bytes(school: School) -> None:
    before: str | None = None
    for snapshot in school.live():
        found = replay(school, snapshot)
        assert found.equal
        assert (found.parent, found.steps, found.rows) == (before, 1, 8)
        assert found.found == found.recorded != ""
        before = snapshot
    assert len(school.live()) == 3


def test_rebuilding_changes_nothing(school: School) -> None:
    tables = "learner", "journal", "snapshot", "stream_offset"
    before = [school.query(f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in tables]
    files = {file: file.read_bytes() for file in school.folder.iterdir()}
    replay(school, school.live()[-1])
    assert [school.query(f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in tables] == before
    assert {file: file.read_bytes() for file in school.folder.iterdir()} == files


def test_a_log_row_that_was_tampered_with_gives_other_bytes(school: School) -> None:
    with school.engine.begin() as connection:
        found = connection.execute(text("SELECT stream_id, first_offset, rows FROM log_segment")).all()
        for row in found:
            table = event_log.decode_rows(row.rows)
            types = table["type"].to_pylist()
            types[-1] = "tampered"
            changed = table.set_column(table.schema.get_field_index("type"), "type", [types])
            connection.execute(
                text("UPDATE log_segment SET rows = :rows WHERE stream_id = :stream_id AND first_offset = :first"),
                {"rows": event_log.encode_rows(changed), "stream_id": row.stream_id, "first": row.first_offset},
            )
    first, *_, last = school.live()
    assert replay(school, first).equal, "it was learnt before those rows"
    assert not replay(school, last).equal


def _unknown(school: School) -> None:
    school.query("DELETE FROM snapshot")


def _writing(school: School) -> None:
    school.query("UPDATE snapshot SET status = 'writing'")


def _irreproducible(school: School) -> None:
    school.query("UPDATE snapshot SET irreproducible = true")


def _of_another_device_class(school: School) -> None:
    school.query("""UPDATE snapshot SET manifest = manifest || '{"device_class": "cuda/H200"}'""")


def _without_its_parents_file(school: School) -> None:
    for snapshot in school.live()[:-1]:
        snapshot_files.remove(school.folder, snapshot)


def _without_its_parent(school: School) -> None:
    school.query("DELETE FROM snapshot WHERE step < 3")


def _with_a_gap_in_the_journal(school: School) -> None:
    school.query("DELETE FROM journal WHERE step = 2")


def _with_another_reaction_in_the_journal(school: School) -> None:
    school.query("""UPDATE journal SET actions = '["grew"]' WHERE step = 2""")


def _with_a_gap_in_the_log(school: School) -> None:
    school.query("UPDATE log_segment SET rows = NULL")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_unknown, "there is no such snapshot"),
        (_writing, "it is writing, not live"),
        (_irreproducible, "an erasure removed events it was learnt from"),
        (_of_another_device_class, "it was made on cuda/H200; this is cpu/"),
        (_without_its_parents_file, r"markov-1-0000000002\.\w+\.json is missing"),
        (_without_its_parent, "markov-1-0000000002 is no longer registered"),
        (_with_a_gap_in_the_journal, "of the steps 2 to 2 the journal holds 0"),
        (_with_another_reaction_in_the_journal, "repeating step 1 the learner reported"),
        (_with_a_gap_in_the_log, "the log no longer holds offsets"),
    ],
)
def test_what_cannot_be_rebuilt_is_refused_with_exit_code_3(
    school: School, spoil: Callable[[School], None], said: str
) -> None:
    newest = school.live()[-1]
    spoil(school)
    with pytest.raises(OperatorActionRequired, match=said) as refused:
        replay(school, newest)
    assert refused.value.code is Exit.REFUSED


def test_another_number_of_threads_is_another_device_class(school: School) -> None:
    with pytest.raises(OperatorActionRequired, match=r"threads-1; this is .*threads-2"):
        replay(school, school.live()[-1], threads=2)
