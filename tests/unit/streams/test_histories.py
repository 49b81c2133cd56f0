"""Histories against a plain reading of the rule: what a row may see, whatever is cached and however the log is cut.

The history of a row is what comes before it in the order of the merge, strictly before its own event time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from contracts.topics import PAYMENT, RELATIONAL, USER
from learners.contract.batch import Batch
from storage.dictionary import Dictionary
from storage.engine import open_engine
from storage.log.offsets import Cursor
from streams.train.merge import LogRow, Merge
from streams.train.step_batches import StepBatches
from tests.integration.learning import Given, Place, Scribe, streams_of, undone

PLACES: list[Place] = [(PAYMENT, 0), (RELATIONAL, 0), (USER, 0)]
TICK_US = 1000


class Happening(NamedTuple):
    """An event on its way into the log."""

    topic: str
    user: str
    at: int
    other: str


users = st.sampled_from(["ann", "ann", "ann", "bob", "cem"])
happenings = st.builds(
    Happening,
    topic=st.sampled_from([USER, USER, PAYMENT, RELATIONAL]),
    user=users,
    at=st.one_of(st.just(0), st.just(0), st.just(0), st.integers(0, 3), st.integers(0, 90)),
    other=st.sampled_from(["bob", "cem", "dee", "ann"]),
)
worlds = st.lists(happenings, min_size=1, max_size=45).map(lambda drawn: in_time(drawn))
"""In the order of the log; what was drawn as a time is how late an event is."""
cuts = st.sets(st.integers(1, 44), max_size=12)
property_test = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    engine = open_engine(database, application_name="test")
    with engine.connect() as made:
        yield made


def written(connection: Connection, world: list[Happening], segments: set[int]) -> list[LogRow]:
    """The world in the log, a segment up to each cut, as the merge gives it back."""
    scribe = Scribe(connection, Dictionary(connection.engine), streams_of(*PLACES))
    waiting: dict[Place, list[Given]] = {place: [] for place in PLACES}
    at = dict.fromkeys(PLACES, 0)
    for number, one in enumerate(world):
        place = (one.topic, 0)
        other = None if one.topic == USER else one.other
        item = f"item-{number}" if one.topic != RELATIONAL and number % 3 else None
        waiting[place].append(Given(at[place], number, one.at, one.user, f"type-{number % 3}", other, item))
        at[place] += 1
        if number + 1 in segments or number + 1 == len(world):
            for each, rows in waiting.items():
                if rows:
                    scribe.write(each, rows)
                    rows.clear()
    merge = Merge({})
    merge.refresh(connection)
    merge.set_ends(scribe.ends())
    found = []
    while merge.refresh(connection) or not merge.at_ends():
        if (row := merge.pop()) is not None:
            assert isinstance(row, LogRow)
            found.append(row)
    assert len(found) == len(world)
    return found


def steps_of(rows: list[LogRow], cut: set[int]) -> list[tuple[list[LogRow], Cursor]]:
    """Steps with their start cursors."""
    steps, cursor, start = list[tuple[list[LogRow], Cursor]](), Cursor(), 0
    for end in sorted({*(at for at in cut if at < len(rows)), len(rows)}):
        steps.append((rows[start:end], dict(cursor)))
        cursor |= {row.stream_id: row.offset + 1 for row in rows[start:end]}
        start = end
    return steps


def in_time(drawn: list[Happening]) -> list[Happening]:
    """Events two ticks apart, the late ones earlier. No relation of somebody with themselves: refused at the door."""
    kept = [one for one in drawn if not (one.topic == RELATIONAL and one.other == one.user)]
    kept = kept or [Happening(USER, "ann", 0, "")]
    return [one._replace(at=max(0, 2 * n - one.at)) for n, one in enumerate(kept)]


Seen = tuple[int, int, str]
"""(event time, key, role)."""


def may_see(rows: list[LogRow], number: int, *, items_only: bool = False) -> list[Seen]:
    """The rule."""
    row, found = rows[number], []
    for other in rows[:number]:
        event = other.event
        if event.at < row.event.at and not (items_only and event.item is None):
            if other.user == row.user:
                found.append((event[:5], event.key, "actor"))
            if event.topic == RELATIONAL and event.other == row.user:
                found.append((event[:5], event.key, "counterpart"))
    return [(place[0], key, role) for place, key, role in sorted(found)]


def sees(batch: Batch, number: int) -> list[Seen]:
    """What row `number` of the batch sees."""
    context, stack = batch.context, batch.query.stack[number]
    start = int(context.offsets[stack])
    window = slice(start, start + int(batch.query.visible[number]))
    assert window.stop <= context.offsets[stack + 1]
    return list(
        zip(context.at[window].tolist(), context.key[window].tolist(), context.role[window].tolist(), strict=True)
    )


def times_before(rows: list[LogRow], number: int, *, items_only: bool) -> list[int]:
    """Event times of what came before the row in its user's sequence."""
    return [
        other.event.at
        for other in rows[:number]
        if rows[number].user in (other.user, other.event.other if other.event.topic == RELATIONAL else None)
        and not (items_only and other.event.item is None)
    ]


def same(one: Batch, two: Batch) -> None:
    """Bit for bit."""
    for part in ("context", "query", "target", "origin"):
        mine, other = getattr(one, part), getattr(two, part)
        for field in fields(mine):
            a, b = getattr(mine, field.name), getattr(other, field.name)
            if isinstance(a, np.ndarray):
                assert a.dtype == b.dtype
                assert a.tolist() == b.tolist(), f"{part}.{field.name}"
            else:
                assert a == b


@given(worlds, cuts, cuts, st.integers(1, 3), st.booleans())
@property_test
def test_each_row_sees_the_newest_of_what_it_may_see(
    connection: Connection, world: list[Happening], segments: set[int], cut: set[int], last_n: int, items_only: bool
) -> None:
    with undone(connection):
        rows = written(connection, world, segments)
        histories, number = StepBatches(last_n=last_n, resolution_us=TICK_US, items_only=items_only), 0
        for step, cursor in steps_of(rows, cut):
            batch = histories.batch(connection, step, cursor)
            for n, row in enumerate(step):
                expected, found = may_see(rows, number, items_only=items_only), sees(batch, n)
                before = times_before(rows, number, items_only=items_only)
                assert len(found) >= min(last_n, len(expected))
                assert found == expected[len(expected) - len(found) :]
                assert batch.query.now[n] == (expected[-1][0] if expected else 0)
                assert batch.target.at[n] == row.event.at
                assert batch.origin.key[n] == row.event.key
                assert batch.target.timed[n] == (bool(expected) and row.event.at not in before)
                assert batch.origin.newest is not None
                assert batch.origin.newest[n] == all(at < row.event.at for at in before)
                assert batch.query.user is not None
                assert batch.target.item is not None
                assert (batch.query.user[n], batch.target.item[n]) == (row.user, row.event.item)
                number += 1


@given(worlds, cuts, cuts, cuts, st.integers(1, 3), st.booleans())
@property_test
def test_batches_do_not_depend_on_what_is_cached_on_restarts_or_on_how_the_log_is_cut(
    connection: Connection,
    world: list[Happening],
    segments: set[int],
    other_segments: set[int],
    cut: set[int],
    last_n: int,
    items_only: bool,
) -> None:
    def fresh(cached_users: int = 1000) -> StepBatches:
        return StepBatches(last_n=last_n, resolution_us=TICK_US, items_only=items_only, cached_users=cached_users)

    with undone(connection):
        steps = steps_of(written(connection, world, segments), cut)
        through, forgetful = fresh(), fresh(1)
        batches = [through.batch(connection, *step) for step in steps]
        for step, batch in zip(steps, batches, strict=True):
            same(batch, fresh().batch(connection, *step))
            same(batch, forgetful.batch(connection, *step))
    with undone(connection):
        again = fresh()
        for step, batch in zip(steps_of(written(connection, world, other_segments), cut), batches, strict=True):
            same(batch, again.batch(connection, *step))


@pytest.mark.parametrize("last_n", [1, 2])
def test_a_late_row_sees_the_same_whatever_memory_has_forgotten(connection: Connection, last_n: int) -> None:
    """Neither may a late event stand in memory as if nothing had been forgotten behind it, nor may it matter
    for the stack that late rows share how far back memory reaches."""
    world = [Happening(USER, "ann", at, "") for at in range(100, 160, 2)]
    for at in range(103, 159):
        late = [Happening(USER, "ann", 1, ""), Happening(USER, "ann", at, ""), Happening(USER, "ann", at + 1, "")]
        with undone(connection):
            rows = written(connection, world + late, set())
            steps = steps_of(rows, {*range(1, 31), 31})
            histories = StepBatches(last_n=last_n, resolution_us=TICK_US)
            *_, last = (histories.batch(connection, *step) for step in steps)
            for n in (0, 1):
                assert sees(last, n)[-last_n:] == may_see(rows, 31 + n)[-last_n:]
            same(last, StepBatches(last_n=last_n, resolution_us=TICK_US).batch(connection, *steps[-1]))


def test_rows_far_apart_do_not_share_a_stack(connection: Connection) -> None:
    """Sharing would make each pay for all that lies between."""
    world = [Happening(USER, "ann", at, "") for at in range(1, 60)]
    with undone(connection):
        rows = written(connection, [*world, Happening(USER, "ann", 2, ""), Happening(USER, "ann", 70, "")], set())
        last = steps_of(rows, {59})[-1]
        batch = StepBatches(last_n=2, resolution_us=TICK_US).batch(connection, *last)
        assert len(batch.context) == 2
        assert np.diff(batch.context.offsets).tolist() == [1, 2]


def test_a_user_of_the_step_shares_one_stack(connection: Connection) -> None:
    world = [Happening(USER, "ann", at, "") for at in range(1, 9)]
    with undone(connection):
        rows = written(connection, world, set())
        batch = StepBatches(last_n=4, resolution_us=TICK_US).batch(connection, rows, {})
        assert len(batch.context) == 1
        assert batch.query.visible.tolist() == list(range(8))
