"""The merge against the rule in plain words (protocol, rule 13)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from contracts.topics import PAYMENT, RELATIONAL, USER
from storage import log
from storage.engine import open_engine
from storage.vocabulary import Vocabulary
from streams.merge import LogRow, Merge, runs_of
from tests.integration.learning import Given, Place, Scribe, streams_of, undone

PLACES: list[Place] = [(PAYMENT, 0), (RELATIONAL, 2), (USER, 0), (USER, 1)]
Order = tuple[int, str, int, int]
"""(record time, topic, partition, offset)."""
Log = dict[Place, list[list[tuple[int, int]]]]
"""Place -> segments -> (offsets skipped before it, record time)."""

property_test = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
segments = st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), max_size=4), max_size=4)
logs: st.SearchStrategy[Log] = st.fixed_dictionaries(dict.fromkeys(PLACES, segments))


class Model:
    """The rule: the smallest of the heads, once no stream that is waited for is without one."""

    def __init__(self) -> None:
        self.queues: dict[Place, deque[Order]] = {place: deque() for place in PLACES}
        self.not_waited_for: set[Place] = set()

    def take(self) -> Order | None:
        if any(not queue and place not in self.not_waited_for for place, queue in self.queues.items()):
            return None
        heads = [queue[0] for queue in self.queues.values() if queue]
        if not heads:
            return None
        row = min(heads)
        self.queues[row[1], row[2]].popleft()
        return row


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    engine = open_engine(database, application_name="test")
    with engine.connect() as made:
        yield made


def scribe_of(connection: Connection) -> Scribe:
    return Scribe(connection, Vocabulary(connection.engine), streams_of(*PLACES))


def write(scribe: Scribe, place: Place, rows: list[tuple[int, int]], *, tail: int = 0) -> list[Order]:
    """One segment; `tail` offsets without an accepted row at its end."""
    at, made = scribe.next[place], []
    for skipped, record_at in rows:
        made.append(Given(at + skipped, record_at))
        at += skipped + 1
    if at + tail > scribe.next[place]:
        scribe.write(place, made, next_offset=at + tail, known=False)
    return [(row.record_at, *place, row.offset) for row in made]


def write_all(scribe: Scribe, given: Log) -> list[Order]:
    return [
        row
        for place, parts in given.items()
        for n, rows in enumerate(parts)
        for row in write(scribe, place, rows, tail=n % 2)
    ]


def take(merge: Merge, connection: Connection) -> LogRow | None:
    merge.refresh(connection)
    row = merge.pop()
    assert row is None or isinstance(row, LogRow)
    return row


def take_all(merge: Merge, connection: Connection, ends: dict[int, int]) -> list[LogRow]:
    """Everything up to the ends."""
    merge.refresh(connection)
    merge.set_ends(ends)
    found = []
    while (row := take(merge, connection)) is not None:
        found.append(row)
    assert merge.at_ends(), "nothing is missing, and yet it waits"
    return found


def in_order(rows: list[Order]) -> list[Order]:
    """What the model makes of streams that are all there."""
    model = Model()
    for row in sorted(rows, key=lambda row: row[3]):
        model.queues[row[1], row[2]].append(row)
    model.not_waited_for = set(PLACES)
    return [taken for _ in rows if (taken := model.take()) is not None]


actions: st.SearchStrategy[list[tuple[Any, ...]]] = st.lists(
    st.one_of(
        st.tuples(
            st.just("write"),
            st.sampled_from(PLACES),
            st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), max_size=4),
            st.integers(0, 2),
        ),
        st.tuples(st.just("take"), st.integers(1, 8)),
        st.tuples(st.just("pass by")),
        st.tuples(st.just("restart")),
        st.tuples(st.just("retire"), st.sampled_from(PLACES)),
    ),
    max_size=25,
)


some = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=1, max_size=4)


@given(st.fixed_dictionaries(dict.fromkeys(PLACES, some)), actions)
@property_test
def test_whatever_arrives_when_the_rows_come_in_the_order_of_the_rule(
    connection: Connection, first: dict[Place, list[tuple[int, int]]], actions: list[tuple[Any, ...]]
) -> None:
    with undone(connection):
        scribe, model, merge, retired = scribe_of(connection), Model(), Merge({}), set[Place]()
        beginning = [("write", place, rows, 0) for place, rows in first.items()]
        for action in [*beginning, ("take", 3), *actions, ("pass by",), ("take", 8)]:
            match action:
                case ("write", place, rows, tail) if place not in retired:
                    new = write(scribe, place, rows, tail=tail)
                    model.queues[place].extend(new)
                    if new and place not in retired:
                        model.not_waited_for.discard(place)
                case ("take", times):
                    for _ in range(times):
                        expected, row = model.take(), take(merge, connection)
                        assert (row and row[:4]) == expected
                case ("pass by",):
                    merge.refresh(connection)
                    merge.pass_by(merge.behind())
                    model.not_waited_for |= {place for place, queue in model.queues.items() if not queue}
                case ("restart",):
                    merge, model.not_waited_for = Merge(merge.cursor), set(retired)
                case ("retire", place) if place not in retired:
                    scribe.retire(place)
                    retired.add(place)
                    model.not_waited_for.add(place)


@given(logs, st.data())
@property_test
def test_a_restart_from_the_cursor_at_any_row_gives_the_same_rest(
    connection: Connection, given: Log, data: st.DataObject
) -> None:
    with undone(connection):
        scribe = scribe_of(connection)
        expected = in_order(write_all(scribe, given))
        first = Merge({})
        found = take_all(first, connection, scribe.ends())
        assert [row[:4] for row in found] == expected
        cut = data.draw(st.integers(0, len(found)))
        again = Merge({})
        again.refresh(connection)
        again.set_ends(scribe.ends())
        before = [take(again, connection) for _ in range(cut)]
        assert before + take_all(Merge(again.cursor), connection, scribe.ends()) == found


@given(logs, st.data())
@property_test
def test_nothing_at_or_beyond_an_end_is_taken(connection: Connection, given: Log, data: st.DataObject) -> None:
    with undone(connection):
        scribe = scribe_of(connection)
        rows = write_all(scribe, given)
        ends = {place: data.draw(st.integers(0, scribe.next[place]), label=str(place)) for place in PLACES}
        found = take_all(Merge({}), connection, {scribe.stream_id(place): end for place, end in ends.items()})
        assert [row[:4] for row in found] == in_order([row for row in rows if row[3] < ends[row[1], row[2]]])


@given(logs, st.lists(st.integers(1, 6), min_size=1))
@property_test
def test_journalled_runs_give_the_rows_again(connection: Connection, given: Log, sizes: list[int]) -> None:
    with undone(connection):
        scribe = scribe_of(connection)
        write_all(scribe, given)
        first, again, left = Merge({}), Merge({}), sizes * 100
        rows = take_all(first, connection, scribe.ends())
        while rows:
            step, rows = rows[: left[0]], rows[left.pop(0) :]
            assert [row for run in runs_of(step) for row in again.pop_run(connection, run)] == step
        assert {stream: at for stream, at in again.cursor.items() if at} == {
            stream: at for stream, at in first.cursor.items() if at
        }


def test_a_stream_without_news_is_waited_for_until_it_is_passed_by_and_comes_back(connection: Connection) -> None:
    with undone(connection):
        scribe = Scribe(connection, Vocabulary(connection.engine), streams_of(PLACES[2], PLACES[3]))
        write(scribe, PLACES[2], [(0, 5), (0, 9)])
        merge = Merge({})
        assert merge.refresh(connection)
        assert merge.pop() is None
        assert merge.behind() == [scribe.stream_id(PLACES[3])]
        merge.pass_by(merge.behind())
        assert merge.pop() is not None
        write(scribe, PLACES[3], [(0, 6)])
        assert merge.refresh(connection)
        assert merge.idle == set()
        row = merge.pop()
        assert row is not None
        assert row.record_at == 6
        assert merge.pop() is None, "it yielded, so it is waited for again"


def test_what_is_already_in_memory_is_no_news(connection: Connection) -> None:
    """Otherwise `train` would look again at once, for ever, and pass nobody by."""
    with undone(connection):
        scribe = Scribe(connection, Vocabulary(connection.engine), streams_of(PLACES[2], PLACES[3]))
        write(scribe, PLACES[2], [(0, 5)])
        merge = Merge({})
        assert merge.refresh(connection)
        assert not merge.refresh(connection)
        assert merge.has_rows()


def test_a_stream_that_yielded_after_a_repetition_is_waited_for(connection: Connection) -> None:
    with undone(connection):
        scribe = Scribe(connection, Vocabulary(connection.engine), streams_of(PLACES[2]))
        write(scribe, PLACES[2], [(0, 5), (0, 6)])
        merge, stream = Merge({}), scribe.stream_id(PLACES[2])
        merge.pop_run(connection, (stream, 0, 1))
        merge.idle = {stream}  # as the journal says of the moment when the step was gathered
        assert merge.pop() is not None
        assert merge.behind() == [stream]


def test_a_retired_stream_is_drained_and_then_waited_for_no_more(connection: Connection) -> None:
    with undone(connection):
        scribe = Scribe(connection, Vocabulary(connection.engine), streams_of(PLACES[2], PLACES[3]))
        write(scribe, PLACES[2], [(0, 1), (0, 7)], tail=2)
        write(scribe, PLACES[3], [(0, 3), (0, 8)])
        scribe.retire(PLACES[2])
        merge = Merge({})
        found = [row.record_at for _ in range(4) if (row := take(merge, connection)) is not None]
        assert found == [1, 3, 7, 8]
        merge.refresh(connection)
        assert merge.behind() == [scribe.stream_id(PLACES[3])]


def test_a_slice_of_many_rows_goes_on_where_it_ended(connection: Connection) -> None:
    with undone(connection):
        scribe = Scribe(connection, Vocabulary(connection.engine), streams_of(PLACES[2]))
        write(scribe, PLACES[2], [(0, n) for n in range(2500)])
        found = take_all(Merge({}), connection, scribe.ends())
        assert [row.offset for row in found] == list(range(2500))


def test_a_missing_segment_is_refused(connection: Connection) -> None:
    with undone(connection):
        scribe = Scribe(connection, Vocabulary(connection.engine), streams_of(PLACES[2]))
        for n in range(3):
            write(scribe, PLACES[2], [(0, n)])
        connection.execute(text("DELETE FROM log_segment WHERE first_offset = 1"))
        merge = Merge({})
        assert take(merge, connection) is not None
        with pytest.raises(log.BrokenChain):
            take(merge, connection)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_run_whose_rows_are_gone_is_refused(connection: Connection, missing: int) -> None:
    with undone(connection):
        scribe = Scribe(connection, Vocabulary(connection.engine), streams_of(PLACES[2]))
        for n in range(3):
            write(scribe, PLACES[2], [(0, n)])
        rows = {"rows": None, "offset": missing}
        if missing == 1:
            connection.execute(text("DELETE FROM log_segment WHERE first_offset = 1"))
        else:
            connection.execute(text("UPDATE log_segment SET rows = :rows WHERE first_offset = :offset"), rows)
        with pytest.raises(log.BrokenChain, match="stream"):
            Merge({}).pop_run(connection, (scribe.stream_id(PLACES[2]), 0, 3))


def test_a_run_of_a_stream_nobody_knows_is_refused(connection: Connection) -> None:
    with undone(connection), pytest.raises(log.BrokenChain, match="offsets 0 to 3"):
        Merge({}).pop_run(connection, (4711, 0, 3))
