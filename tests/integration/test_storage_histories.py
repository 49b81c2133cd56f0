"""Rule 11 and the as-of rule: histories against thirty lines of Python, alone and beside a compactor."""

from __future__ import annotations

from threading import Event, Thread

import psycopg
import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts import topics
from contracts.identity import event_key
from contracts.records import Payment, Record, Relation, UserEvent
from storage import string_cache
from storage.privacy import erasure
from storage.privacy.erasure import Erased
from storage.sequences import history_reader, user_sequences
from storage.sequences.user_sequences import HistoryAsk, SequenceEvent
from storage.string_cache import Gone
from tests.integration.feeding import START_MS, engine_of, event, key_of, payment, query, relation
from tests.integration.owning import MakeOwner, Owner, Place, message, stream

USERS = ["ann", "bob", "cid"]
PLACES: list[Place] = [(topics.USER, 0), (topics.USER, 1), (topics.PAYMENT, 0), (topics.RELATIONAL, 0)]
BASE_US = START_MS * 1000


def model(
    stored: list[tuple[Place, int, Record]],
    ids: dict[Place, int],
    ask: HistoryAsk,
    cursor: dict[int, int],
    *,
    items_only: bool = False,
) -> list[SequenceEvent]:
    """What a history is, in Python: below the cursor, before the time, sorted, the last n."""
    found = []
    for place, offset, record in stored:
        if offset >= cursor.get(ids[place], 0):
            continue
        assert isinstance(record, UserEvent | Payment | Relation)
        at = BASE_US + round((record.occurred_at.timestamp() - START_MS / 1000) * 1_000_000)
        for role, user in enumerate([key_of(record), getattr(record, "counterpart_id", None)]):
            if user != ask.user or at >= ask.before:
                continue
            if items_only and getattr(record, "item_id", None) is None:
                continue
            paid = isinstance(record, Payment)
            other = getattr(record, "payee_id", None)
            if isinstance(record, Relation):
                other = record.actor_id if role else record.counterpart_id
            found.append(
                SequenceEvent(
                    at=at,
                    event_id=record.event_id,
                    topic=place[0],
                    partition=place[1],
                    offset=offset,
                    stream_id=ids[place],
                    kind=3 + role if isinstance(record, Relation) else 2 if paid else 1,
                    type=record.relation if isinstance(record, Relation) else record.type,
                    item=getattr(record, "item_id", None),
                    amount=record.amount if isinstance(record, Payment) else None,
                    currency=record.currency if isinstance(record, Payment) else None,
                    other=other,
                    key=event_key(place[0], key_of(record), record.event_id),
                )
            )
    return sorted(found)[-ask.last_n :]


seconds = st.integers(0, 4)  # few, so that ties are common
users = st.sampled_from(USERS)
words = st.sampled_from(["click", "Zoo", "été", "a", "B", "_", "\U0001f600"])
batches = st.lists(
    st.dictionaries(
        st.sampled_from(PLACES), st.lists(st.tuples(words, users, users, seconds), min_size=1, max_size=5), min_size=1
    ),
    min_size=1,
    max_size=5,
)
asks = st.lists(
    st.builds(
        HistoryAsk,
        user=st.sampled_from([*USERS, "nobody"]),
        before=seconds.map(lambda n: BASE_US + n * 1_000_000) | st.just(2**62),
        last_n=st.integers(1, 6),
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture
def reading(owner: MakeOwner) -> Owner:
    """An owner of all places, for examples that each start with empty tables."""
    return owner(*PLACES)


def made(place: Place, number: str, name: str, user: str, other: str, at: int) -> Record:
    event_id = f"{name}{number}"
    if place[0] == topics.PAYMENT:
        return payment(event_id, user, at, amount=at * 7)
    if place[0] == topics.RELATIONAL:
        return relation(event_id, user, other if other != user else f"not {user}", at)
    return event(event_id, user, at, type=name, item=None if at % 2 else f"item {name}")


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches, st.lists(st.tuples(asks, st.dictionaries(st.sampled_from(PLACES), st.integers(0, 8))), max_size=4))
def test_a_history_is_what_the_model_says(
    database: str,
    reading: Owner,
    written: list[dict[Place, list[tuple[str, str, str, int]]]],
    questions: list[tuple[list[HistoryAsk], dict[Place, int]]],
) -> None:
    query(database, "TRUNCATE user_segment, log_segment, dead_letter")
    query(database, "UPDATE stream_offset SET next_offset = 0")
    reading.writer = reading.claim(*PLACES)
    ids = {place: claim.stream_id for place, claim in reading.claims.items()}
    stored: list[tuple[Place, int, Record]] = []
    for n, batch in enumerate(written):
        messages = {}
        for place, rows in batch.items():
            first = reading.claims[place].next_offset
            records = [made(place, f"-{n}-{place[1]}-{m}", *row) for m, row in enumerate(rows)]
            stored += [(place, first + m, record) for m, record in enumerate(records)]
            messages[place] = [message(place[0], first + m, record) for m, record in enumerate(records)]
        reading.write(messages)
    everything = dict.fromkeys(ids.values(), 99)
    whole = [HistoryAsk(user=user, before=2**62, last_n=1000) for user in USERS]
    for wanted, below in [(whole, None), *questions]:
        cursor = everything if below is None else {ids[place]: offset for place, offset in below.items()}
        with reading.connection.begin():
            found = user_sequences.histories(reading.connection, wanted, cursor)
            chosen = history_reader.read(reading.connection, wanted, cursor, items_only=True)
            newest = [user_sequences.newest_event_at(reading.connection, ask.user, cursor) for ask in wanted]
        assert found == [model(stored, ids, ask, cursor) for ask in wanted]
        assert [list(h) for h in chosen] == [model(stored, ids, ask, cursor, items_only=True) for ask in wanted]
        for ask, at in zip(wanted, newest, strict=True):
            last = model(stored, ids, HistoryAsk(user=ask.user, before=2**62, last_n=1), cursor)
            assert at == (last[0].at if last else None)


def test_events_at_one_instant_never_see_each_other(owner: MakeOwner) -> None:
    one = owner()
    one.write_events(event("e1", at=1), event("e2", at=1), event("e3", at=2))
    [claim] = one.claims.values()
    with one.connection.begin():
        [history] = user_sequences.histories(
            one.connection, [HistoryAsk(user="ann", before=BASE_US + 1_000_000, last_n=9)], {claim.stream_id: 3}
        )
    assert history == []


SEAL = b"""
    WITH gone AS (DELETE FROM user_segment RETURNING *)
    INSERT INTO user_segment
    SELECT s.user_id, s.stream_id, min(s.first_offset), max(s.epoch) + 1,
           array_agg(e.at), array_agg(e.kind), array_agg(e.type), array_agg(e.item), array_agg(e.amount),
           array_agg(e.currency), array_agg(e.other), array_agg(e.event_id), array_agg(e.stream),
           array_agg(e.position)
    FROM gone s CROSS JOIN LATERAL unnest(s.at, s.kind, s.type, s.item, s.amount, s.currency, s.other, s.event_id,
         s.stream, s.position) AS e(at, kind, type, item, amount, currency, other, event_id, stream, position)
    GROUP BY s.user_id, s.stream_id
"""


def test_a_history_is_whole_while_segments_are_being_compacted(database: str, owner: MakeOwner) -> None:
    one = owner((topics.RELATIONAL, 0))
    rounds = 40
    for n in range(rounds):
        one.write_events(relation(f"r{n}", "ann", "bob", n), topic=topics.RELATIONAL)
    [claim] = one.claims.values()
    asks = [HistoryAsk(user=user, before=2**62, last_n=1000) for user in ("ann", "bob")]
    stop = Event()

    def compact() -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            while not stop.is_set():
                connection.execute(SEAL)

    sealer = Thread(target=compact)
    sealer.start()
    try:
        for _ in range(60):
            with one.connection.begin():
                found = user_sequences.histories(one.connection, asks, {claim.stream_id: rounds})
            assert [len(history) for history in found] == [rounds, rounds]
            assert [e.event_id for e in found[0]] == [e.event_id for e in found[1]]
    finally:
        stop.set()
        sealer.join()
    assert stream(topics.RELATIONAL) == claim.stream


def test_who_is_erased_while_a_history_is_read_is_not_in_it(database: str, owner: MakeOwner) -> None:
    one = owner((topics.RELATIONAL, 0))
    one.write_events(relation("r1", "ann", "bob", 1), relation("r2", "ann", "cid", 2), topic=topics.RELATIONAL)
    [claim] = one.claims.values()
    erased = list[Erased]()
    with engine_of(database).connect() as connection:

        @sqlalchemy.event.listens_for(connection, "before_cursor_execute")
        def _between_rows_and_strings(_: object, __: object, statement: str, *rest: object) -> None:
            if "FROM stream_offset" in statement and not erased:
                erased.append(erasure.erase(engine_of(database), ["bob"]))

        [found] = history_reader.read(
            connection, [HistoryAsk(user="ann", before=2**62, last_n=9)], {claim.stream_id: 2}
        )
    assert [event.other for event in found] == ["cid"]


def test_a_string_that_is_missing_is_told_and_not_passed_over(database: str, owner: MakeOwner) -> None:
    one = owner()
    one.write_events(event("e1"))
    [claim] = one.claims.values()
    query(database, "DELETE FROM vocabulary WHERE value = 'click'")
    with one.connection.begin(), pytest.raises(Gone, match="vocabulary does not hold"):
        history_reader.read(one.connection, [HistoryAsk(user="ann", before=2**62, last_n=9)], {claim.stream_id: 1})


def test_strings_are_remembered_no_further_than_their_limit(
    database: str, owner: MakeOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(string_cache, "REMEMBERED", 5)
    one = owner()
    one.write_events(*(event(f"e{n}", at=n, type=f"type-{n}") for n in range(12)))
    [claim] = one.claims.values()
    with one.connection.begin():
        for n in (4, 12, 8, 12):
            ask = HistoryAsk(user="ann", before=BASE_US + n * 1_000_000, last_n=4)
            [found] = history_reader.read(one.connection, [ask], {claim.stream_id: 12})
            assert found.type.tolist() == [f"type-{m}" for m in range(n - 4, n)]
