"""Rule 7: strings become integers, lossless, without two owners ever waiting on each other."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pyarrow as pa
import pytest
from sqlalchemy import Engine, event, text

from storage.dictionary import Dictionary, Space
from storage.engine import open_engine
from tests.integration.feeding import event as user_event
from tests.integration.feeding import query
from tests.integration.owning import MakeOwner


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    made = open_engine(database, application_name="test", pooled=True)
    yield made
    made.dispose()


def strings(*values: str | None) -> pa.Array:
    return pa.array(values, pa.string())


def decoded(database: str, ids: pa.Array) -> list[str | None]:
    known = dict(query(database, "SELECT id, value FROM vocabulary"))
    return [None if number is None else known[number] for number in ids.to_pylist()]


def test_every_string_comes_back_as_it_was(database: str, engine: Engine) -> None:
    values = ["b", None, "a", "b", "", " a", "A", "ä", "a\u0308", "😀", "\ufeff", "x" * 256]
    assert decoded(database, Dictionary(engine).encode(Space.ITEM, strings(*values))) == values


def test_a_string_has_one_id_a_space_whoever_asks(engine: Engine) -> None:
    one, other = Dictionary(engine), Dictionary(engine)
    first = one.encode(Space.USER, strings("ann", "bob"))
    assert other.encode(Space.USER, strings("bob", "ann")).to_pylist() == first.to_pylist()[::-1]
    assert other.encode(Space.PARTY, strings("ann")).to_pylist() != first.to_pylist()[:1]


def test_new_strings_are_there_for_others_while_the_batch_is_still_open(database: str, owner: MakeOwner) -> None:
    one = owner()
    with one.connection.begin() as batch:
        one.connection.execute(text("SELECT 1"))
        ids = one.vocabulary.encode(Space.USER, strings("ann"))
        batch.rollback()
    assert decoded(database, ids) == ["ann"]
    other = open_engine(database, application_name="test", pooled=True)
    assert Dictionary(other).encode(Space.USER, strings("ann")).equals(ids)
    other.dispose()


def test_no_id_is_remembered_whose_commit_failed(database: str, engine: Engine) -> None:
    vocabulary = Dictionary(engine)

    def fail(_: object) -> None:
        raise ConnectionError("gone")

    event.listen(engine, "commit", fail)
    with pytest.raises(ConnectionError):
        vocabulary.encode(Space.USER, strings("ann", "bob"))
    event.remove(engine, "commit", fail)
    assert decoded(database, vocabulary.encode(Space.USER, strings("bob", "ann"))) == ["bob", "ann"]


def test_owners_with_the_same_new_strings_do_not_deadlock(database: str) -> None:
    rounds, size = 15, 1500
    barrier = Barrier(2, timeout=30)

    def allocate(backwards: bool) -> None:
        mine = open_engine(database, application_name="test", pooled=True)
        for n in range(rounds):
            values = [f"{n}-{m:05}" for m in range(size)]
            barrier.wait()
            Dictionary(mine).encode(Space.ITEM, strings(*(reversed(values) if backwards else values)))
        mine.dispose()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(allocate, [False, True]))
    assert query(database, "SELECT count(*), count(DISTINCT value) FROM vocabulary") == [(rounds * size,) * 2]


def test_a_full_cache_forgets_but_never_lies(database: str, engine: Engine) -> None:
    vocabulary = Dictionary(engine, cache_entries=3)
    for batch in (["a", "b"], ["b", "c", "d"], ["a", "e", "f", "g"], ["d", "a"]):
        assert decoded(database, vocabulary.encode(Space.NAME, strings(*batch))) == batch
    assert set(vocabulary.known(Space.NAME, ["a", "g", "never seen"])) == {"a", "g"}


def test_a_rolled_back_batch_leaves_no_dangling_ids(database: str, owner: MakeOwner) -> None:
    one = owner()
    query(database, "UPDATE stream_offset SET suppression_version = 9")
    with pytest.raises(RuntimeError):
        one.write_events(user_event("e1"))
    query(database, "UPDATE stream_offset SET suppression_version = 0")
    one.write_events(user_event("e1"))
    assert query(database, "SELECT user_id, event_id FROM user_event") == [("ann", "e1")]
