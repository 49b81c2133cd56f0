"""Messages in, columns out: order kept, everything refused accounted for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import topics
from contracts.codec import MAX_AHEAD, MAX_BEHIND, Decoder, Malformed, check_time, encode
from contracts.identity import event_key
from contracts.records import Item, Label, Payment, Record, Relation, UserEvent
from storage.log.event_log import EVENT_ROWS, ITEM_ROWS, LABEL_ROWS, decode_rows, digests, encode_rows
from streams.ingest.validation import Disorder, StreamBatch
from tests.integration.owning import message

AT = datetime(2026, 1, 1, tzinfo=UTC)
AT_MS = int(AT.timestamp()) * 1000
text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
moments = st.datetimes(datetime(2016, 6, 1), datetime(2026, 1, 1, 23), timezones=st.just(UTC))
user_events = st.builds(
    UserEvent, event_id=text, user_id=text, occurred_at=moments, source=text, type=text, item_id=st.none() | text
)
payments = st.builds(
    Payment,
    event_id=text,
    user_id=text,
    occurred_at=moments,
    source=text,
    type=text,
    amount=st.integers(-(10**17), 10**17),
    currency=st.sampled_from(["EUR", "USD"]),
    payee_id=st.none() | text,
    item_id=st.none() | text,
)
relations = st.builds(
    Relation, event_id=text, actor_id=text, relation=text, counterpart_id=text, occurred_at=moments, source=text
).filter(lambda record: record.actor_id != record.counterpart_id)
labels = st.builds(
    Label,
    event_id=text,
    user_id=text,
    task=text,
    subject_event_id=st.none() | text,
    ref_time=moments,
    known_at=moments,
    value=st.floats(allow_nan=False, allow_infinity=False),
    source=text,
)
items = st.builds(Item, item_id=text, source=text, title=st.text(max_size=5).filter(lambda title: "\0" not in title))


def intake(topic: str) -> StreamBatch:
    return StreamBatch(topic, Decoder(topics.INPUTS[topic]))


def taken(topic: str, records: list[Record]) -> StreamBatch:
    made = intake(topic)
    for n, record in enumerate(records):
        made.take(message(topic, 3 * n, record, at_ms=AT_MS))
    return made


@settings(deadline=None, max_examples=60)
@given(st.lists(user_events, max_size=8))
def test_user_events_come_out_in_order_with_all_they_said(records: list[UserEvent]) -> None:
    rows = taken(topics.USER, list(records)).rows()
    assert rows.schema == EVENT_ROWS
    assert [
        (row["offset"], row["at"], row["event_id"], row["user"], row["type"], row["item"], row["source"])
        for row in rows.to_pylist()
    ] == [(3 * n, r.occurred_at, r.event_id, r.user_id, r.type, r.item_id, r.source) for n, r in enumerate(records)]


@settings(deadline=None, max_examples=40)
@given(st.lists(payments, max_size=8), st.lists(relations, max_size=8), st.lists(labels, max_size=8))
def test_so_do_payments_relations_and_labels(paid: list[Payment], related: list[Relation], known: list[Label]) -> None:
    rows = taken(topics.PAYMENT, list(paid)).rows().to_pylist()
    assert [(row["amount"], row["currency"], row["other"]) for row in rows] == [
        (r.amount, r.currency, r.payee_id) for r in paid
    ]
    rows = taken(topics.RELATIONAL, list(related)).rows().to_pylist()
    assert [(row["user"], row["type"], row["other"]) for row in rows] == [
        (r.actor_id, r.relation, r.counterpart_id) for r in related
    ]
    table = taken(topics.LABELS, list(known)).rows()
    assert table.schema == LABEL_ROWS
    assert [(row["at"], row["ref_time"], row["value"], row["subject"]) for row in table.to_pylist()] == [
        (r.known_at, r.ref_time, r.value, r.subject_event_id) for r in known
    ]


@settings(deadline=None, max_examples=40)
@given(st.lists(user_events, max_size=8))
def test_rows_survive_the_log_with_the_same_identities(records: list[UserEvent]) -> None:
    made = taken(topics.USER, list(records))
    rows = decode_rows(encode_rows(made.rows()))
    assert rows.equals(made.rows())
    found = digests(rows, topics.USER)
    assert found.tolist() == [event_key(topics.USER, r.user_id, r.event_id) for r in records]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.none() | items, max_size=8))
def test_items_and_their_tombstones_keep_their_order(records: list[Item | None]) -> None:
    made = intake(topics.ITEMS)
    for n, record in enumerate(records):
        made.take(message(topics.ITEMS, n, record, key=None if record else b"gone", at_ms=AT_MS))
    rows = made.rows()
    assert rows.schema == ITEM_ROWS
    assert rows["item"].to_pylist() == ["gone" if record is None else record.item_id for record in records]
    assert not made.refused


@given(st.lists(st.booleans(), max_size=12))
def test_every_message_is_taken_or_refused(good: list[bool]) -> None:
    made = intake(topics.USER)
    record = UserEvent(event_id="e", user_id="u", occurred_at=AT, source="s", type="t")
    for n, is_good in enumerate(good):
        made.take(message(topics.USER, n, key=b"u", value=encode(record) if is_good else b"[", at_ms=AT_MS))
    assert made.read == len(good)
    assert made.rows()["offset"].to_pylist() == [n for n, is_good in enumerate(good) if is_good]
    assert [refusal.offset for refusal in made.refused] == [n for n, is_good in enumerate(good) if not is_good]


_GOOD = UserEvent(event_id="e", user_id="u", occurred_at=AT, source="s", type="t")
_ODD = [
    (b"u", encode(_GOOD), AT_MS),
    (b"u", encode(_GOOD).replace(b'"1.0"', b'"1.9"'), AT_MS),
    (b"u", encode(_GOOD).replace(b'"1.0"', b'"2.0"'), AT_MS),
    (b"u", encode(_GOOD).replace(b'"1.0"', b'"9.9", "colour": 1'), AT_MS),
    (b"u", encode(_GOOD).replace(b"{", b'{"colour": "red", ', 1), AT_MS),
    (b"u", encode(_GOOD).replace(b'"t"', b'"\\u0000"'), AT_MS),
    (b"u", encode(_GOOD).replace(b'"t"', b'"\\\\u0000"'), AT_MS),
    (b"u", encode(_GOOD).replace(b'"t"', b'"' + b"x" * 1_000_000 + b'"'), AT_MS),
    (b"u", encode(_GOOD).replace(b"2026-01-01T00:00:00Z", b"0001-01-01T00:00:00+14:00"), AT_MS),
    (b"u", encode(_GOOD), AT_MS - 2 * 86_400_000),
    (b"u", encode(_GOOD), -1),
    (b"u", encode(_GOOD), 2**62),
    (b"other", encode(_GOOD), AT_MS),
    (None, encode(_GOOD), AT_MS),
    (b"u", None, AT_MS),
    (b"u", b'{"a":' * 100_000, AT_MS),
    (b"u", b"\xff", AT_MS),
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(_ODD), max_size=12))
def test_messages_taken_together_are_judged_as_one_by_one(odd: list[tuple[bytes | None, bytes | None, int]]) -> None:
    messages = [message(topics.USER, n, key=key, value=value, at_ms=ms) for n, (key, value, ms) in enumerate(odd)]
    together, alone = intake(topics.USER), intake(topics.USER)
    together.take(*messages)
    for each in messages:
        alone.take(each)
    assert together.rows().equals(alone.rows())
    assert sorted(together.refused, key=lambda refusal: refusal.offset) == alone.refused
    assert (together.unknown_fields, together.newest_ms) == (alone.unknown_fields, alone.newest_ms)


def test_what_the_odd_records_are_refused_for() -> None:
    made = intake(topics.USER)
    made.take(*[message(topics.USER, n, key=key, value=value, at_ms=ms) for n, (key, value, ms) in enumerate(_ODD)])
    reasons = {refusal.offset: str(refusal.reason) for refusal in made.refused}
    assert [reasons.get(n, "accepted") for n in range(len(_ODD))] == [
        *("accepted", "accepted", "unknown_version", "unknown_version", "accepted", "unstorable_text", "accepted"),
        *("too_large", "time_out_of_range", "time_out_of_range", "time_out_of_range", "time_out_of_range"),
        *("key_mismatch", "key_mismatch", "empty", "too_deep", "not_json"),
    ]


@given(st.timedeltas(-2 * MAX_BEHIND, 2 * MAX_AHEAD))
def test_a_batch_judges_times_as_the_codec_does(off: timedelta) -> None:
    record = UserEvent(event_id="e", user_id="u", occurred_at=AT + off, source="s", type="t")
    made = taken(topics.USER, [record])
    said = []
    try:
        check_time(record.occurred_at, AT)
    except Malformed as malformed:
        said.append((malformed.reason, malformed.detail))
    assert [(refusal.reason, refusal.detail) for refusal in made.refused] == said
    assert made.rows().num_rows + len(said) == 1


@pytest.mark.parametrize("off", [MAX_AHEAD, -MAX_BEHIND])
def test_the_bounds_of_event_time_are_exact(off: timedelta) -> None:
    beyond = timedelta(microseconds=1 if off > timedelta(0) else -1)
    for at, accepted in [(AT + off, 1), (AT + off + beyond, 0)]:
        record = UserEvent(event_id="e", user_id="u", occurred_at=at, source="s", type="t")
        assert taken(topics.USER, [record]).rows().num_rows == accepted


def test_a_label_about_a_time_out_of_range_is_refused_once() -> None:
    record = Label(
        event_id="l",
        user_id="u",
        task="t",
        ref_time=AT + 9 * MAX_AHEAD,
        known_at=AT + 9 * MAX_AHEAD,
        value=1,
        source="s",
    )
    assert [refusal.detail.split()[0] for refusal in taken(topics.LABELS, [record]).refused] == ["known_at"]
    record = Label(event_id="l", user_id="u", task="t", ref_time=AT + 9 * MAX_AHEAD, known_at=AT, value=1, source="s")
    assert [refusal.detail.split()[0] for refusal in taken(topics.LABELS, [record]).refused] == ["ref_time"]


def test_offsets_never_go_back() -> None:
    made = intake(topics.ITEMS)
    made.take(message(topics.ITEMS, 5, key=b"i", at_ms=AT_MS))
    for offset in (5, 4):
        with pytest.raises(Disorder, match=f"offset {offset} came where 6 was next"):
            made.take(message(topics.ITEMS, offset, key=b"i", at_ms=AT_MS))


@pytest.mark.parametrize("key", [None, b"", b"\xff", b"a\0b", b"x" * 257])
def test_a_tombstone_needs_a_key_that_names_an_item(key: bytes | None) -> None:
    made = intake(topics.ITEMS)
    made.take(message(topics.ITEMS, 0, key=key, at_ms=AT_MS))
    assert [refusal.reason for refusal in made.refused] == ["key_mismatch"]


def test_only_valid_records_count_as_having_unknown_fields() -> None:
    made = intake(topics.USER)
    record = UserEvent(event_id="e", user_id="u", occurred_at=AT, source="s", type="t")
    later = encode(record).replace(b'"1.0"', b'"1.7"').replace(b"{", b'{"colour": "red", ', 1)
    for n, (key, value) in enumerate([(b"u", later), (b"other", later), (b"u", encode(record))]):
        made.take(message(topics.USER, n, key=key, value=value, at_ms=AT_MS))
    assert (made.unknown_fields, made.rows().num_rows, len(made.refused)) == (1, 2, 1)
