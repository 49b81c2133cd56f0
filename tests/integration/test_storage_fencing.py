"""Rule 1: a batch is committed by the newest owner, from the stored offset on, or not at all."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from contracts import topics
from storage.engine import Unavailable, mapped_errors
from storage.log import offsets
from storage.log.offsets import _OWNED, Fenced
from tests.integration.feeding import event, query, taken
from tests.integration.owning import MakeOwner, Owner, Place, message, stream


def test_an_owner_of_an_older_epoch_commits_nothing(database: str, owner: MakeOwner) -> None:
    former = owner()
    query(database, "UPDATE stream_offset SET owner_pid = NULL")  # so that only the epoch tells
    owner()
    with pytest.raises(Fenced, match=r"events\.user\[0\].*another owner went on"):
        former.write_events(event("e1"))
    assert taken(database).identities == set()


def test_a_batch_that_was_committed_already_is_not_committed_again(database: str, owner: MakeOwner) -> None:
    one = owner()
    before = dict(one.claims)
    one.write_events(event("e1"))
    one.claims = before  # as after a COMMIT whose answer never came
    with pytest.raises((Fenced, IntegrityError)):
        one.write_events(event("e1"))
    assert taken(database).totals["read"] == 1


def test_a_batch_starts_where_the_last_one_ended(database: str, owner: MakeOwner) -> None:
    one = owner()
    [claim] = one.claims.values()
    for stored in (3, 5):
        query(database, "UPDATE stream_offset SET next_offset = %s", stored)
        ahead = one.part((topics.USER, 0), [message(topics.USER, 4, event("e1"))])
        with pytest.raises(Fenced, match="offset 4"):
            one.write_parts([replace(ahead, move=replace(ahead.move, claim=claim, first=4))])
    assert taken(database).identities == set()


def test_a_claim_waits_for_no_former_owner(database: str, owner: MakeOwner) -> None:
    former, successor = owner(), owner((topics.LABELS, 0))
    [claim] = former.claims.values()
    former.connection.begin()
    offsets.advance(former.connection, [offsets.Advance(claim=claim, first=0, next=5)])  # holds the row's lock
    with successor.connection.begin():
        successor.connection.execute(text("SET lock_timeout = '3s'"))
    successor.writer = successor.claim((topics.USER, 0))
    assert successor.claims[topics.USER, 0].epoch == claim.epoch + 1
    assert successor.claims[topics.USER, 0].next_offset == 0
    with pytest.raises(Unavailable), mapped_errors():
        former.connection.execute(text("SELECT 1"))
    successor.write_events(event("e1"))


def release(owner: Owner, *places: Place) -> None:
    """Gives streams away in order, as on_revoke does."""
    with mapped_errors(), owner.connection.begin():
        offsets.release(owner.connection, [owner.claims[place] for place in places], within_s=1)


def owners(database: str) -> list[int | None]:
    return [pid for (pid,) in query(database, "SELECT owner_pid FROM stream_offset ORDER BY topic, partition")]


def test_an_owner_that_gave_a_stream_away_is_not_ended_and_goes_on_with_its_others(
    database: str, owner: MakeOwner
) -> None:
    former = owner((topics.USER, 0), (topics.USER, 1))
    release(former, (topics.USER, 0))
    successor = owner((topics.USER, 0))
    successor.write_events(event("e1"))
    former.write({(topics.USER, 1): [message(topics.USER, 0, event("e2"))]})
    assert set(taken(database).next_offsets.values()) == {1}


def test_of_several_streams_it_is_enough_to_hold_one_that_is_claimed(database: str, owner: MakeOwner) -> None:
    former = owner((topics.USER, 0), (topics.USER, 1), (topics.LABELS, 0))
    release(former, (topics.USER, 0))
    told: list[int] = []
    successor = owner((topics.USER, 0))
    assert former.connection.scalar(text("SELECT 1")) == 1
    former.connection.rollback()
    with successor.connection.begin():
        rows = [
            row for row in offsets.streams(successor.connection) if row.stream.topic in (topics.USER, topics.LABELS)
        ]
        offsets.claim(successor.connection, rows, ended=told.append)
    assert told == [1], "one session, though it held two of them"
    with pytest.raises(Unavailable), mapped_errors():
        former.connection.execute(text("SELECT 1"))


def test_a_stream_that_was_given_away_and_written_late_is_fenced_once_it_has_an_owner(
    database: str, owner: MakeOwner
) -> None:
    former = owner()
    release(former, (topics.USER, 0))
    former.write_events(event("e1"))  # nobody has claimed it yet: the next owner goes on behind it
    successor = owner()
    successor.write_events(event("e2"))
    with pytest.raises(Fenced):
        former.write_events(event("e3"))
    assert taken(database).totals["accepted"] == 2


def test_a_release_that_comes_late_clears_nobody_elses_claim(database: str, owner: MakeOwner) -> None:
    former = owner()
    query(database, "UPDATE stream_offset SET owner_pid = NULL")  # so that it is not ended
    owner()
    [held] = owners(database)
    assert held is not None
    release(former, (topics.USER, 0))
    assert owners(database) == [held]


def test_a_release_waits_for_a_lock_no_longer_than_it_may(database: str, owner: MakeOwner) -> None:
    former, other = owner(), owner((topics.LABELS, 0))
    with other.connection.begin():
        other.connection.execute(text("SELECT 1 FROM stream_offset FOR UPDATE"))
        began = time.monotonic()
        with pytest.raises(Unavailable, match="timeout"):
            release(former, (topics.USER, 0))
        assert 0.9 < time.monotonic() - began < 5
    former.write_events(event("e1"))
    assert None not in owners(database)


def test_only_the_backend_that_claimed_is_ended_not_one_that_got_its_number(database: str, owner: MakeOwner) -> None:
    bystander = owner((topics.LABELS, 0))
    pid = bystander.connection.scalar(text("SELECT pg_backend_pid()"))
    bystander.connection.rollback()
    owner()
    [(stream_id,)] = query(database, "SELECT stream_id FROM stream_offset WHERE topic = 'events.user'")
    with bystander.connection.begin():
        bystander.connection.execute(text("SELECT pg_advisory_lock_shared(:s, :id)"), {"s": _OWNED, "id": stream_id})
    query(database, "UPDATE stream_offset SET owner_pid = %s WHERE topic = 'events.user'", pid)
    owner()
    assert bystander.connection.scalar(text("SELECT 1")) == 1


def test_all_partitions_of_a_batch_move_or_none(database: str, owner: MakeOwner) -> None:
    places = [(topics.USER, 0), (topics.USER, 1)]
    former = owner(*places)
    query(database, "UPDATE stream_offset SET owner_pid = NULL")
    owner((topics.USER, 1))
    with pytest.raises(Fenced):
        former.write({place: [message(topics.USER, 0, event(f"e{place[1]}"))] for place in places})
    assert set(taken(database).next_offsets.values()) == {0}


def test_rows_of_a_frozen_owner_do_not_stand_in_the_way(database: str, owner: MakeOwner) -> None:
    former = owner()
    part = former.part((topics.USER, 0), [message(topics.USER, 0, event("e1"))])
    former.writer._remember(part.move.claim)
    query(database, "UPDATE stream_offset SET owner_pid = NULL")  # it cannot even be ended
    successor = owner()
    with former.connection.begin():
        former.writer._write_rows([part])  # frozen here: its rows are written, its transaction is open
        with successor.connection.begin():
            successor.connection.execute(text("SET lock_timeout = '3s'"))
        successor.write_events(event("e1"))
        with pytest.raises(Fenced):
            offsets.advance(former.connection, [part.move])
        former.connection.get_transaction().rollback()  # type: ignore[union-attr]
    assert len(taken(database).identities) == 1


def test_giving_a_range_up_leaves_a_segment_that_says_so_and_fences(database: str, owner: MakeOwner) -> None:
    one = owner()
    one.write_events(event("e1"))
    with one._side.begin() as connection:
        [row] = [row for row in offsets.streams(connection) if row.stream == stream(topics.USER)]
        offsets.give_up(connection, row, 10)
    with pytest.raises(Fenced):
        one.write_events(event("e2"))
    found = taken(database)
    assert found.totals["lost segments"] == 1
    assert found.next_offsets[topics.USER, 0] == 10
