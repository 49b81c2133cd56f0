"""`train` with a learner that ranks: the same bytes whatever happens, and tables for scoring that decide nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from contracts import topics
from learners.arms.group import LEARNER
from learners.blocks.signature_table import SignatureTable
from learners.contract.made_up.shop import purchases
from learners.contract.made_up.streams import SECOND, START
from learners.contract.state_codec import below
from learners.models.sdim.embedding_version import EmbeddingVersion, SignatureRow, serving
from learners.models.sdim.learner import SDIM
from learners.models.sdim.spec import SDIMConfig
from learners.tasks.ranking import Ranking
from runtime.kafka import KafkaConfig
from storage.dictionary import Dictionary
from storage.learning import journal, signature_rows, snapshot_files
from storage.learning.signature_rows import StoredSignature, TableVersion
from storage.log import offsets
from storage.log.offsets import Cursor, Fenced
from storage.sequences import user_sequences
from storage.sequences.user_sequences import HistoryAsk, SequenceEvent
from streams.train.journal_replay import replay_journal
from streams.train.merge import LogRow
from streams.train.signature_writer import SignatureWriter
from streams.train.step_batches import StepBatches
from tests.integration.feeding import REPOSITORY
from tests.integration.learning import Given, School, Scribe, schools

FOREVER = 2**62
CONFIG = SDIMConfig()
"""As `train` makes it, but for the warm-up, which the learner itself does not read."""
USERS = [f"user {number}" for number in range(6)]


@pytest.fixture
def school(database: str, tansu_topics: KafkaConfig, tmp_path: Path) -> Iterator[School]:
    with schools(database, tansu_topics, tmp_path) as made:
        yield made


def shop(school: School, rows: int) -> None:
    """So many more events: purchases in baskets, and every seventh a visit without an item."""
    first = int(school.query("SELECT coalesce(max(next_offset), 0) FROM stream_offset")[0][0])
    bought = purchases(4, first + rows, users=len(USERS), items=40, clusters=20)[first:]
    given = [
        Given(n, one.at, one.at, one.user, "purchase" if n % 7 else "visit", item=one.item if n % 7 else None)
        for n, one in enumerate(bought, start=first)
    ]
    write(school, given)


def write(school: School, rows: Sequence[Given]) -> None:
    with school.engine.begin() as connection:
        Scribe(connection, Dictionary(school.engine), school.streams).write((topics.USER, 0), rows)


def learn(school: School) -> str:
    sha256 = school.train(learner="sdim").sha256
    assert sha256 is not None
    return sha256


def killed(school: School, failpoint: str) -> None:
    """A `train` of its own that is killed at a place, as kill -9 would."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "DRIFTLINE_POSTGRES_URL": school.database,
        "DRIFTLINE_KAFKA_BOOTSTRAP": school.config.bootstrap,
        "DRIFTLINE_TOPIC_PREFIX": school.config.prefix,
        "DRIFTLINE_DATA_DIR": str(school.folder.parent),
        "DRIFTLINE_TRAIN__STEP_ROWS": "8",
        "DRIFTLINE_TRAIN__SNAPSHOT_EVERY_S": "3600",
        "DRIFTLINE_TRAIN__PORT": "none",
        "DRIFTLINE_FAILPOINT": failpoint,
    }
    command = [sys.executable, "-m", "driftline", "train", "--learner", "sdim", "--once"]
    ended = subprocess.run(command, env=environment, cwd=school.folder.parent, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


def test_the_learner_and_its_references_learn_every_row_and_say_how_well(school: School) -> None:
    shop(school, 200)
    totals = school.train(learner="sdim")
    assert (totals.rows, totals.steps) == (200, 26)
    told = school.progress(at_least=25)
    arms = {"learner", "reference.sdim_frozen", "reference.sdim_unclocked", "reference.own_count"}
    assert all(set(record.losses) == arms for record in told)
    ranked = sum(record.losses["learner"]["rank"].rows for record in told)
    assert 100 < ranked < 200, "items nobody bought before, and visits, are not ranked"
    assert sum(record.losses["learner"]["fresh_rank"].rows for record in told) == ranked
    assert sum(record.losses["reference.own_count"]["rank"].rows for record in told) == ranked
    assert any(action.startswith("learner: published ") for record in told for action in record.actions)


def test_killed_anywhere_and_started_again_it_ends_with_the_same_bytes(school: School) -> None:
    shop(school, 120)
    school.forget()
    expected = learn(school)
    for failpoint in ("train.after_journal:4", "train.after_step:9", "train.before_live", "train.after_live"):
        school.forget()
        killed(school, failpoint)
        again = school.train(learner="sdim")
        if failpoint == "train.after_live":
            assert (again.steps, school.query("SELECT sha256 FROM snapshot")) == (0, [(expected,)])
        else:
            assert again.repeated_steps > 0
            assert again.sha256 == expected, failpoint


def test_the_journal_gives_every_snapshot_again(school: School) -> None:
    for _ in range(3):
        shop(school, 48)
        learn(school)
    assert len(school.live()) == 3
    for snapshot in school.live():
        with school.engine.connect() as connection:
            assert replay_journal(connection, snapshot, school.folder, threads=1).equal


def test_visits_without_items_push_no_purchase_out_of_a_history(school: School) -> None:
    """After a restart the user's window is what the first new row sees: 256 purchases back, not 256 events."""
    write(school, [Given(n, n, START + n * SECOND, "ann", "purchase", item=f"item {n % 5}") for n in range(8)])
    write(school, [Given(n, n, START + n * SECOND, "ann", "visit") for n in range(8, 300)])
    learn(school)
    write(school, [Given(n, n, START + n * SECOND, "ann", "purchase", item="item 1") for n in range(300, 308)])
    learn(school)
    assert read(school, school.live()[-1])["ann"].events == 16


# Tables for scoring


def published_of(school: School, snapshot: str) -> EmbeddingVersion:
    """What a reader of a snapshot serves from."""
    [row] = school.query("SELECT sha256 FROM snapshot WHERE id = :id", id=snapshot)
    tensors, _ = snapshot_files.read(school.folder, snapshot, sha256=row.sha256)
    state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
    return serving(below(f"{LEARNER}/", state), CONFIG)


def read(school: School, snapshot: str) -> dict[str, StoredSignature]:
    served = published_of(school, snapshot)
    version = TableVersion(learner="sdim", embedding=served.embedding, hash_id=served.hash_id)
    with school.engine.begin() as connection:
        return signature_rows.read(connection, version, [*USERS, "ann"])


def sequence(school: School, user: str) -> list[SequenceEvent]:
    """All behaviours up to the watermark."""
    with school.engine.begin() as connection:
        ask = HistoryAsk(user=user, before=FOREVER, last_n=CONFIG.last_n)
        [found] = user_sequences.histories(connection, [ask], offsets.watermark(connection), items_only=True)
    return found


def below_cursor(events: Sequence[SequenceEvent], cursor: Cursor) -> list[SequenceEvent]:
    return [event for event in events if event.offset < cursor.get(event.stream_id, 0)]


def cache_updated(served: EmbeddingVersion, row: StoredSignature, events: Sequence[SequenceEvent]) -> SignatureTable:
    """As a reader does it: the row, and what came at or behind its cursor."""
    stored = SignatureRow(
        user=row.user,
        embedding=served.embedding,
        hash_id=served.hash_id,
        table=SignatureTable(sums=row.sums, counts=row.counts),
        events=row.events,
        last_at=row.last_at,
        oldest=row.oldest,
    )
    later = [(event.at, str(event.item)) for event in events if event.offset >= row.cursor.get(event.stream_id, 0)]
    return served.moved_on(stored, later, now=FOREVER)


def check(served: EmbeddingVersion, row: StoredSignature, events: Sequence[SequenceEvent]) -> None:
    """The row holds what lies below its cursor; with what came later it is the table of the whole sequence."""
    assert row.events == len(below_cursor(events, row.cursor))
    found, expected = cache_updated(served, row, events), served.table([str(event.item) for event in events])
    assert found.counts.tolist() == expected.counts.tolist()
    np.testing.assert_allclose(found.sums, expected.sums, atol=1e-5)


def test_when_train_ends_every_users_table_of_the_live_version_is_in_the_cache(school: School) -> None:
    shop(school, 200)
    totals = school.train(learner="sdim")
    [snapshot] = school.live()
    rows, served = read(school, snapshot), published_of(school, snapshot)
    assert set(rows) == set(USERS)
    assert totals.signatures == len(USERS)
    for user, row in rows.items():
        events = sequence(school, user)
        assert row.events == len(events)
        check(served, row, events)


def test_a_row_older_than_its_user_says_so_and_is_cache_updated_to_the_whole(school: School) -> None:
    shop(school, 120)
    learn(school)
    [snapshot] = school.live()
    before = read(school, snapshot)
    shop(school, 60)
    killed(school, "train.after_step:5")
    after, served = read(school, snapshot), published_of(school, snapshot)
    assert {user: row.cursor for user, row in after.items()} == {user: row.cursor for user, row in before.items()}
    outdated = [user for user, row in after.items() if len(sequence(school, user)) > row.events]
    assert outdated, "the killed process had no time to write"
    for user, row in after.items():
        check(served, row, sequence(school, user))


def test_a_cache_that_is_lost_or_spoilt_between_two_runs_changes_no_weight(school: School) -> None:
    def halves(spoil: str) -> str:
        school.forget()
        school.query("UPDATE stream_offset SET next_offset = 80 WHERE next_offset = 160")
        learn(school)
        assert school.query("SELECT count(*) FROM signature_table")[0][0] > 0
        school.query("UPDATE stream_offset SET next_offset = 160 WHERE next_offset = 80")
        school.query(spoil)
        return learn(school)

    shop(school, 160)
    untouched = halves("SELECT 1")
    assert halves("TRUNCATE signature_table") == untouched
    assert halves("UPDATE signature_table SET sums = '\\x00', counts = '\\x00', cursor = '{}', events = 7") == untouched


def test_after_a_restart_users_first_met_through_a_late_row_have_whole_tables(school: School) -> None:
    """Memory starts empty: what a late row leaves out of sight is read from the sequence."""
    shop(school, 120)
    learn(school)
    late = sequence(school, "user 0")[0].at - 1
    write(school, [Given(120, late + 10**12, late, "user 0", "purchase", item="item 1")])
    school.query("TRUNCATE signature_table")
    learn(school)
    snapshot = school.live()[-1]
    row = read(school, snapshot)["user 0"]
    check(published_of(school, snapshot), row, sequence(school, "user 0"))
    assert row.events == len(sequence(school, "user 0"))
    assert row.oldest[0] == (late, "item 1")


def test_rows_of_versions_that_serve_no_more_are_dropped_but_for_the_one_before(school: School) -> None:
    for _ in range(4):
        shop(school, 40)
        learn(school)
    served = list(dict.fromkeys(published_of(school, snapshot).embedding for snapshot in school.live()))
    assert len(served) > 2
    kept = school.query("SELECT DISTINCT embedding FROM signature_table")
    assert {row.embedding for row in kept} == set(served[-2:])


def test_who_lost_the_seat_writes_no_row(school: School) -> None:
    shop(school, 80)
    learn(school)
    school.query("TRUNCATE signature_table")
    learner = SDIM(CONFIG)
    with school.engine.connect() as connection:
        with connection.begin():
            lease, _ = journal.acquire_lease(connection, learner="sdim", version=learner.version, config={})
        writer = SignatureWriter(lease, learner)
        batch = [SequenceEvent(0, "e", topics.USER, 0, 0, 1, user_sequences.USER, "purchase", "i", None, None, None, 0)]
        rows = [LogRow(0, topics.USER, 0, 0, 1, "user 0", batch[0])]
        histories = StepBatches(last_n=CONFIG.last_n, items_only=True, resolution_us=SECOND)
        with connection.begin():
            learner.learn(Ranking().ask(histories.batch(connection, rows, {})))
        writer.serves()
        writer.learnt({1: 1})
        with connection.begin():
            journal.acquire_lease(connection, learner="sdim", version=learner.version, config={})
        with pytest.raises(Fenced, match="another `train` took over"):
            writer.write(connection, {1: 1})
    assert school.query("SELECT count(*) FROM signature_table")[0][0] == 0
