"""Rules 5 and 10: what is accepted, whatever the batches look like and whoever owns the stream."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from contracts import topics
from contracts.codec import encode
from storage.log import event_log, offsets
from storage.log.offsets import Fenced
from storage.privacy import suppression
from tests.integration.feeding import event, identity, item, label, payment, query, relation, taken
from tests.integration.owning import MakeOwner, message


def test_a_record_is_accepted_once_in_one_batch_and_over_batches(database: str, owner: MakeOwner) -> None:
    one = owner()
    one.write_events(event("e1"), event("e1"), event("e2"))
    one.write_events(event("e1"), event("e2"), event("e3"))
    found = taken(database)
    assert found.identities == {identity(event(f"e{n}")) for n in (1, 2, 3)}
    assert found.totals["duplicates"] == 3


def test_identity_is_topic_key_and_event_id(database: str, owner: MakeOwner) -> None:
    one = owner((topics.USER, 0), (topics.PAYMENT, 0))
    same_id = [event("x", "ann"), event("x", "bob"), event("x", "ann", 5, type="other content")]
    one.write_events(*same_id)
    one.write_events(payment("x", "ann"), topic=topics.PAYMENT)
    assert taken(database).identities == {
        (topics.USER, "ann", "x"),
        (topics.USER, "bob", "x"),
        (topics.PAYMENT, "ann", "x"),
    }


def test_the_next_owner_knows_what_the_former_one_accepted(database: str, owner: MakeOwner) -> None:
    former = owner((topics.USER, 0), (topics.LABELS, 0))
    former.write_events(event("e1"), event("e2"))
    former.write_events(label("l1"), topic=topics.LABELS)
    successor = owner((topics.USER, 0), (topics.LABELS, 0))
    successor.write_events(event("e2"), event("e3"), event("e1"))
    successor.write_events(label("l1"), label("l2"), topic=topics.LABELS)
    assert len(taken(database).identities) == 5
    assert taken(database).totals["duplicates"] == 3


def test_a_repeat_within_the_window_is_known_and_memory_forgets_behind_it(database: str, owner: MakeOwner) -> None:
    one = owner(window=50)
    for start in range(0, 400, 10):
        one.write_events(*(event(f"e{n}") for n in range(start, start + 10)))
    [claim] = one.claims.values()
    assert 50 <= one.writer.filter_entries(claim) <= 200
    one.write_events(*(event(f"e{n}") for n in range(360, 400)))
    successor = owner(window=50)
    successor.write_events(*(event(f"e{n}") for n in range(390, 400)))
    assert len(taken(database).identities) == 400
    assert taken(database).totals["duplicates"] == 50


def test_a_batch_that_is_rolled_back_is_not_remembered(database: str, owner: MakeOwner) -> None:
    one = owner()
    one.write_events(event("e1"))
    [claim] = one.claims.values()
    query(database, "UPDATE stream_offset SET suppression_version = 9")
    with pytest.raises(Fenced):
        one.write_events(event("e2"))
    assert one.writer.filter_entries(claim) == 1


def test_events_that_share_a_digest_are_all_accepted(
    database: str, owner: MakeOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "digest", lambda _: 7)
    one = owner((topics.USER, 0), (topics.LABELS, 0))
    for n in range(4):
        one.write_events(event(f"e{2 * n}"), event(f"e{2 * n + 1}", "bob"))
        one.write_events(label(f"l{n}"), topic=topics.LABELS)
    assert len(taken(database).identities) == 12


def test_ten_thousand_repeats_of_one_users_events_are_told_in_seconds(database: str, owner: MakeOwner) -> None:
    one = owner(window=100_000)
    events = [event(f"e{n}", at=n) for n in range(20_000)]
    one.write_events(*events)
    with one.connection.begin():
        one.connection.exec_driver_sql("SET statement_timeout = '8s'")
    assert one.write_events(*events[:10_000]).counts.duplicates == 10_000


def test_both_users_have_a_relation_or_neither(database: str, owner: MakeOwner) -> None:
    one = owner((topics.RELATIONAL, 0))
    one.write_events(relation("r1", "ann", "bob"), relation("r2", "bob", "ann"), topic=topics.RELATIONAL)
    rows = query(database, "SELECT user_id, role, other_id, event_id FROM user_event ORDER BY 1, 4")
    assert rows == [
        ("ann", "actor", "bob", "r1"),
        ("ann", "counterpart", "bob", "r2"),
        ("bob", "counterpart", "ann", "r1"),
        ("bob", "actor", "ann", "r2"),
    ]


def erase(database: str, user: str, version: int) -> None:
    """What an erasure does to acceptance, in one transaction."""
    [(key,)] = query(database, "SELECT suppression_key FROM installation")
    query(
        database,
        "WITH gone AS (INSERT INTO suppression (user_hash, version) VALUES (%s, %s))"
        " UPDATE stream_offset SET suppression_version = %s",
        suppression.user_hash(bytes(key), user),
        version,
        version,
    )


def test_after_an_erasure_a_running_owner_goes_on_with_what_is_true_now(database: str, owner: MakeOwner) -> None:
    one = owner()
    one.write_events(event("e1", "bob"))
    for version, (user, kept) in enumerate([("ann", "bob"), ("bob", "eve")], start=1):
        erase(database, user, version)
        for n in range(2):
            counts = one.write_events(event(f"a{n}", user), event(f"b{n}", kept)).counts
            assert (counts.suppressed, counts.accepted) == (1, 1)
    names = {(user, event_id) for _, user, event_id in taken(database).identities}
    assert names == {("bob", "e1"), ("bob", "b0"), ("bob", "b1"), ("eve", "b0"), ("eve", "b1")}


def test_who_judged_by_fewer_erasures_than_there_are_moves_nothing(database: str, owner: MakeOwner) -> None:
    one = owner()
    [claim] = one.claims.values()
    erase(database, "ann", 1)
    with pytest.raises(Fenced, match="erasure"), one.connection.begin():
        offsets.advance(one.connection, [offsets.Advance(claim=claim, first=0, next=5)])  # and took no lock
    assert taken(database).next_offsets == {(topics.USER, 0): 0}
    one.write_events(event("e1", "bob"))


def test_records_of_an_erased_user_are_not_kept_on_either_side(database: str, owner: MakeOwner) -> None:
    first = owner((topics.USER, 0), (topics.RELATIONAL, 0))
    first.write_events(event("e0", "ann"))
    erase(database, "ann", 1)
    one = owner((topics.USER, 0), (topics.RELATIONAL, 0))
    one.write_events(event("e1", "ann"), event("e2", "bob"))
    both = [relation("r1", "bob", "ann"), relation("r2", "ann", "bob"), relation("r3", "bob", "eve")]
    one.write_events(*both, topic=topics.RELATIONAL)
    found = taken(database)
    assert found.identities - {identity(event("e0", "ann"))} == {identity(event("e2", "bob")), identity(both[2])}
    assert found.totals["suppressed"] == 3


def test_a_batch_without_records_still_covers_its_offsets(database: str, owner: MakeOwner) -> None:
    one = owner()
    one.write_parts([one.part((topics.USER, 0), [], next_offset=7)])
    one.write_events(event("e1"))
    one.write_parts([one.part((topics.USER, 0), [], next_offset=12)])
    with one.connection.begin():
        segments = list(event_log.read(one.connection, one.claims[topics.USER, 0].stream_id, 0))
    assert [(segment.first, segment.next, segment.rows is None) for segment in segments] == [
        (0, 7, True),
        (7, 8, False),
        (8, 12, True),
    ]
    assert taken(database).next_offsets == {(topics.USER, 0): 12}


def test_a_missing_segment_is_noticed_by_readers(database: str, owner: MakeOwner) -> None:
    one = owner()
    for n in range(3):
        one.write_events(event(f"e{n}"))
    query(database, "DELETE FROM log_segment WHERE first_offset = 1")
    stream_id = one.claims[topics.USER, 0].stream_id
    with one.connection.begin(), pytest.raises(event_log.BrokenChain, match="offsets 1 to 2"):
        list(event_log.read(one.connection, stream_id, 0))
    with one.connection.begin(), pytest.raises(event_log.BrokenChain):
        list(event_log.read(one.connection, stream_id, 1))


def test_a_new_item_after_a_restart_is_taken_in(database: str, owner: MakeOwner) -> None:
    for n in range(3):
        one = owner((topics.ITEMS, 0))
        one.write_events(item("i1", f"title {n}"), topic=topics.ITEMS)
    one.write({(topics.ITEMS, 0): [message(topics.ITEMS, 3, key=b"i1", value=None)]})
    rows = query(database, "SELECT position, payload ->> 'title' FROM item_version ORDER BY position")
    assert rows == [(0, "title 0"), (1, "title 1"), (2, "title 2"), (3, None)]


def test_event_time_is_bounded_by_record_time_and_not_by_the_clock(database: str, owner: MakeOwner) -> None:
    one = owner()
    in_1990 = int(datetime(1990, 1, 2, tzinfo=UTC).timestamp()) * 1000
    value = encode(event("old")).replace(b"2026-01-01", b"1990-01-02")
    now = [message(topics.USER, 0, key=b"ann", value=value, at_ms=in_1990)]
    late = [message(topics.USER, 1, event("late"), at_ms=in_1990)]
    [first] = one.write({(topics.USER, 0): now})
    [second] = one.write({(topics.USER, 0): late})
    assert (first.counts.accepted, second.counts.dead) == (1, 1)
    assert query(database, "SELECT reason FROM dead_letter") == [("time_out_of_range",)]


def test_times_that_no_calendar_has_become_dead_letters(database: str, owner: MakeOwner) -> None:
    one = owner((topics.USER, 0), (topics.LABELS, 0), (topics.ITEMS, 0))
    for n, text in enumerate([b"0001-01-01T00:00:00+14:00", b"9999-12-31T23:59:59-14:00"]):
        value = encode(event("e")).replace(b"2026-01-01T00:00:00Z", text)
        outcome = encode(label("l")).replace(b'ref_time":"2026-01-01T00:00:00Z', b'ref_time":"' + text)
        one.write({(topics.USER, 0): [message(topics.USER, n, key=b"ann", value=value)]})
        one.write({(topics.LABELS, 0): [message(topics.LABELS, n, key=b"ann", value=outcome)]})
    for n, at_ms in enumerate([-1, 10**15, 2**62]):
        one.write({(topics.USER, 0): [message(topics.USER, 2 + n, event("e"), at_ms=at_ms)]})
        one.write({(topics.ITEMS, 0): [message(topics.ITEMS, n, key=b"i", at_ms=at_ms)]})
    assert query(database, "SELECT DISTINCT reason FROM dead_letter") == [("time_out_of_range",)]
    assert taken(database).totals["dead"] == 10


def test_a_refused_batch_leaves_no_letter_behind(database: str, owner: MakeOwner) -> None:
    one = owner()
    query(database, "UPDATE stream_offset SET suppression_version = 9")
    with pytest.raises(Fenced):
        one.write({(topics.USER, 0): [message(topics.USER, 0, key=b"ann", value=b"{")]})
    assert query(database, "SELECT count(*) FROM dead_letter") == [(0,)]
