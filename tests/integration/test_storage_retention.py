"""What may go and what must stay: snapshots (rule 15) and the log (rule 12)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import chain
from pathlib import Path

import pytest
from sqlalchemy import Engine

from contracts import topics
from storage.engine import Unavailable
from storage.learning import journal, snapshot_files, snapshot_gc, snapshot_registry
from storage.learning.journal import WriterLease
from storage.log import log_retention
from storage.log.offsets import Cursor
from tests.integration.feeding import START_MS, engine_of, event, label, query, taken
from tests.integration.owning import MakeOwner, Owner, message

DAY_MS = 86_400_000
Take = Callable[..., None]
"""(id, step, parent=..., cursor=...) -> a live snapshot."""


@pytest.fixture
def engine(database: str) -> Engine:
    made: Engine = engine_of(database)
    return made


def seat_of(engine: Engine, learner: str = "markov") -> WriterLease:
    """Its learner's row is there from now on."""
    with engine.begin() as connection:
        return journal.acquire_lease(connection, learner=learner, version="1", config={})[0]


@pytest.fixture
def take(engine: Engine) -> Take:
    """Registers live snapshots of a learner."""

    def make(
        name: str, step: int, *, parent: str | None = None, cursor: Cursor | None = None, live: bool = True
    ) -> None:
        lease = seat_of(engine)
        new = snapshot_registry.NewSnapshot(
            id=name, learner="markov", branch=1, step=step, parent=parent, cursor=cursor or {1: step}, front=None
        )
        with engine.begin() as connection:
            snapshot_registry.begin(connection, lease, new)
            if live:
                snapshot_registry.make_live(connection, lease, name, sha256=f"{step:064d}", manifest={})

    return make


def collect(engine: Engine, *, keep: int) -> list[str]:
    """What is marked."""
    with engine.begin() as connection:
        snapshot_gc.mark(connection, keep=keep)
        return snapshot_gc.marked(connection)


def test_the_newest_stay_and_pinned_ones_and_the_parents_of_both(engine: Engine, take: Take) -> None:
    for step in range(1, 9):
        take(f"s{step}", step, parent=f"s{step - 1}" if step > 1 else None)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE snapshot SET pinned = true WHERE id = 's3'")
    assert collect(engine, keep=2) == ["s1", "s4", "s5"]  # s2 and s6 are parents


def test_what_is_being_written_is_left_alone_and_keeps_its_parent(engine: Engine, take: Take) -> None:
    for step in range(1, 5):
        take(f"s{step}", step, parent=f"s{step - 1}" if step > 1 else None)
    take("s5", 5, parent="s1", live=False)
    assert collect(engine, keep=1) == ["s2"]


def test_a_learner_never_takes_up_what_is_being_collected(engine: Engine, take: Take) -> None:
    for step in range(1, 4):
        take(f"s{step}", step, parent=f"s{step - 1}" if step > 1 else None)
    assert collect(engine, keep=1) == ["s1"]
    with pytest.raises(Unavailable, match="s1 is being collected"):
        take("s4", 4, parent="s1")
    with pytest.raises(Unavailable, match="s1 is being collected"):
        take("s1", 1)
    with engine.begin() as connection:
        snapshot_gc.forget(connection, ["s1", "s3"])
        assert snapshot_registry.find(connection, "s3") is not None, "only what is marked is forgotten"
    take("s1", 1)


def test_keeping_no_snapshot_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="restarts from its newest"):
        collect(engine, keep=0)


def test_strays_are_files_of_live_snapshots_that_are_not_theirs(tmp_path: Path) -> None:
    digest = "a" * 64
    for name in (f"s1.{'a' * 16}.json", f"s1.{'a' * 16}.safetensors", f"s1.{'b' * 16}.json", f"s2.{'b' * 16}.json"):
        (tmp_path / name).touch()
    (tmp_path / f".s1.{'c' * 16}.json.7").touch()
    assert [file.name for file in snapshot_files.strays(tmp_path, {"s1": digest})] == [f"s1.{'b' * 16}.json"]


# -- the log --


def write_days(one: Owner, days: int, *, topic: str = topics.USER) -> None:
    """A segment a day, two records in each."""
    for day in range(days):
        first = one.claims[topic, 0].next_offset
        made = [
            message(topic, first + n, event(f"d{day}-{n}", at=day * 86400), at_ms=START_MS + day * DAY_MS)
            for n in range(2)
        ]
        one.write({(topic, 0): made})


def trim(engine: Engine, days: float, *, window: int = 0, topic: str = topics.USER) -> log_retention.Removed:
    with engine.begin() as connection:
        policy = log_retention.Policy(keep={topic: timedelta(days=days)}, duplicate_window=window)
        return log_retention.trim(connection, policy)


def begins(database: str) -> list[tuple[int, int]]:
    """(where the log begins, where it is said to begin) of the first stream."""
    return [
        (int(first), int(said))
        for first, said in query(
            database, "SELECT min(g.first_offset), log_begins FROM log_segment g JOIN stream_offset USING (stream_id)"
            " WHERE topic = 'events.user' GROUP BY log_begins"
        )
    ]  # fmt: skip


def test_age_is_counted_behind_the_newest_record_and_not_by_the_clock(
    database: str, owner: MakeOwner, engine: Engine
) -> None:
    write_days(owner(), 10)
    assert trim(engine, 3) == log_retention.Removed(segments=6, events=12)
    assert begins(database) == [(12, 12)]
    assert trim(engine, 3).segments == 0
    assert trim(engine, 99, topic=topics.PAYMENT).segments == 0


def test_a_learner_without_a_snapshot_and_one_born_in_the_log_keep_all_of_it(
    database: str, owner: MakeOwner, engine: Engine, take: Take
) -> None:
    write_days(owner(), 10)
    seat_of(engine)
    assert trim(engine, 1).segments == 0
    take("s1", 1, cursor={1: 20})
    assert trim(engine, 1).segments == 0, "s1 is rebuilt from the beginning"


def test_the_log_stays_from_the_cursor_of_a_kept_snapshots_parent_on(
    database: str, owner: MakeOwner, engine: Engine, take: Take
) -> None:
    write_days(owner(), 10)
    take("s1", 1, cursor={1: 6})
    take("s2", 2, parent="s1", cursor={1: 18})
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE snapshot SET status = 'deleting' WHERE id = 's1'")
    assert trim(engine, 1).segments == 3
    assert begins(database) == [(6, 6)]
    query(database, "DELETE FROM snapshot WHERE id = 's1'")
    assert trim(engine, 1).segments == 5, "once the parent is gone nobody rebuilds it"
    assert begins(database) == [(16, 16)]


def test_every_learner_counts(database: str, owner: MakeOwner, engine: Engine, take: Take) -> None:
    write_days(owner(), 10)
    take("s0", 1, cursor={1: 20})
    take("s1", 2, parent="s0", cursor={1: 20})
    query(database, "DELETE FROM snapshot WHERE id = 's0'")
    seat_of(engine, "other")
    assert trim(engine, 1).segments == 0


def test_the_duplicate_window_stays_in_the_log(database: str, owner: MakeOwner, engine: Engine) -> None:
    write_days(owner(), 10)
    trim(engine, 1, window=15)
    assert begins(database) == [(4, 4)]
    again = message(topics.USER, 20, event("d3-0", at=3 * 86400), at_ms=START_MS + 10 * DAY_MS)
    [written] = owner(window=15).write({(topics.USER, 0): [again]})
    assert written.counts.duplicates == 1


def test_an_open_label_keeps_the_log_from_its_reference_time_on(
    database: str, owner: MakeOwner, engine: Engine, take: Take
) -> None:
    one = owner((topics.USER, 0), (topics.LABELS, 0))
    write_days(one, 10)
    told = message(topics.LABELS, 0, label("l1", at=4 * 86400 - 10), at_ms=START_MS + 9 * DAY_MS)
    one.write({(topics.LABELS, 0): [told]})
    take("s0", 1, cursor={1: 20})
    take("s1", 2, parent="s0", cursor={1: 20})
    query(database, "DELETE FROM snapshot WHERE id = 's0'")
    assert trim(engine, 1).segments == 4
    assert trim(engine, 1, topic=topics.LABELS).segments == 0


def test_records_of_2012_are_no_older_than_others(database: str, owner: MakeOwner, engine: Engine) -> None:
    one = owner()
    for n in range(3):
        old = message(topics.USER, n, event(f"e{n}"), at_ms=START_MS - 5000 * DAY_MS + n)
        one.write({(topics.USER, 0): [old]})
    assert trim(engine, 1).segments == 0
    taken(database)


# -- records of 2100 and of 1970 --

PER_DAY = 20
FAR_MS = 4_102_444_800_000
"""The year 2100."""


def write_far(one: Owner, days: dict[int, int], *, alone: bool = False) -> None:
    """A segment a day, twenty records in each, for ten days; on some days one record more, of the time given."""
    for day in range(10):
        times = [START_MS + day * DAY_MS + n * 60_000 for n in range(PER_DAY)]
        parts = [times[:7], [days[day]], times[7:]] if day in days else [times]
        for part in parts if alone else [list(chain(*parts))]:
            first = one.claims[topics.USER, 0].next_offset
            made = [
                message(topics.USER, first + n, event(f"d{first + n}", at=(ms - START_MS) / 1000), at_ms=ms)
                for n, ms in enumerate(part)
            ]
            one.write({(topics.USER, 0): made})


@pytest.mark.parametrize("alone", [False, True], ids=["among others", "a segment of its own"])
@pytest.mark.parametrize("day", [0, 4, 9])
@pytest.mark.parametrize("record_ms", [FAR_MS, 0], ids=["2100", "1970"])
def test_one_false_record_makes_no_others_old_and_keeps_none(
    database: str, owner: MakeOwner, engine: Engine, day: int, record_ms: int, alone: bool
) -> None:
    write_far(owner(), {day: record_ms}, alone=alone)
    while trim(engine, 3).segments:
        pass
    first_kept = 6 * PER_DAY + (day < 6)
    assert begins(database) == [(first_kept, first_kept)]


def test_what_lies_ahead_of_its_stream_keeps_no_log_for_the_sake_of_an_open_label(
    database: str, owner: MakeOwner, engine: Engine, take: Take
) -> None:
    one = owner((topics.USER, 0), (topics.LABELS, 0))
    write_far(one, {2: FAR_MS})
    one.write({(topics.LABELS, 0): [message(topics.LABELS, 0, label("l1", at=5 * 86400), at_ms=START_MS + 9 * DAY_MS)]})
    take("s0", 1, cursor={1: 201})
    take("s1", 2, parent="s0", cursor={1: 201})
    query(database, "DELETE FROM snapshot WHERE id = 's0'")
    trim(engine, 1)
    assert begins(database) == [(5 * PER_DAY + 1, 5 * PER_DAY + 1)]


def test_the_present_ahead_of_the_past_stays_while_the_past_comes_in(
    database: str, owner: MakeOwner, engine: Engine
) -> None:
    """The README's order: today's records first, then years of them from a file. Both are true."""
    one = owner()
    today = [message(topics.USER, n, event(f"t{n}"), at_ms=START_MS + n) for n in range(40)]
    one.write({(topics.USER, 0): today})
    for day in range(20):
        first, at_ms = one.claims[topics.USER, 0].next_offset, START_MS - (900 - 10 * day) * DAY_MS
        made = [message(topics.USER, first + n, event(f"p{first + n}", at=at_ms / 1000 - START_MS / 1000), at_ms=at_ms)
                for n in range(20)]  # fmt: skip
        one.write({(topics.USER, 0): made})
    assert trim(engine, 30).segments == 0


def test_a_log_that_ends_in_9999_is_trimmed_like_any_other(database: str, owner: MakeOwner, engine: Engine) -> None:
    one, last_ms = owner(), 253_402_300_799_999
    for n in range(3):
        at_ms = last_ms - (2 - n) * DAY_MS
        made = [message(topics.USER, 5 * n + i, event(f"e{n}-{i}", at=(at_ms - START_MS) / 1000), at_ms=at_ms)
                for i in range(5)]  # fmt: skip
        one.write({(topics.USER, 0): made})
    assert trim(engine, 1.5).segments == 1
    assert trim(engine, 10**6).segments == 0
