"""Behaviours for scoring are what sequences hold, however these are compacted, and little of a long one is opened."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts import topics
from contracts.records import Record
from storage.log.offsets import Cursor
from storage.sequences import compaction, item_events
from storage.sequences.item_events import BehaviourAsk
from storage.sequences.user_sequences import SequenceEvent
from tests.integration.feeding import engine_of, event, query
from tests.integration.owning import MakeOwner, Owner, Place, message
from tests.integration.test_storage_compaction import FOREVER, START_US, busy, compact, histories, record_of

__all__ = ["busy"]

PLACES: list[Place] = [(topics.USER, 0), (topics.PAYMENT, 0), (topics.RELATIONAL, 0)]
rows = st.tuples(
    st.sampled_from([PLACES[0], *PLACES]), st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 9)
)
work = st.lists(st.one_of(st.lists(rows, min_size=1, max_size=12), st.just("compact")), min_size=1, max_size=12)
Found = list[tuple[int, str, bool]]
"""(event time, item, whether it lies behind the cursor)."""


def read(one: Owner, *asks: BehaviourAsk) -> list[Found]:
    with one.connection.begin():
        found = item_events.read(one.connection, asks)
    return [list(zip(b.at.tolist(), b.item.tolist(), b.behind.tolist(), strict=True)) for b in found]


def expected(whole: Sequence[SequenceEvent], ask: BehaviourAsk) -> Found:
    """The rule in Python, from all events of the user."""
    seen = [one for one in whole if one.item is not None and one.at < ask.before]
    found = []
    for place, one in enumerate(seen, start=1):
        behind = ask.behind is not None and one.offset >= ask.behind.get(one.stream_id, 0)
        if behind or place > len(seen) - ask.newest:
            found.append((one.at, str(one.item), behind))
    return found


def write(one: Owner, act: Sequence[tuple[Place, str, str, int]], n: int) -> None:
    batch: dict[Place, list[Record]] = {}
    for m, (place, user, other, at) in enumerate(act):
        batch.setdefault(place, []).append(record_of(place[0], f"e{9 - m % 10}-{n}-{m}", user, other, at))
    first = {place: one.claims[place].next_offset for place in batch}
    one.write({p: [message(p[0], first[p] + k, r) for k, r in enumerate(rs)] for p, rs in batch.items()})


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(work, st.integers(2, 20), st.lists(st.integers(0, 9), min_size=3, max_size=3))
def test_behaviours_are_those_of_the_sequence_however_it_is_compacted(
    database: str, busy: Owner, monkeypatch: pytest.MonkeyPatch, plan: list[object], chunk: int, below: list[int]
) -> None:
    monkeypatch.setattr(compaction, "CHUNK_EVENTS", chunk)
    query(database, "TRUNCATE user_segment, log_segment")
    query(database, "UPDATE stream_offset SET next_offset = 0")
    one, engine = busy, engine_of(database)
    one.writer = one.claim(*PLACES)
    for n, act in enumerate(plan):
        if isinstance(act, list):
            write(one, act, n)
        else:
            compact(engine)
    cursor = {claim.stream_id: offset for claim, offset in zip(one.claims.values(), below, strict=True)}
    cursors: list[Cursor | None] = [None, {}, cursor, dict(list(cursor.items())[:1])]
    asks = [
        BehaviourAsk(user=user, before=before, newest=newest, behind=behind)
        for user, before, newest, behind in product(
            ("a", "x", "nobody"), (START_US, START_US + 4 * 10**6, FOREVER), (1, 3, 50), cursors
        )
    ]
    whole = dict(zip("ax", histories(one, *"ax"), strict=True))
    assert read(one, *asks) == [expected(whole.get(ask.user, []), ask) for ask in asks]


def test_the_end_of_a_long_row_is_enough_unless_an_instant_is_cut_or_items_are_rare(
    owner: MakeOwner, database: str
) -> None:
    """Compacted rows of 300 events: evenly spaced; the last 100 at one instant; one event in forty with an item."""
    one = owner()
    for user, last, item_every in (("even", 300, 1), ("basket", 200, 1), ("rare", 300, 40)):
        # Within an instant the order of a sequence (event ids) is not the order of the log.
        events = [
            event(f"e{(7 * n) % 300:03}", user, min(n, last), item=None if n % item_every else f"item {n}")
            for n in range(300)
        ]
        one.write_events(*events[:150])
        one.write_events(*events[150:])
    compact(engine_of(database))
    assert query(database, "SELECT events FROM user_segment WHERE stream_id = 0") == [(300,)] * 3
    users = ("even", "basket", "rare")
    asks = [
        BehaviourAsk(user=user, before=before, newest=newest)
        for user, before, newest in product(users, (START_US + 150 * 10**6, FOREVER), (1, 4, 16, 25, 70))
    ]
    whole = dict(zip(users, histories(one, *users), strict=True))
    assert read(one, *asks) == [expected(whole[ask.user], ask) for ask in asks]
