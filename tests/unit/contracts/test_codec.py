"""Bytes to records: every way to be wrong has its reason, and nothing else is ever raised."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import topics
from contracts.codec import (
    UNREADABLE,
    Decoder,
    Malformed,
    Reason,
    check_record_time,
    check_stated_time,
    check_time,
    encode,
    key_field,
    topic_of,
)
from contracts.records import (
    MAX_AMOUNT,
    MAX_ID_CHARS,
    MAX_RECORD_BYTES,
    MAX_TEXT_CHARS,
    Item,
    Label,
    Payment,
    Record,
    Relation,
    UserEvent,
)

AT = datetime(2026, 1, 1, 12, tzinfo=UTC)
EXAMPLES: list[Record] = [
    UserEvent(event_id="e", user_id="u", occurred_at=AT, source="s", type="t", item_id="i"),
    Payment(event_id="e", user_id="u", occurred_at=AT, source="s", type="t", amount=-1, currency="EUR", payee_id="p"),
    Relation(event_id="e", actor_id="u", relation="follow", counterpart_id="v", occurred_at=AT, source="s"),
    Item(item_id="u", source="s", title="t", text="x", attributes={"a": "b"}),
    Label(event_id="e", user_id="u", task="t", ref_time=AT, known_at=AT, value=0.5, source="s"),
]
by_kind = pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: record.KIND)


def fields(record: Record, **changes: Any) -> dict[str, Any]:
    """The record as JSON, with changes; `...` takes a field away."""
    merged = {**json.loads(encode(record)), **changes}
    return {name: value for name, value in merged.items() if value is not ...}


def reason(record: Record, value: bytes | None, key: bytes | None = b"u") -> Reason:
    with pytest.raises(Malformed) as refused:
        Decoder(type(record)).decode(value, key)
    assert str(refused.value).startswith(refused.value.reason)
    return refused.value.reason


@by_kind
def test_what_is_encoded_is_decoded_under_its_key(record: Record) -> None:
    decoder = Decoder(type(record))
    decoded = decoder.decode(encode(record), b"u")
    assert isinstance(decoded, type(record))
    assert encode(decoded) == encode(record)
    assert decoder.with_unknown_fields([decoded]) == 0
    assert topics.INPUTS[topic_of(record)] is type(record)


@by_kind
def test_unknown_fields_and_later_minor_versions_are_read_and_counted(record: Record) -> None:
    decoder = Decoder(type(record))
    changed = fields(record, schema="1.42", colour={"deep": ["x", None, 1e5]})
    decoded = decoder.decode(json.dumps(changed).encode(), b"u")
    assert encode(decoded) == encode(record).replace(b'"1.0"', b'"1.42"')
    assert decoder.with_unknown_fields([decoded]) == 1


@by_kind
@pytest.mark.parametrize("version", ["2.0", "0.9", "10.0", "1.x", "1.", "1.0.0", "1,0", "v1.0", "1.²", "١.٠"])
def test_an_unknown_version_is_refused_whatever_its_fields(record: Record, version: str) -> None:
    for changes in ({}, {"user_id": 5, "new": True}):
        if len(version) < 3 and not changes:
            continue
        value = json.dumps(fields(record, schema=version, **changes)).encode()
        assert reason(record, value) in {Reason.UNKNOWN_VERSION, Reason.INVALID_FIELD}
        if len(version) >= 3:
            assert reason(record, value) is Reason.UNKNOWN_VERSION


@by_kind
def test_each_required_field_is_missed(record: Record) -> None:
    optional = {"schema", "item_id", "payee_id", "subject_event_id", "title", "text", "attributes"}
    if record.KIND == "item":
        optional -= {"item_id"}
    for name in fields(record).keys() - optional:
        assert reason(record, json.dumps(fields(record, **{name: ...})).encode()) is Reason.MISSING_FIELD


@by_kind
def test_each_field_of_a_wrong_type_is_refused(record: Record) -> None:
    for name in fields(record):
        for wrong in ([1], True):
            value = json.dumps(fields(record, **{name: wrong})).encode()
            assert reason(record, value) is Reason.INVALID_FIELD


@by_kind
def test_the_key_must_be_the_user(record: Record) -> None:
    for key in (None, b"", b"v", b"u ", b"U", b"\xff"):
        assert reason(record, encode(record), key) is Reason.KEY_MISMATCH
    assert key_field(type(record)) in fields(record)


@by_kind
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, Reason.EMPTY),
        (b"", Reason.NOT_JSON),
        (b"\xff\xfe", Reason.NOT_JSON),
        (b"{", Reason.NOT_JSON),
        (b"{} {}", Reason.NOT_JSON),
        (b"NaN", Reason.NOT_JSON),
        (b"null", Reason.INVALID_FIELD),
        (b"[]", Reason.INVALID_FIELD),
        (b"{}", Reason.MISSING_FIELD),
        (b" " * (MAX_RECORD_BYTES + 1), Reason.TOO_LARGE),
        (b"x" * 20_000_000, Reason.TOO_LARGE),
        (b"[" * 400_000, Reason.INVALID_FIELD),
        (b'{"x":' * 100_000, Reason.TOO_DEEP),
        (b'{"x":' + b"[" * 400_000 + b"]" * 400_000 + b"}", Reason.TOO_DEEP),
    ],
)
def test_what_is_no_record_is_refused(record: Record, value: bytes | None, expected: Reason) -> None:
    assert reason(record, value) is expected


Change = tuple[Record, dict[str, Any], Reason]
USER, PAYMENT, RELATION, ITEM, LABEL = EXAMPLES


@pytest.mark.parametrize(
    ("record", "changes", "expected"),
    [
        (USER, {"event_id": "x" * (MAX_ID_CHARS + 1)}, Reason.OVERSIZED_FIELD),
        (USER, {"type": "x" * 129}, Reason.OVERSIZED_FIELD),
        (USER, {"item_id": "é" * (MAX_ID_CHARS + 1)}, Reason.OVERSIZED_FIELD),
        (ITEM, {"text": "x" * (MAX_TEXT_CHARS + 1)}, Reason.OVERSIZED_FIELD),
        (ITEM, {"attributes": {"a": "x" * (MAX_TEXT_CHARS + 1)}}, Reason.OVERSIZED_FIELD),
        (ITEM, {"attributes": {"x" * 129: "a"}}, Reason.OVERSIZED_FIELD),
        (ITEM, {"attributes": {"": "a"}}, Reason.INVALID_FIELD),
        (ITEM, {"title": "a\0b"}, Reason.UNSTORABLE_TEXT),
        (ITEM, {"attributes": {"a\0": "b"}}, Reason.UNSTORABLE_TEXT),
        (ITEM, {"attributes": {"a": "\0"}}, Reason.UNSTORABLE_TEXT),
        (USER, {"event_id": ""}, Reason.INVALID_FIELD),
        (USER, {"event_id": "\0"}, Reason.UNSTORABLE_TEXT),
        (USER, {"occurred_at": "2026-01-01T12:00:00"}, Reason.INVALID_FIELD),
        (USER, {"occurred_at": "2026-02-30T12:00:00Z"}, Reason.INVALID_FIELD),
        (USER, {"occurred_at": 1767268800}, Reason.INVALID_FIELD),
        (PAYMENT, {"amount": 1.5}, Reason.INVALID_FIELD),
        (PAYMENT, {"amount": "5"}, Reason.INVALID_FIELD),
        (PAYMENT, {"amount": MAX_AMOUNT + 1}, Reason.INVALID_FIELD),
        (PAYMENT, {"amount": 10**400}, Reason.INVALID_FIELD),
        (PAYMENT, {"currency": "eur"}, Reason.INVALID_FIELD),
        (PAYMENT, {"currency": "EUR\n"}, Reason.OVERSIZED_FIELD),
        (RELATION, {"counterpart_id": "u"}, Reason.SELF_RELATION),
        (LABEL, {"value": float("nan")}, Reason.NOT_JSON),
        (LABEL, {"value": float("inf")}, Reason.NOT_JSON),
        (LABEL, {"value": 10**400}, Reason.INVALID_FIELD),
    ],
)
def test_a_field_out_of_bounds_is_refused(record: Record, changes: dict[str, Any], expected: Reason) -> None:
    assert reason(record, json.dumps(fields(record, **changes)).encode()) is expected


def test_escaped_text_that_only_looks_like_nul_is_kept() -> None:
    value = json.dumps(fields(ITEM, title="\\u0000", unknown="\0")).encode()
    record = Decoder(Item).decode(value, b"u")
    assert isinstance(record, Item)
    assert record.title == "\\u0000"


def test_lone_surrogates_are_no_json() -> None:
    assert reason(USER, encode(USER).replace(b'"e"', b'"\\ud800"')) is Reason.NOT_JSON


def test_the_versions_a_decoder_remembers_are_bounded() -> None:
    decoder = Decoder(UserEvent)
    for minor in range(3000):
        decoder.decode(encode(USER).replace(b'"1.0"', b'"1.%d"' % minor), b"u")
    assert len(decoder._versions) <= 1000


def test_times_no_calendar_has_are_refused_with_a_sentence() -> None:
    refused: list[Callable[[], None]] = [
        lambda: check_record_time(-1),
        lambda: check_record_time(10**18),
        lambda: check_stated_time("at", -(2**62), 0),
        lambda: check_stated_time("at", 2**62, 0),
        lambda: check_time(datetime.fromisoformat("0001-01-01T00:00:00+14:00"), AT),
        lambda: check_time(datetime.fromisoformat("9999-12-31T23:59:59-14:00"), AT),
    ]
    for check in refused:
        with pytest.raises(Malformed, match="time_out_of_range"):
            check()
    check_record_time(0)
    check_time(AT, AT)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(EXAMPLES), st.data())
def test_any_change_of_a_record_is_read_or_refused_and_never_fails(record: Record, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(fields(record))))
    value = json.dumps(fields(record, **{name: data.draw(json_values)})).encode()
    cut = data.draw(st.integers(0, len(value)))
    for variant in (value, value[:cut], value[cut:]):
        decoder = Decoder(type(record))
        try:
            decoded = decoder.decode(variant, b"u")
        except Malformed:
            continue
        assert encode(Decoder(type(record)).decode(encode(decoded), b"u")) == encode(decoded)


@given(st.binary(max_size=200), st.none() | st.binary(max_size=20))
def test_any_bytes_are_read_or_refused(value: bytes, key: bytes | None) -> None:
    for record in EXAMPLES:
        with pytest.raises(Malformed):
            Decoder(type(record)).decode(value, key)


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: record.KIND)
@pytest.mark.parametrize(
    "foreign",
    [
        b'"item\xff_id":"i"',
        b'"x":"\xff"',
        b'"x":{"y\xff":1}',
        b'"x":["\xed\xa0\x80"]',
        b'"x\xc0\xaf":1',
        b'"x\xe2\x82":1',
    ],
)
def test_bytes_that_are_no_utf8_are_refused_wherever_they_stand(record: Record, foreign: bytes) -> None:
    """msgspec passes over a field that it does not know; an optional one whose name is damaged would vanish so."""
    value = encode(record)
    assert reason(record, b"{" + foreign + b"," + value[1:]) is Reason.NOT_JSON
    assert reason(record, value[:-1] + b"," + foreign + b"}") is Reason.NOT_JSON


def test_text_in_utf8_is_kept_wherever_it_stands() -> None:
    value = encode(USER)[:-1] + ',"größe\u2028":{"☃":"\U0001f600"}}'.encode()
    decoder = Decoder(UserEvent)
    assert decoder.with_unknown_fields([decoder.decode(value, b"u")]) == 1


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: record.KIND)
def test_one_damaged_byte_of_a_record_is_never_passed_over(record: Record) -> None:
    """So the strict way needs no look at the bytes: whatever it reads is UTF-8 throughout."""
    value, decoder = encode(record), Decoder(type(record))
    for place in range(len(value)):
        for byte in (0x80, 0xC0, 0xE2, 0xFF):
            damaged = value[:place] + bytes([byte]) + value[place + 1 :]
            with pytest.raises(UNREADABLE):
                decoder.parse(damaged)
            with pytest.raises(Malformed):
                decoder.decode(damaged, b"u")
