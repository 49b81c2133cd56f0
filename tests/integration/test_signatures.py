"""The serving cache of signature tables: whole rows, whole versions, nothing of erased users (protocol, rule 17)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from threading import Thread

import numpy as np
import pytest
from sqlalchemy import Engine

from storage.engine import open_engine
from storage.learning import signature_rows
from storage.learning.signature_rows import StoredSignature, TableVersion
from storage.privacy import erasure
from tests.integration.feeding import event, eventually, query
from tests.integration.owning import MakeOwner

VERSION = TableVersion(learner="sdim", embedding="3-0123456789abcdef", hash_id="fedcba9876543210")


@pytest.fixture
def engine(database: str, owner: MakeOwner) -> Iterator[Engine]:
    """Of a database that knows ann and bob."""
    owner().write_events(event("e1"), event("e2", "bob"))
    made = open_engine(database, application_name="test", pooled=True)
    yield made
    made.dispose()


def row(user: str = "ann", *, seed: int = 0) -> StoredSignature:
    random = np.random.default_rng(seed)
    return StoredSignature(
        user=user,
        cursor={1: 20 + seed, 7: 0},
        events=5,
        last_at=1_700_000_000_000_000 + seed,
        oldest=((5, "été"), (6, "item 2")),
        sums=random.standard_normal((4, 8, 3)).astype(np.float32),
        counts=random.integers(0, 9, (4, 8)).astype(np.int32),
    )


def read(engine: Engine, version: TableVersion = VERSION) -> dict[str, StoredSignature]:
    with engine.begin() as connection:
        return signature_rows.read(connection, version, ["ann", "bob", "ann", "nobody"])


def put(engine: Engine, *rows: StoredSignature, version: TableVersion = VERSION) -> None:
    with engine.begin() as connection:
        signature_rows.put(connection, version, rows)


def same(one: StoredSignature, two: StoredSignature) -> bool:
    plain = replace(one, sums=two.sums, counts=two.counts) == two
    return plain and one.sums.tobytes() == two.sums.tobytes() and one.counts.tobytes() == two.counts.tobytes()


def test_a_row_is_read_as_it_was_written(engine: Engine) -> None:
    put(engine, row(), row("bob", seed=1), replace(row("nobody"), oldest=()))
    found = read(engine)
    assert set(found) == {"ann", "bob"}, "who is in no sequence has no row"
    assert same(found["ann"], row())
    assert same(found["bob"], row("bob", seed=1))


def test_a_later_row_replaces_the_whole_of_an_earlier_one(engine: Engine) -> None:
    put(engine, row(seed=1))
    later = replace(row(seed=2), oldest=(), events=0)
    put(engine, later)
    assert same(read(engine)["ann"], later)


def test_a_reader_of_another_version_or_hash_or_learner_finds_nothing(engine: Engine) -> None:
    put(engine, row())
    for other in (
        replace(VERSION, embedding="4-0123456789abcdef"),
        replace(VERSION, hash_id="0"),
        replace(VERSION, learner="muse"),
    ):
        assert read(engine, other) == {}


def test_dropping_other_versions_leaves_those_named_and_other_learners(engine: Engine) -> None:
    versions = [replace(VERSION, embedding=name) for name in ("1-a", "2-b", "3-c")]
    for version in versions:
        put(engine, row(), version=version)
    put(engine, row(), version=replace(versions[0], learner="muse"))
    with engine.begin() as connection:
        assert signature_rows.drop_others(connection, "sdim", ["2-b", "3-c"]) == 1
    assert [len(read(engine, version)) for version in versions] == [0, 1, 1]
    assert len(read(engine, replace(versions[0], learner="muse"))) == 1


def test_an_erased_users_row_is_gone_and_none_is_written_any_more(engine: Engine, database: str) -> None:
    put(engine, row(), row("bob"))
    erasure.erase(engine, ["ann"])
    put(engine, row())
    assert query(database, "SELECT count(*) FROM signature_table") == [(1,)]
    assert set(read(engine)) == {"bob"}


def test_a_row_written_while_its_user_is_erased_does_not_outlive_the_erasure(engine: Engine, database: str) -> None:
    erasing = Thread(target=erasure.erase, args=(engine, ["ann"]))
    with engine.begin() as connection:
        signature_rows.put(connection, VERSION, [row()])
        erasing.start()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        eventually(lambda: query(database, waiting) == [(1,)], why="the erasure did not wait for the row")
    erasing.join(20)
    assert not erasing.is_alive()
    assert query(database, "SELECT count(*) FROM signature_table") == [(0,)]
