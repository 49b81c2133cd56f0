"""The merge against the rule in plain words (protocol, rule 13)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from contracts.topics import PAYMENT, RELATIONAL, USER
from storage.dictionary import Dictionary
from storage.engine import open_engine
from storage.log import event_log
from streams.train.merge import LogRow, Merge, runs_of
from tests.integration.learning import Given, Place, Scribe, streams_of, undone

PLACES: list[Place] = [(PAYMENT, 0), (RELATIONAL, 2), (USER, 0), (USER, 1)]
FAR = 4_102_444_800
"""The year 2100, in seconds."""
Order = tuple[int, str, int, int]
"""(record time, topic, partition, offset)."""
Log = dict[Place, list[list[tuple[int, int]]]]
"""Place -> segments -> (offsets skipped before it, record time)."""

property_test = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
times = st.one_of(st.integers(0, 12), st.just(FAR))
segments = st.lists(st.lists(st.tuples(st.integers(0, 2), times), max_size=8), max_size=4)
logs: st.SearchStrategy[Log] = st.fixed_dictionaries(dict.fromkeys(PLACES, segments))


def effective(rows: Sequence[Order]) -> int:
    """Of the first of a stream's rows, all of which are there: min(record time, q33, q1024)."""
    times = [row[0] for row in rows[:1024]]
    quantiles = [sorted(times[:k])[(len(times[:k]) - 1) // 10] for k in (33, 1024)]
    return min(times[0], *quantiles)


class Model:
    """The rule: the head of the smallest effective time, once no stream that is waited for is without one."""

    def __init__(self) -> None:
        self.queues: dict[Place, deque[Order]] = {place: deque() for place in PLACES}
        self.not_waited_for: set[Place] = set()

    def take(self) -> Order | None:
        if any(not queue and place not in self.not_waited_for for place, queue in self.queues.items()):
            return None
        heads = [(effective(list(queue)), *queue[0][1:]) for queue in self.queues.values() if queue]
        if not heads:
            return None
        return self.queues[min(heads)[1:3]].popleft()


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    engine = open_engine(database, application_name="test")
    with engine.connect() as made:
        yield made


def scribe_of(connection: Connection) -> Scribe:
    return Scribe(connection, Dictionary(connection.engine), streams_of(*PLACES))


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
            st.lists(st.tuples(st.integers(0, 2), times), max_size=8),
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
                    merge.mark_idle(merge.behind())
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
        scribe = Scribe(connection, Dictionary(connection.engine), streams_of(PLACES[2], PLACES[3]))
        write(scribe, PLACES[2], [(0, 5), (0, 9)])
        merge = Merge({})
        assert merge.refresh(connection)
        assert merge.pop() is None
        assert merge.behind() == [scribe.stream_id(PLACES[3])]
        merge.mark_idle(merge.behind())
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
        scribe = Scribe(connection, Dictionary(connection.engine), streams_of(PLACES[2], PLACES[3]))
        write(scribe, PLACES[2], [(0, 5)])
        merge = Merge({})
        assert merge.refresh(connection)
        assert not merge.refresh(connection)
        assert merge.has_rows()


def test_a_stream_that_yielded_after_a_repetition_is_waited_for(connection: Connection) -> None:
    with undone(connection):
        scribe = Scribe(connection, Dictionary(connection.engine), streams_of(PLACES[2]))
        write(scribe, PLACES[2], [(0, 5), (0, 6)])
        merge, stream = Merge({}), scribe.stream_id(PLACES[2])
        merge.pop_run(connection, (stream, 0, 1))
        merge.idle = {stream}  # as the journal says of the moment when the step was gathered
        assert merge.pop() is not None
        assert merge.behind() == [stream]


def test_a_retired_stream_is_drained_and_then_waited_for_no_more(connection: Connection) -> None:
    with undone(connection):
        scribe = Scribe(connection, Dictionary(connection.engine), streams_of(PLACES[2], PLACES[3]))
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
        scribe = Scribe(connection, Dictionary(connection.engine), streams_of(PLACES[2]))
        write(scribe, PLACES[2], [(0, n) for n in range(2500)])
        found = take_all(Merge({}), connection, scribe.ends())
        assert [row.offset for row in found] == list(range(2500))


def test_a_missing_segment_is_refused(connection: Connection) -> None:
    with undone(connection):
        scribe = Scribe(connection, Dictionary(connection.engine), streams_of(PLACES[2]))
        for n in range(3):
            write(scribe, PLACES[2], [(0, n)])
        connection.execute(text("DELETE FROM log_segment WHERE first_offset = 1"))
        merge = Merge({})
        with pytest.raises(event_log.BrokenChain):
            take(merge, connection)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_run_whose_rows_are_gone_is_refused(connection: Connection, missing: int) -> None:
    with undone(connection):
        scribe = Scribe(connection, Dictionary(connection.engine), streams_of(PLACES[2]))
        for n in range(3):
            write(scribe, PLACES[2], [(0, n)])
        rows = {"rows": None, "offset": missing}
        if missing == 1:
            connection.execute(text("DELETE FROM log_segment WHERE first_offset = 1"))
        else:
            connection.execute(text("UPDATE log_segment SET rows = :rows WHERE first_offset = :offset"), rows)
        with pytest.raises(event_log.BrokenChain, match="stream"):
            Merge({}).pop_run(connection, (scribe.stream_id(PLACES[2]), 0, 3))


def test_a_run_of_a_stream_nobody_knows_is_refused(connection: Connection) -> None:
    with undone(connection), pytest.raises(event_log.BrokenChain, match="offsets 0 to 3"):
        Merge({}).pop_run(connection, (4711, 0, 3))


# -- far rows, and the past behind the present (protocol, rule 13: what one false clock may cost) --

THREE: list[Place] = [(USER, 0), (USER, 1), (USER, 2)]
EACH = 3000
"""Rows of each of the three partitions, one about every ten seconds: 30,000 s of world."""


def world(trouble: str, each: int = EACH) -> dict[Place, list[int]]:
    """Record times in seconds, by partition."""
    rng = np.random.default_rng(7)
    made = {place: np.sort(rng.integers(0, 10 * each, each)) for place in THREE}
    head = made[THREE[0]]
    match trouble:
        case "one row of 2100":
            made[THREE[0]] = np.concatenate([head[:100], [FAR], head[100:]])
        case "40 live rows, then the past":
            made[THREE[0]] = np.concatenate([np.arange(40) + 20 * each, head])
        case "one in 50 is 3,000 s old":
            for times in made.values():
                times[rng.random(each) < 0.02] -= 3000
    return {place: times.tolist() for place, times in made.items()}


def far(time: int) -> bool:
    """Rows that are no part of the three partitions' world."""
    return time >= 20 * EACH


def behind(times: Iterable[int]) -> tuple[int, int]:
    """(rows taken behind a newer good one, the longest way behind in seconds)."""
    newest, found = None, []
    for time in times:
        if not far(time):
            found.append(0 if newest is None else max(0, newest - time))
            newest = time if newest is None else max(newest, time)
    return sum(way > 0 for way in found), max(found)


def write_world(scribe: Scribe, given: dict[Place, list[int]], *, segment: int = 700) -> None:
    for place, times in given.items():
        for first in range(0, len(times), segment):
            write(scribe, place, [(0, time) for time in times[first : first + segment]])


def order_of(connection: Connection, given: dict[Place, list[int]]) -> list[Order]:
    """What a bounded run makes of it."""
    with undone(connection):
        scribe = Scribe(connection, Dictionary(connection.engine), streams_of(*THREE))
        write_world(scribe, given)
        return [row[:4] for row in take_all(Merge({}), connection, scribe.ends())]


def by_record_time(given: dict[Place, list[int]]) -> list[int]:
    """What the heads' bare record times would make of it."""
    queues = {place: deque(times) for place, times in given.items()}
    found = []
    while heads := [(queue[0], place) for place, queue in queues.items() if queue]:
        found.append(queues[min(heads)[1]].popleft())
    return found


def test_one_far_head_blocks_nobody(connection: Connection) -> None:
    given = world("one row of 2100")
    rows, worst = behind(by_record_time(given))
    assert rows > 2800, "the trouble that this is about"
    assert worst > 28_000
    rows, worst = behind(row[0] for row in order_of(connection, given))
    assert rows <= 10
    assert worst <= 120


def test_readme_order_has_few_late_rows(connection: Connection) -> None:
    """Today's first events, and then the past of the same partition."""
    given = world("40 live rows, then the past")
    assert behind(by_record_time(given))[0] > 2900, "the trouble that this is about"
    rows, worst = behind(row[0] for row in order_of(connection, given))
    assert rows <= 150
    assert worst <= 1500


def test_old_rows_draw_few_others_forward(connection: Connection) -> None:
    """The smallest of the next 1,024 would take 6,065 rows behind a newer one for 2 % that are late."""
    given = world("one in 50 is 3,000 s old")
    before, after = behind(by_record_time(given))[0], behind(row[0] for row in order_of(connection, given))[0]
    assert 150 < before < 220
    assert after < 2 * before + 50


def test_rows_in_order_are_taken_in_order(connection: Connection) -> None:
    given = world("none")
    assert behind(row[0] for row in order_of(connection, given)) == (0, 0)


@pytest.fixture
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a log of a few hundred rows is many windows long."""
    monkeypatch.setattr("streams.train.lookahead.WINDOWS", (5, 40))
    for name in ("streams.train.lookahead.LONGEST", "streams.train.merge.LONGEST"):
        monkeypatch.setattr(name, 40)
    monkeypatch.setattr("streams.train.merge._READ_AHEAD", 80)


@pytest.mark.usefixtures("short_windows")
@pytest.mark.parametrize("trouble", ["one row of 2100", "40 live rows, then the past", "one in 50 is 3,000 s old"])
def test_the_order_is_the_cursor_s(connection: Connection, trouble: str) -> None:
    """A restart at each row goes on as one run did: nothing but the cursor decides."""
    given = world(trouble, each=170)
    with undone(connection):
        scribe = Scribe(connection, Dictionary(connection.engine), streams_of(*THREE))
        write_world(scribe, given, segment=33)
        rows = take_all(Merge({}), connection, scribe.ends())
        merge = Merge({})
        for expected in rows:
            merge = Merge(merge.cursor)
            merge.refresh(connection)
            merge.set_ends(scribe.ends())
            assert take(merge, connection) == expected
        merge, found = Merge({}), list[LogRow]()
        merge.refresh(connection)
        merge.set_ends(scribe.ends())
        while len(found) < len(rows):  # as `train` does: it looks for more only when nothing can be taken
            if isinstance(row := merge.pop(), LogRow):
                found.append(row)
            else:
                merge.refresh(connection)
        assert found == rows


def test_a_restart_far_into_a_long_log_goes_on_as_one_run_did(connection: Connection) -> None:
    given = world("40 live rows, then the past")
    with undone(connection):
        scribe = Scribe(connection, Dictionary(connection.engine), streams_of(*THREE))
        write_world(scribe, given)
        rows = take_all(Merge({}), connection, scribe.ends())
        cursor = dict.fromkeys(scribe.ends(), 0)
        for number, row in enumerate(rows):
            if number % 311 == 0:
                again = Merge(cursor)
                again.refresh(connection)
                again.set_ends(scribe.ends())
                assert [take(again, connection) for _ in range(20)] == rows[number : number + 20]
            cursor[row.stream_id] = row.offset + 1


@pytest.mark.usefixtures("short_windows")
@given(st.lists(st.tuples(st.sampled_from(THREE), st.integers(1, 50), st.integers(0, 60)), max_size=15))
@example([(THREE[0], 1, 0), (THREE[1], 50, 0), (THREE[2], 50, 60)])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_bounded_run_gives_one_order_at_whatever_pace_ingest_brings_it(
    connection: Connection, pace: list[tuple[Place, int, int]]
) -> None:
    """It waits until all that a row's effective time depends on is there."""
    given = world("none", each=110)
    given[THREE[0]].insert(0, FAR)
    with undone(connection):
        scribe = Scribe(connection, Dictionary(connection.engine), streams_of(*THREE))
        write_world(scribe, given)
        expected, ends = take_all(Merge({}), connection, scribe.ends()), scribe.ends()
    with undone(connection):
        scribe, left = Scribe(connection, Dictionary(connection.engine), streams_of(*THREE)), dict(given)
        number = dict(zip(ends, scribe.ends(), strict=True))
        merge, found = Merge({}), list[LogRow]()
        merge.refresh(connection)
        for place, count, takes in [*pace, *((place, EACH, EACH) for place in THREE)]:
            write(scribe, place, [(0, time) for time in left[place][:count]])
            left[place] = left[place][count:]
            merge.refresh(connection)
            merge.set_ends({number[stream]: end for stream, end in ends.items()})
            until = len(found) + takes
            while len(found) < until and (row := take(merge, connection)) is not None:
                found.append(row)
        assert [row[:4] for row in found] == [row[:4] for row in expected]


def test_live_rows_are_taken_as_far_as_they_are_there(connection: Connection) -> None:
    """Nobody waits for a thousand rows that have not been sent yet."""
    with undone(connection):
        scribe = Scribe(connection, Dictionary(connection.engine), streams_of(PLACES[2], PLACES[3]))
        write(scribe, PLACES[2], [(0, FAR), (0, 7)])
        write(scribe, PLACES[3], [(0, 5), (0, 9)])
        merge = Merge({})
        found = [row.record_at for _ in range(3) if (row := take(merge, connection)) is not None]
        assert found == [5, FAR, 7], "2100 stands before 7 in its partition, so it is taken with 7"


def test_what_follows_in_the_log_is_looked_at_before_a_row_is_taken(connection: Connection) -> None:
    """Segments are as long as batches were: where they end says nothing."""
    with undone(connection):
        scribe = Scribe(connection, Dictionary(connection.engine), streams_of(PLACES[2], PLACES[3]))
        for time in (FAR, 3, 4, 5):
            write(scribe, PLACES[2], [(0, time)])
        write(scribe, PLACES[3], [(0, n) for n in (1, 2, 6, 7)])
        merge = Merge({})
        found = [row.record_at for _ in range(8) if (row := take(merge, connection)) is not None]
        assert found == [1, 2, FAR, 3, 4, 5]


def test_more_of_a_stream_that_was_read_ahead_is_no_news(connection: Connection) -> None:
    """A busy partition would otherwise keep `train` from ever passing a silent one by."""
    with undone(connection):
        scribe = Scribe(connection, Dictionary(connection.engine), streams_of(PLACES[2], PLACES[3]))
        write(scribe, PLACES[2], [(0, 5)])
        merge = Merge({})
        assert merge.refresh(connection)
        write(scribe, PLACES[2], [(0, 6)])
        assert not merge.refresh(connection)
        assert merge.pop() is None


def test_rows_of_the_erased_are_not_looked_at(connection: Connection) -> None:
    """Whether or not the log still holds them: so an erasure and what comes of it later give one order."""
    with undone(connection):
        scribe = Scribe(connection, Dictionary(connection.engine), streams_of(PLACES[2], PLACES[3]))
        scribe.write(
            PLACES[2], [Given(0, 7, user="ann"), Given(1, 1, user="bob"), Given(2, 8, user="ann", other="bob")]
        )
        write(scribe, PLACES[3], [(0, 5), (0, 6)])
        merge = Merge({})
        merge.exclude_users(frozenset({"bob"}))
        found = [row.record_at for _ in range(3) if (row := take(merge, connection)) is not None]
        assert found == [5, 6]
