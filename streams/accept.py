"""From Kafka messages to what a batch would write: pure, no clock, no database.

`Intake` takes the messages of one stream, one by one; `columns` turns what passed into Arrow rows. Nothing
here depends on how messages fall into batches, so a record refused once is refused whenever it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from confluent_kafka import Message
from numpy.typing import NDArray

from contracts.codec import (
    MAX_AHEAD,
    MAX_BEHIND,
    MAX_RECORD_MS,
    Decoder,
    Malformed,
    Reason,
    check_record_time,
    check_stated_time,
    key_field,
)
from contracts.identity import event_key
from contracts.records import MAX_ID_CHARS, Item, Label, Payment, Record, Relation, UserEvent
from contracts.topics import INPUTS, ORIGIN_HEADER
from storage.dead_letters import Kept
from storage.log import EVENT_ROWS, ITEM_ROWS, LABEL_ROWS

_MAX_AHEAD_US = int(MAX_AHEAD.total_seconds()) * 1_000_000
_MAX_BEHIND_US = int(MAX_BEHIND.total_seconds()) * 1_000_000
_TIME = pa.timestamp("us", tz="UTC")


class Disorder(RuntimeError):
    """Offsets went back: what was collected is not what the stream holds. Forget it and read again."""


@dataclass(frozen=True)
class Refusal:
    """A message that becomes a dead letter."""

    offset: int
    record_ms: int
    kept: Kept
    reason: str
    detail: str


@dataclass
class Intake:
    """The messages of one stream in one batch, decoded."""

    topic: str
    """Logical name."""
    decoder: Decoder
    next: int = 0
    """No offset below this one may come any more."""
    read: int = 0
    value_bytes: int = 0
    unknown_fields: int = 0
    offsets: list[int] = field(default_factory=list)
    record_ms: list[int] = field(default_factory=list)
    records: list[Record | None] = field(default_factory=list)
    """None: a tombstone of `items`."""
    item_ids: list[str] = field(default_factory=list)
    """On `items` only: the item of each record, tombstones included."""
    refused: list[Refusal] = field(default_factory=list)
    origins: dict[int, str] = field(default_factory=dict)
    """offset -> dead letter that this record repeats."""
    _stated: dict[str, list[NDArray[np.int64]]] = field(default_factory=dict)
    """Name -> that time of each record, microseconds since 1970, take by take."""

    def take(self, *messages: Message) -> None:
        """Messages, in offset order.

        :raises Disorder: one lies before what is known or was taken.
        """
        # The one loop that runs for every record: what it needs is in local names.
        decoder, unknown = self.decoder, self.decoder.with_unknown_fields
        decode, is_item = decoder.decode, decoder.record is Item
        expected, first = self.next, len(self.records)
        taken: list[Message] = []
        for message in messages:
            value, key = message.value(), message.key()
            offset, record_ms = message.offset() or 0, message.timestamp()[1]
            if offset < expected:
                raise Disorder(f"{self.topic}: offset {offset} came where {expected} was next")
            expected = offset + 1
            record: Record | None
            try:
                if not 0 <= record_ms <= MAX_RECORD_MS:
                    check_record_time(record_ms)
                if value is None and is_item:
                    check_item_key(key)
                    record = None
                else:
                    record = decode(value, key)
            except Malformed as malformed:
                kept = Kept.of(key, value)
                self.refused.append(Refusal(offset, record_ms, kept, malformed.reason, malformed.detail))
                continue
            if headers := message.headers():
                self._note_origin(offset, dict(headers))
            self.offsets.append(offset)
            self.record_ms.append(record_ms)
            self.records.append(record)
            taken.append(message)
        self.next = expected
        self.read += len(messages)
        self.value_bytes += sum(map(len, messages))
        self.unknown_fields += decoder.with_unknown_fields - unknown
        if is_item:
            self.item_ids += [(message.key() or b"").decode() for message in taken]
        self._check_times(first, taken)

    def _note_origin(self, offset: int, headers: dict[str, str | bytes | None]) -> None:
        content = headers.get(ORIGIN_HEADER)
        if content:
            self.origins[offset] = content if isinstance(content, str) else content.decode(errors="replace")

    def _check_times(self, first: int, messages: list[Message]) -> None:
        """Refuses those of the newest records (from `first` on) whose times are out of range of their record time.

        Done while their messages are at hand: none is kept.
        """
        new = {name: _times(self.records[first:], name) for name in _TIMES.get(self.decoder.record, ())}
        record_us = np.asarray(self.record_ms[first:], np.int64) * 1000
        timely = np.ones(len(messages), bool)
        for name, times in new.items():
            ahead = times - record_us
            for index in np.flatnonzero(timely & ((ahead > _MAX_AHEAD_US) | (ahead < -_MAX_BEHIND_US))).tolist():
                try:
                    check_stated_time(name, int(times[index]), self.record_ms[first + index])
                except Malformed as malformed:
                    message = messages[index]
                    kept = Kept.of(message.key(), message.value())
                    place = first + index
                    self.refused.append(
                        Refusal(self.offsets[place], self.record_ms[place], kept, malformed.reason, malformed.detail)
                    )
                    timely[index] = False
        for name, times in new.items():
            self._stated.setdefault(name, []).append(times)
        if not timely.all():
            self.keep(np.concatenate([np.arange(first), first + np.flatnonzero(timely)]))

    def keep(self, indices: NDArray[np.int64]) -> None:
        """Drops the records at all other indices."""
        if len(indices) == len(self.records):
            return
        chosen = indices.tolist()
        self._stated = {name: [self.stated(name)[indices]] for name in self._stated}
        self.offsets = [self.offsets[i] for i in chosen]
        self.record_ms = [self.record_ms[i] for i in chosen]
        self.records = [self.records[i] for i in chosen]
        if self.item_ids:
            self.item_ids = [self.item_ids[i] for i in chosen]

    def stated(self, name: str) -> NDArray[np.int64]:
        """One of the times the records state, in microseconds since 1970."""
        parts = self._stated.get(name, [])
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.int64), *parts])

    def keys(self) -> list[str]:
        """The user (or item) of each record."""
        name = key_field(self.decoder.record)
        return [getattr(record, name) for record in self.records]

    def event_ids(self) -> list[str]:
        """The event id of each record (not for items)."""
        return [record.event_id for record in self.records]  # type: ignore[union-attr]

    def digests(self) -> NDArray[np.int64]:
        """The identity digest of each record; `items` have none, as their versions repeat on purpose."""
        topic = self.topic
        pairs = zip(self.keys(), self.event_ids(), strict=True)
        return np.fromiter((event_key(topic, key, event_id) for key, event_id in pairs), np.int64, len(self.records))

    def columns(self) -> pa.Table:
        """The records as Arrow rows of `storage.log`."""
        columns, schema = _COLUMNS[self.decoder.record]
        stamps = pa.array(np.asarray(self.record_ms, np.int64) * 1000).cast(_TIME)
        values = {"offset": self.offsets, "record_at": stamps, **columns(self)}
        return pa.table(
            [
                pa.array(values[name], kind) if name in values else pa.nulls(len(self.offsets), kind)
                for name, kind in zip(schema.names, schema.types, strict=True)
            ],
            schema=schema,
        )


def check_item_key(key: bytes | None) -> None:
    """A tombstone has only its key to say which item it deletes.

    :raises Malformed: the key is no item id.
    """
    try:
        item = (key or b"").decode()
    except UnicodeDecodeError:
        item = ""
    if not 0 < len(item) <= MAX_ID_CHARS or "\0" in item:
        raise Malformed(Reason.KEY_MISMATCH, "a tombstone's key must be the id of the item it deletes")


_TIMES: dict[type[Record], tuple[str, ...]] = {
    UserEvent: ("occurred_at",),
    Payment: ("occurred_at",),
    Relation: ("occurred_at",),
    Label: ("known_at", "ref_time"),
}
"""The times a record states; items state none."""


def _times(records: list[Record | None], name: str) -> NDArray[np.int64]:
    times = pa.array([getattr(record, name) for record in records], _TIME)
    return np.asarray(times.cast(pa.int64()))


def _user_events(intake: Intake) -> dict[str, Any]:
    rows: list[UserEvent] = intake.records  # type: ignore[assignment]
    return {
        **_common(intake),
        "user": [r.user_id for r in rows],
        "type": [r.type for r in rows],
        "item": [r.item_id for r in rows],
    }


def _payments(intake: Intake) -> dict[str, Any]:
    rows: list[Payment] = intake.records  # type: ignore[assignment]
    return {
        **_common(intake),
        "user": [r.user_id for r in rows],
        "type": [r.type for r in rows],
        "item": [r.item_id for r in rows],
        "amount": [r.amount for r in rows],
        "currency": [r.currency for r in rows],
        "other": [r.payee_id for r in rows],
    }


def _relations(intake: Intake) -> dict[str, Any]:
    rows: list[Relation] = intake.records  # type: ignore[assignment]
    return {
        **_common(intake),
        "user": [r.actor_id for r in rows],
        "type": [r.relation for r in rows],
        "other": [r.counterpart_id for r in rows],
    }


def _common(intake: Intake) -> dict[str, Any]:
    rows: list[Any] = intake.records
    return {
        "at": pa.array(intake.stated("occurred_at")).cast(_TIME),
        "event_id": [r.event_id for r in rows],
        "source": [r.source for r in rows],
    }


def _labels(intake: Intake) -> dict[str, Any]:
    rows: list[Label] = intake.records  # type: ignore[assignment]
    return {
        "at": pa.array(intake.stated("known_at")).cast(_TIME),
        "event_id": [r.event_id for r in rows],
        "user": [r.user_id for r in rows],
        "task": [r.task for r in rows],
        "subject": [r.subject_event_id for r in rows],
        "ref_time": pa.array(intake.stated("ref_time")).cast(_TIME),
        "value": [r.value for r in rows],
        "source": [r.source for r in rows],
    }


def _items(intake: Intake) -> dict[str, Any]:
    return {"item": intake.item_ids}


_COLUMNS: dict[type[Record], tuple[Callable[[Intake], dict[str, Any]], pa.Schema]] = {
    UserEvent: (_user_events, EVENT_ROWS),
    Payment: (_payments, EVENT_ROWS),
    Relation: (_relations, EVENT_ROWS),
    Label: (_labels, LABEL_ROWS),
    Item: (_items, ITEM_ROWS),
}


def decoders() -> dict[str, Decoder]:
    """A decoder for each input topic, by logical name."""
    return {topic: Decoder(record) for topic, record in INPUTS.items()}
