"""Bytes to records and back. Every way a record can be wrong becomes a `Malformed` with a `Reason`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import msgspec
from msgspec import Struct, ValidationError

from contracts import topics
from contracts.records import MAJOR, MAX_RECORD_BYTES, Record, Relation


class Reason(StrEnum):
    """Why a record was refused. The names are an API: dashboards and `dlq list` count by them."""

    EMPTY = "empty"
    """No value; only `items` uses that, to delete."""
    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    TOO_DEEP = "too_deep"
    MISSING_FIELD = "missing_field"
    OVERSIZED_FIELD = "oversized_field"
    INVALID_FIELD = "invalid_field"
    UNKNOWN_VERSION = "unknown_version"
    UNSTORABLE_TEXT = "unstorable_text"
    KEY_MISMATCH = "key_mismatch"
    SELF_RELATION = "self_relation"
    TIME_OUT_OF_RANGE = "time_out_of_range"


class Malformed(ValueError):
    """The record is refused: it belongs in the dead letters, and the stream goes on."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class _Version(Struct):
    schema: str = ""


_encoder = msgspec.json.Encoder()
_version = msgspec.json.Decoder(_Version)

encode = _encoder.encode
"""Record -> JSON bytes."""

MAX_AHEAD = timedelta(days=1)
MAX_BEHIND = timedelta(days=3660)
"""How far an event's own time may lie after and before its record's time (never the clock's: a record
refused today must be refused again when the topic is read tomorrow)."""
MAX_RECORD_MS = 253_402_300_799_999
"""Milliseconds since 1970: the end of the year 9999."""

UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeError)
"""What `Decoder.parse` raises."""

_BACKSLASH = ord("\\")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_MS = timedelta(milliseconds=1)
_MAX_AHEAD_US = MAX_AHEAD // _US
_MAX_BEHIND_US = MAX_BEHIND // _US


class Decoder:
    """Reads the values of one topic."""

    def __init__(self, record: type[Record]) -> None:
        self.record = record
        # Reading strictly first makes the common record pay nothing for knowing of unknown fields.
        strict: Any = type(f"Strict{record.__name__}", (record,), {}, forbid_unknown_fields=True)
        self.parse: Callable[[bytes], Record] = msgspec.json.Decoder(strict).decode
        """The first half of `decode`, for readers of many records at once: the JSON alone, without unknown
        fields. Key, version, text and parties are not looked at."""
        self._lenient = msgspec.json.Decoder(record).decode
        self._key_field = key_field(record)
        self._is_relation = record is Relation
        self._versions = {f"{MAJOR}.0"}

    def decode(self, value: bytes | None, key: bytes | None) -> Record:
        """One record.

        :raises Malformed: whatever is wrong with it, except its time (see `check_time`).
        """
        if value is None:
            raise Malformed(Reason.EMPTY, "the record has no value")
        if len(value) > MAX_RECORD_BYTES:
            raise Malformed(Reason.TOO_LARGE, f"{len(value):,} bytes; at most {MAX_RECORD_BYTES:,}")
        try:
            record = self.parse(value)
        except UNREADABLE:
            record = self._decode_again(value)
        if record.schema not in self._versions:
            self._admit_version(record.schema)
        expected: str = getattr(record, self._key_field)
        if key is None or key != expected.encode():
            raise Malformed(
                Reason.KEY_MISMATCH,
                f"the record key must be {self._key_field} ({_shown(expected)}), not {_shown(key)}",
            )
        if may_hold_nul(value) and _has_nul(msgspec.to_builtins(record)):
            raise Malformed(Reason.UNSTORABLE_TEXT, "a field contains the character U+0000")
        if self._is_relation and record.actor_id == record.counterpart_id:  # type: ignore[union-attr]
            raise Malformed(Reason.SELF_RELATION, "actor and counterpart are the same user")
        return record

    def with_unknown_fields(self, records: Iterable[Record]) -> int:
        """How many of the records that `decode` or `parse` returned came with fields this version does not know."""
        return list(map(type, records)).count(self.record)  # and not of its strict kind: they were read leniently

    def knows(self, version: str) -> bool:
        """Whether a record of this schema version has been admitted before."""
        return version in self._versions

    def _decode_again(self, value: bytes) -> Record:
        """The slow path: something is unusual; find out what, or that only unknown fields are.

        msgspec passes over a field that it does not know without looking at its bytes, name included. The strict way
        needs no look: there every byte is a known name, a value that is read, or what JSON's grammar allows.
        """
        try:
            value.decode()
            version = _version.decode(value).schema
            if version and not _is_version(version):
                raise Malformed(Reason.UNKNOWN_VERSION, f"schema {_shown(version)}; this reader knows {MAJOR}.x")
            record: Record = self._lenient(value)
        except ValidationError as error:
            raise Malformed(_reason(str(error)), str(error)) from None
        except RecursionError:
            raise Malformed(Reason.TOO_DEEP, "nested deeper than the reader goes") from None
        except (msgspec.DecodeError, UnicodeError) as error:
            raise Malformed(Reason.NOT_JSON, str(error)) from None
        return record

    def _admit_version(self, version: str) -> None:
        if not _is_version(version):
            raise Malformed(Reason.UNKNOWN_VERSION, f"schema {_shown(version)}; this reader knows {MAJOR}.x")
        if len(self._versions) < 1000:  # bounded, whatever producers send
            self._versions.add(version)


def may_hold_nul(value: bytes) -> bool:
    """Whether a JSON text may hold the character U+0000; a quick no for nearly all."""
    return _BACKSLASH in value and b"\\u0000" in value  # one byte is found ten times faster than six


def check_record_time(record_ms: int) -> None:
    """The record's own time, in milliseconds since 1970: it orders the merge, so it must be one.

    :raises Malformed: it is missing (negative), or no calendar has it.
    """
    if not 0 <= record_ms <= MAX_RECORD_MS:
        raise Malformed(Reason.TIME_OUT_OF_RANGE, f"record time {record_ms} ms since 1970 is no usable time")


def check_time(occurred_at: datetime, record_at: datetime) -> None:
    """Event time against record time.

    :raises Malformed: it lies outside [record time - MAX_BEHIND, record time + MAX_AHEAD].
    """
    check_stated_time("occurred_at", (occurred_at - _EPOCH) // _US, (record_at - _EPOCH) // _MS)


def check_stated_time(field: str, at_us: int, record_ms: int) -> None:
    """A time that the record states (microseconds since 1970) against the record's own (milliseconds).

    Integers, since "0001-01-01T00:00:00+14:00" is a legal time that Python cannot express in UTC.

    :raises Malformed: it lies outside [record time - MAX_BEHIND, record time + MAX_AHEAD].
    """
    ahead_us = at_us - record_ms * 1000
    if not -_MAX_BEHIND_US <= ahead_us <= _MAX_AHEAD_US:
        raise Malformed(
            Reason.TIME_OUT_OF_RANGE,
            f"{field} {_iso(at_us)} against record time {_iso(record_ms * 1000)}: "
            f"at most {MAX_AHEAD.days} day ahead and {MAX_BEHIND.days} days behind",
        )


def key_field(record: type[Record]) -> str:
    """The field that a record's Kafka key repeats."""
    return {"relation": "actor_id", "item": "item_id"}.get(record.KIND, "user_id")


def topic_of(record: Record) -> str:
    """The topic a record belongs to."""
    return next(name for name, kind in topics.INPUTS.items() if isinstance(record, kind))


def _is_version(version: str) -> bool:
    major, _, minor = version.partition(".")
    return major == MAJOR and minor.isascii() and minor.isdigit()


def _reason(message: str) -> Reason:
    """Maps msgspec's sentence to a reason."""
    if "missing required field" in message:
        return Reason.MISSING_FIELD
    if "of length <=" in message:
        return Reason.OVERSIZED_FIELD
    return Reason.INVALID_FIELD


def _has_nul(value: object) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_has_nul(part) for pair in value.items() for part in pair)
    return False


def _iso(at_us: int) -> str:
    try:
        return (_EPOCH + at_us * _US).isoformat()
    except OverflowError:
        return f"{at_us} us since 1970"


def _shown(text: str | bytes | None) -> str:
    """An untrusted value, fit for a message."""
    shown = repr(text)
    return shown if len(shown) <= 80 else shown[:77] + "..."
