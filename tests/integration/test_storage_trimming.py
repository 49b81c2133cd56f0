"""Retention of sequences (rule 12): what goes, what stays, and that no history within the log's reach changes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from random import Random

import pytest
from sqlalchemy import Engine

from contracts import topics
from storage.log import log_retention, offsets
from storage.privacy import erasure
from storage.sequences import compaction, sequence_retention, user_sequences
from storage.sequences.sequence_retention import SequencePolicy, Trimmed
from storage.sequences.user_sequences import HistoryAsk
from tests.integration.feeding import START_MS, engine_of, event, payment, query
from tests.integration.owning import MakeOwner, Owner, message

DAY_S = 86_400
DAYS = 12
KEPT = 8


@pytest.fixture(autouse=True)
def short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "CHUNK_EVENTS", 4)


@pytest.fixture
def engine(database: str) -> Engine:
    made: Engine = engine_of(database)
    return made


def write_days(one: Owner, days: range, *, topic: str = topics.USER, per_day: int = 3, late: int | None = None) -> None:
    """A segment a day: so many events of "ann", fewer of "bob"; `late`: another one of ann's, of that day."""
    for day in days:
        first = one.claims[topic, 0].next_offset
        made = event if topic == topics.USER else payment
        given = [made(f"{topic}-{day}-{n}", "ann", day * DAY_S + n) for n in range(per_day)]
        given += [made(f"{topic}-{day}-b", "bob", day * DAY_S)] if day % 4 == 0 else []
        given += [made(f"{topic}-late-{day}", "ann", late * DAY_S + 7)] if late is not None else []
        at_ms = START_MS + day * DAY_S * 1000
        one.write({(topic, 0): [message(topic, first + n, value, at_ms=at_ms) for n, value in enumerate(given)]})


def compact(engine: Engine) -> None:
    with engine.begin() as connection:
        compaction.compact(connection, [due.user_id for due in compaction.due(connection, rows=1, limit=100)])


def trim_log(engine: Engine, days: float, *names: str) -> None:
    policy = log_retention.Policy(keep=dict.fromkeys(names or [topics.USER], timedelta(days=days)), duplicate_window=0)
    with engine.begin() as connection:
        assert log_retention.trim(connection, policy).segments > 0


def trim(engine: Engine, days: float = 3, *, keep: int = KEPT, topic: str = topics.USER) -> Trimmed:
    with engine.begin() as connection:
        return sequence_retention.trim(connection, SequencePolicy(keep={topic: timedelta(days=days)}, events=keep))


def left(database: str, user: str) -> int:
    return int(query(database, "SELECT count(*) FROM user_event WHERE user_id = %s", user)[0][0])


def test_old_events_beyond_the_newest_go_once_the_log_has_let_them_go(
    database: str, owner: MakeOwner, engine: Engine
) -> None:
    write_days(owner(), range(DAYS))
    compact(engine)
    assert trim(engine) == Trimmed(), "the log holds all of it"
    trim_log(engine, 3)
    gone = trim(engine)
    assert gone == Trimmed(users=1, events=16)
    assert left(database, "ann") == 3 * DAYS - 16
    assert left(database, "bob") == 3, "fewer than stay of each user"
    assert trim(engine) == Trimmed()
    with engine.begin() as connection:
        found = sequence_retention.missing(connection, "ann")
        assert found is not None
        assert (found.events, found.last_at.timestamp() * 1000) == (16, START_MS + (5 * DAY_S + 0) * 1000)
        assert sequence_retention.missing(connection, "bob") is None
    write_days(owner(), range(DAYS, DAYS + 6))
    compact(engine)
    trim_log(engine, 3)
    more = trim(engine)
    with engine.begin() as connection:
        later = sequence_retention.missing(connection, "ann")
        assert later is not None
        assert more.events > 0
        assert later.events == 16 + more.events
        assert later.last_at > found.last_at


def test_topics_not_named_keep_theirs(database: str, owner: MakeOwner, engine: Engine) -> None:
    one = owner((topics.USER, 0), (topics.PAYMENT, 0))
    write_days(one, range(DAYS), topic=topics.PAYMENT)
    compact(engine)
    trim_log(engine, 3, topics.PAYMENT)
    assert trim(engine) == Trimmed()
    assert trim(engine, topic=topics.PAYMENT).events == 16


def test_no_history_that_the_log_can_still_ask_for_changes(database: str, owner: MakeOwner, engine: Engine) -> None:
    one, random = owner((topics.USER, 0), (topics.PAYMENT, 0)), Random(3)
    for day in range(DAYS):
        topic = random.choice([topics.USER, topics.PAYMENT])
        write_days(one, range(day, day + 1), topic=topic, late=max(0, day - random.randrange(3)))
        compact(engine) if random.random() < 0.6 else None
    compact(engine)
    trim_log(engine, 2, topics.USER, topics.PAYMENT)
    ((since,),) = query(database, "SELECT min(first_event_at) FROM log_segment")
    before = histories(engine, int(since.timestamp()))
    policy = SequencePolicy(keep=dict.fromkeys([topics.USER, topics.PAYMENT], timedelta(days=1)), events=KEPT)
    with engine.begin() as connection:
        assert sequence_retention.trim(connection, policy).events > 0
    assert histories(engine, int(since.timestamp())) == before


def histories(engine: Engine, since_s: int) -> list[object]:
    """Ann's, in every length up to what stays, of every instant from a time on."""
    asks = [
        HistoryAsk(user="ann", before=(second // 3600 * 3600 + extra) * 1_000_000, last_n=n)
        for second in range(since_s, START_MS // 1000 + DAYS * DAY_S, DAY_S // 4)
        for extra in (0, 1, 2, 3, 8)
        for n in (1, 5, KEPT)
        if second // 3600 * 3600 + extra >= since_s
    ]
    with engine.begin() as connection:
        cursor = offsets.watermark(connection)
        found = [list(history) for some in (False, True) for history in user_sequences.histories(
            connection, asks, cursor, items_only=some)]  # fmt: skip
    assert any(len(history) == KEPT for history in found)
    return list(found)


def test_a_late_record_that_comes_meanwhile_stops_it(
    database: str, owner: MakeOwner, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = owner()
    write_days(one, range(DAYS))
    compact(engine)
    trim_log(engine, 3)
    lock: Callable[..., None] = compaction.lock

    def comes_late(*given: object) -> None:
        write_days(one, range(DAYS, DAYS + 1), late=1)
        lock(*given)

    monkeypatch.setattr(compaction, "lock", comes_late)
    with pytest.raises(sequence_retention.Overtaken):
        trim(engine)
    assert query(database, "SELECT count(*) FROM trimmed_sequence") == [(0,)]
    assert left(database, "ann") == 3 * DAYS + 4


def test_what_is_told_of_a_user_goes_with_the_user(database: str, owner: MakeOwner, engine: Engine) -> None:
    write_days(owner(), range(DAYS))
    compact(engine)
    trim_log(engine, 3)
    trim(engine)
    erasure.erase(engine, ["ann"])
    assert query(database, "SELECT count(*) FROM trimmed_sequence") == [(0,)]


def test_one_event_of_2100_makes_no_others_old(database: str, owner: MakeOwner, engine: Engine) -> None:
    """In a partition of its own or among others: no state goes for it that would not have gone."""
    one, far_ms = owner((topics.USER, 0), (topics.USER, 1)), 4_102_444_800_000
    write_days(one, range(DAYS))
    far = event("far", "zoe", (far_ms - START_MS) / 1000)
    one.write({(topics.USER, 1): [message(topics.USER, 0, far, at_ms=far_ms)]})
    first = one.claims[topics.USER, 0].next_offset
    far = event("far-0", "zoe", (far_ms - START_MS) / 1000)
    one.write({(topics.USER, 0): [message(topics.USER, first, far, at_ms=far_ms)]})
    write_days(one, range(DAYS, DAYS + 1))
    compact(engine)
    trim_log(engine, 3)
    assert trim(engine, 99) == Trimmed(), "nothing is 99 days old"
    assert trim(engine, 3).events == 16
    assert left(database, "zoe") == 2
