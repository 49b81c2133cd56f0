"""Compaction beside everything else: no reader can tell, nothing is lost or doubled, nothing is rewritten for ever."""

from __future__ import annotations

import math
from itertools import product
from threading import Event, Thread

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from contracts import topics
from contracts.records import Record
from storage.sequences import compaction, user_sequences
from storage.sequences.user_sequences import HistoryAsk
from tests.integration.feeding import START_MS, engine_of, event, payment, query, relation, taken
from tests.integration.owning import MakeOwner, Owner, Place, message

FOREVER = 2**62
START_US = START_MS * 1000
LOOKED_AT = text("""
    SELECT pg_stat_get_xact_tuples_returned('user_segment'::regclass)
           + sum(pg_stat_get_xact_tuples_fetched(index)) + pg_stat_get_xact_tuples_fetched('user_segment'::regclass)
    FROM (SELECT indexrelid AS index FROM pg_index WHERE indrelid = 'user_segment'::regclass) AS indexes
""")
"""Rows of sequences that this transaction has looked at, by whatever way."""
VIEW = 'SELECT * FROM user_event ORDER BY user_id, topic, partition, "offset", role'


def compact(engine: Engine, *, rows: int = 2) -> compaction.Compacted:
    """Everything that is due, as `maintain` does it."""
    done = compaction.Compacted()
    with engine.begin() as connection:
        found = compaction.due(connection, rows=rows, limit=1000)
    for users in compaction.batches(found, rows=50):
        with engine.begin() as connection:
            done += compaction.compact(connection, users)
    return done


def histories(
    owner: Owner, *users: str, last_n: int = 10_000, before: int = FOREVER, below: int = 10**9
) -> list[list[user_sequences.SequenceEvent]]:
    """As of offset `below` of each stream, and strictly before a time."""
    asks = [HistoryAsk(user=user, before=before, last_n=last_n) for user in users]
    with owner.connection.begin():
        cursor = {claim.stream_id: below for claim in owner.claims.values()}
        return user_sequences.histories(owner.connection, asks, cursor)


PLACES: list[Place] = [(topics.USER, 0), (topics.PAYMENT, 0), (topics.RELATIONAL, 0)]
rows = st.tuples(st.sampled_from(PLACES), st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(0, 5))
work = st.lists(st.one_of(st.lists(rows, min_size=1, max_size=6), st.just("compact")), min_size=1, max_size=12)


def record_of(topic: str, event_id: str, user: str, other: str, at: int) -> Record:
    """A record of a topic of events."""
    if topic == topics.PAYMENT:
        return payment(event_id, user, at)
    if topic == topics.RELATIONAL:
        return relation(event_id, user, other, at)
    return event(event_id, user, at, item=other if at % 2 else None)


@pytest.fixture
def busy(owner: MakeOwner) -> Owner:
    """An owner of all places, for examples that each start with empty tables."""
    return owner(*PLACES)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(work, st.integers(2, 5))
def test_nobody_can_tell_what_was_compacted_when(
    database: str, busy: Owner, monkeypatch: pytest.MonkeyPatch, plan: list[object], chunk: int
) -> None:
    monkeypatch.setattr(compaction, "CHUNK_EVENTS", chunk)
    query(database, "TRUNCATE user_segment, log_segment")
    query(database, "UPDATE stream_offset SET next_offset = 0")
    one, engine = busy, engine_of(database)
    one.writer = one.claim(*PLACES)
    for n, act in enumerate(plan):
        before = query(database, VIEW)
        if act == "compact":
            compact(engine)
            assert query(database, VIEW) == before
            continue
        assert isinstance(act, list)
        batch: dict[Place, list[Record]] = {}
        for m, (place, user, other, at) in enumerate(act):
            made = record_of(place[0], f"e{n}-{m}", user, other, at)
            batch.setdefault(place, []).append(made)
        first = {place: one.claims[place].next_offset for place in batch}
        one.write({p: [message(p[0], first[p] + k, r) for k, r in enumerate(rs)] for p, rs in batch.items()})
    whole = histories(one, *"abcxyz")
    compact(engine)
    assert histories(one, *"abcxyz") == whole
    for last_n, until, below in product(
        (1, 3, 9), (START_US + 2 * 10**6, START_US + 4 * 10**6, FOREVER), (2, 5, 10**9)
    ):
        seen = [[e for e in history if e.at < until and e.offset < below][-last_n:] for history in whole]
        assert histories(one, *"abcxyz", last_n=last_n, before=until, below=below) == seen
    taken(database)  # log and sequences hold the same
    nulls = "SELECT count(*) FROM user_segment WHERE stream_id = 0 AND array_remove(item, NULL) = '{}'"
    assert query(database, nulls) == [(0,)], "a field that no event has is one NULL"


def test_compacted_rows_say_what_they_hold_and_owners_never_meet_them(database: str, owner: MakeOwner) -> None:
    one = owner()
    for n in range(4):
        one.write_events(event(f"e{n}", at=10 - n))
    compacted = compact(engine_of(database))
    assert (compacted.rows_before, compacted.rows_after, compacted.events) == (4, 1, 4)
    [row] = query(
        database,
        "SELECT stream_id, epoch, events, last_at - first_at, streams = ARRAY[stream[1]], ends, at[1] < at[4]"
        " FROM user_segment",
    )
    assert row == (0, 0, 4, 3_000_000, True, [4], True)
    assert query(database, "SELECT count(*) FROM stream_offset WHERE stream_id = 0") == [(0,)]


def test_an_event_is_rewritten_seldom_and_full_rows_never(
    database: str, owner: MakeOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "CHUNK_EVENTS", 32)
    one, engine = owner(), engine_of(database)
    events, rewritten, full = 0, 0, set[tuple[int]]()
    for n in range(60):
        for m in range(4):
            one.write_events(*(event(f"e{n}-{m}-{k}", at=events + k) for k in range(2)))
            events += 2
        rewritten += compact(engine, rows=4).events
        now = set(query(database, "SELECT first_offset FROM user_segment WHERE stream_id = 0 AND events = 32"))
        assert full <= now
        full = now
    assert len(full) == events // 32
    assert rewritten <= events * (math.log2(32) + 1)
    [(partial,)] = query(database, "SELECT count(*) FROM user_segment WHERE events < 32")
    assert partial <= math.log2(32)
    assert len(histories(one, "ann")[0]) == events


def test_what_an_owner_has_not_committed_is_left_alone(database: str, owner: MakeOwner) -> None:
    one, engine = owner(), engine_of(database)
    one.write_events(event("e1"))
    one.write_events(event("e2"))
    with one.connection.begin() as open_batch:
        one.connection.exec_driver_sql(
            "INSERT INTO user_segment SELECT user_id, stream_id, 99, 99, at, kind, type, item, amount, currency, other,"
            " event_id, stream, position FROM user_segment WHERE first_offset = 0"
        )
        assert compact(engine).rows_before == 2
        open_batch.rollback()
    assert [e.event_id for e in histories(one, "ann")[0]] == ["e1", "e2"]


def test_two_inserters_two_sealers_and_two_readers_lose_and_double_nothing(database: str, owner: MakeOwner) -> None:
    inserters = [owner((topics.USER, 0)), owner((topics.RELATIONAL, 0))]
    rounds, stop, wrong = 60, Event(), list[str]()
    streams = [row[0] for row in query(database, "SELECT stream_id FROM stream_offset")]

    def insert(one: Owner) -> None:
        for n in range(rounds):
            if (topics.USER, 0) in one.claims:
                one.write_events(event(f"u{n}", "ann", n), event(f"v{n}", "bob", n))
            else:
                one.write_events(relation(f"r{n}", "ann", "bob", n), topic=topics.RELATIONAL)

    def keep_compaction() -> None:
        engine = engine_of(database)
        while not stop.is_set():
            compact(engine)

    def read() -> None:
        seen = [0, 0]
        asks = [HistoryAsk(user=user, before=FOREVER, last_n=10_000) for user in ("ann", "bob")]
        engine = engine_of(database)
        while not stop.is_set():
            with engine.begin() as connection:
                found = user_sequences.histories(connection, asks, dict.fromkeys(streams, 10**9))
            counts = [len(history) for history in found]
            keys = [{(e.key, e.kind) for e in history} for history in found]
            if counts < seen or [len(each) for each in keys] != counts:
                wrong.append(f"{seen} then {counts}")
            seen = counts

    threads = [Thread(target=work) for work in (keep_compaction, keep_compaction, read, read)]
    writers = [Thread(target=insert, args=(one,)) for one in inserters]
    for thread in [*threads, *writers]:
        thread.start()
    for writer in writers:
        writer.join()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    compact(engine_of(database))
    found = taken(database)
    assert len(found.identities) == 3 * rounds
    assert set(found.sequences.values()) == {1}


def test_a_hit_of_the_duplicate_filter_is_confirmed_by_a_compacted_row(database: str, owner: MakeOwner) -> None:
    one = owner()
    one.write_events(event("e1"))
    one.write_events(event("e2"))
    compact(engine_of(database))
    assert owner().write_events(event("e1"), event("e2"), event("e3")).counts.duplicates == 2


def test_the_newest_events_of_a_long_history_are_found_without_opening_all_of_it(
    database: str, owner: MakeOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "CHUNK_EVENTS", 8)
    one = owner()
    one.write_events(*(event(f"e{n}", at=n) for n in range(80)))
    one.write_events(event("late", at=3.5))
    compact(engine_of(database))
    assert [e.event_id for e in histories(one, "ann", last_n=2)[0]] == ["e78", "e79"]
    query(database, "UPDATE user_segment SET event_id[1] = 'opened' WHERE last_at < %s", (START_MS + 60_000) * 1000)
    assert [e.event_id for e in histories(one, "ann", last_n=10)[0]] == [f"e{n}" for n in range(70, 80)]
    assert "opened" in [e.event_id for e in histories(one, "ann", last_n=70)[0]], "the others are opened when needed"


def test_older_rows_of_a_long_history_are_not_even_looked_at(
    database: str, owner: MakeOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "CHUNK_EVENTS", 8)
    one = owner()
    one.write_events(*(event(f"other{n}", f"user{n}") for n in range(300)))
    for first in (0, 200):
        one.write_events(*(event(f"e{n}", at=n) for n in range(first, first + 200)))
    assert compact(engine_of(database)).rows_after == 50
    query(database, "ANALYZE user_segment")
    with one.connection.begin():
        cursor = {claim.stream_id: 10**9 for claim in one.claims.values()}
        [found] = user_sequences.histories(one.connection, [HistoryAsk(user="ann", before=FOREVER, last_n=9)], cursor)
        rows = one.connection.scalar(LOOKED_AT)
    assert len(found) == 9
    assert 2 <= rows <= 8


def test_a_second_sealer_waits_for_the_first_and_then_sees_its_rows(database: str, owner: MakeOwner) -> None:
    one, engine, second = owner(), engine_of(database), list[compaction.Compacted]()
    for n in range(3):
        one.write_events(event(f"e{n}", at=n))
    [(ann,)] = query(database, "SELECT DISTINCT user_id FROM user_segment")
    other = Thread(target=lambda: second.append(compact_one(engine_of(database), ann)))
    with engine.begin() as connection:
        assert compaction.compact(connection, [ann]).rows_before == 3
        other.start()
        other.join(0.5)
        assert other.is_alive(), "it must wait"
        waiting = query(database, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    other.join()
    assert waiting == [(1,)], "for the user, before its own statement takes its look"
    assert second == [compaction.Compacted()]


def compact_one(engine: Engine, user_id: int) -> compaction.Compacted:
    with engine.begin() as connection:
        return compaction.compact(connection, [user_id])


def test_compaction_nothing_makes_no_row(database: str) -> None:
    assert compact_one(engine_of(database), 4711) == compaction.Compacted()
    assert query(database, "SELECT count(*) FROM user_segment") == [(0,)]
