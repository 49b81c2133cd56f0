"""Records far ahead of their stream: accepted, counted, and told where they stand (`contracts.clocks`)."""

from __future__ import annotations

import json

import pytest

from contracts import topics
from driftline.cli import run
from runtime import metrics
from runtime.lifecycle import Exit
from storage import overview
from storage.engine import Unavailable
from tests.integration.feeding import START_MS, engine_of, event, query
from tests.integration.owning import MakeOwner, Owner, message

FAR_MS = 4_102_444_800_000
"""The year 2100."""
MINUTE_MS = 60_000


def times(count: int, *far: int) -> list[int]:
    return [FAR_MS if n in far else START_MS + n * MINUTE_MS for n in range(count)]


def write(one: Owner, record_ms: list[int]) -> int:
    """One batch; how many of it are far."""
    first = one.claims[topics.USER, 0].next_offset
    made = [
        message(topics.USER, first + n, event(f"e{first + n}", at=(ms - START_MS) / 1000), at_ms=ms)
        for n, ms in enumerate(record_ms)
    ]
    [written] = one.write({(topics.USER, 0): made})
    assert written.counts.accepted == len(record_ms)
    return len(written.far)


def found(database: str) -> dict[int, overview.Far]:
    with engine_of(database).begin() as connection:
        return overview.far(connection)


@pytest.mark.parametrize("size", [3, 7, 60])
def test_far_records_are_the_same_however_they_come_in_and_whoever_takes_them_over(
    database: str, owner: MakeOwner, size: int
) -> None:
    """Each batch by a new owner: what it knows of the stream is in the log."""
    given = times(60, 20, 41)
    for first in range(0, len(given), size):
        write(owner(), given[first : first + size])
    assert found(database) == {1: overview.Far(records=2, offsets=[20, 41])}


def test_a_batch_that_is_rolled_back_counts_nowhere(database: str, owner: MakeOwner) -> None:
    one = owner()
    write(one, times(40))
    other = owner()
    with pytest.raises(Unavailable):
        write(one, [FAR_MS])
    assert found(database) == {}
    assert write(other, [FAR_MS]) == 1
    assert found(database) == {1: overview.Far(records=1, offsets=[40])}


def test_many_far_records_are_counted_and_the_last_are_named(database: str, owner: MakeOwner) -> None:
    one = owner()
    write(one, times(40))
    for _ in range(30):
        write(one, [*times(2), FAR_MS])
    [stream] = found(database).values()
    assert stream.records == 30
    assert stream.offsets == [42 + 3 * n for n in range(20, 30)]


def test_the_delay_shown_is_that_of_no_false_clock(database: str, owner: MakeOwner) -> None:
    one = owner()
    write(one, times(40))
    claim, last_us = one.claims[topics.USER, 0], (START_MS + 39 * MINUTE_MS) * 1000
    assert one.writer.newest_us(claim, FAR_MS) == last_us
    assert one.writer.newest_us(claim, 0) == last_us
    assert one.writer.newest_us(claim, START_MS + 50 * MINUTE_MS) == last_us + 11 * MINUTE_MS * 1000


def test_offsets_show_names_them(
    database: str, owner: MakeOwner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", database)
    write(owner(), times(50, 44))
    assert run(["offsets", "show", "--json"]) == Exit.DONE
    [row] = json.loads(capsys.readouterr().out)
    assert row["far"] == {"records": 1, "offsets": [44]}
    assert run(["offsets", "show"]) == Exit.DONE
    told = capsys.readouterr()
    assert "events.user[0]: 1 record lies more than a day ahead of those before it, at offset 44" in told.err
    assert query(database, "SELECT count(*) FROM user_event") == [(50,)], "accepted all the same"


def test_they_are_counted_by_topic() -> None:
    assert metrics.far_records.labels == ("topic",)
