"""The duplicate filter after a claim (protocol, rule 5): whole, and read in few pieces however small segments are."""

from __future__ import annotations

import pytest
from sqlalchemy import event as sql_event

from contracts import topics
from storage.log import event_log
from tests.integration.feeding import event, query, taken
from tests.integration.owning import MakeOwner, message

SEGMENTS = 150


def test_a_quiet_streams_many_small_segments_are_read_many_at_a_time(database: str, owner: MakeOwner) -> None:
    former = owner()
    for n in range(SEGMENTS):
        former.write_events(event(f"e{n}"), event(f"f{n}"))
    successor = owner()
    asked: list[str] = []
    sql_event.listen(
        successor.connection.engine,
        "before_cursor_execute",
        lambda connection, cursor, statement, *rest: asked.append(statement),
    )
    again = [event(f"{kind}{n}") for n in range(SEGMENTS) for kind in "ef"]
    written = successor.write_events(*again, event("new"))
    assert (written.counts.duplicates, written.counts.accepted) == (2 * SEGMENTS, 1)
    read = [one for one in asked if "ORDER BY first_offset" in one and "DESC" not in one]  # backwards: the last times
    assert len(read) <= 3
    assert taken(database).totals["accepted"] == 2 * SEGMENTS + 1


def test_a_rebuild_starts_inside_a_segment_and_notices_one_that_is_missing(database: str, owner: MakeOwner) -> None:
    former = owner()
    for n in range(20):
        former.write_events(event(f"e{n}"), event(f"f{n}"))
    successor = owner(window=15)  # offsets 25 to 40: from the middle of the segment of e12 and f12 on
    written = successor.write_events(event("e12"), event("f12"), event("e5"))
    assert (written.counts.duplicates, written.counts.accepted) == (2, 1)
    query(database, "DELETE FROM log_segment WHERE first_offset = 30")
    third = owner(window=30)
    with pytest.raises(event_log.BrokenChain, match=r"offsets 30 to 32 are in no log segment"):
        third.write({(topics.USER, 0): [message(topics.USER, 43, event("e1"))]})
