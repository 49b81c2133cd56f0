"""From Kafka messages to the rows a batch would write: pure, no clock, no database.

`StreamBatch` takes the messages of one stream. Nothing here depends on how messages fall into batches, so a record
refused once is refused whenever it is read.

What is wrong with a record is decided in one place, `StreamBatch._judge`, which looks at one message. Most records
never get there: whole chunks are shown to be in order by a few comparisons of columns, and only a record that
those cannot vouch for is judged by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Message
from numpy.typing import NDArray

from contracts.codec import (
    MAX_AHEAD,
    MAX_BEHIND,
    MAX_RECORD_MS,
    UNREADABLE,
    Decoder,
    Malformed,
    Reason,
    check_record_time,
    check_stated_time,
    may_hold_nul,
)
from contracts.records import MAX_ID_CHARS, MAX_RECORD_BYTES, Item, Record, Relation
from contracts.topics import INPUTS
from runtime.headers import UNREADABLE as UNREADABLE_HEADERS
from runtime.headers import headers_of
from storage.log.dead_letters import StoredRecord
from storage.log.event_log import microseconds_of
from streams.ingest.replay_proofs import Claimed, claimed_by
from streams.ingest.row_columns import LAYOUTS, Ints, Layout, microseconds, rows_of

_MAX_AHEAD_US = int(MAX_AHEAD.total_seconds()) * 1_000_000
_MAX_BEHIND_US = int(MAX_BEHIND.total_seconds()) * 1_000_000


class Disorder(RuntimeError):
    """Offsets went back: what was collected is not what the stream holds. Forget it and read again."""


@dataclass(frozen=True)
class Refusal:
    """A message that becomes a dead letter."""

    offset: int
    record_ms: int
    kept: StoredRecord
    reason: str
    detail: str


@dataclass(frozen=True)
class ItemRecord:
    """A record of `items`."""

    item_id: str
    item: Item | None
    """None: a tombstone."""


Read = Record | ItemRecord
"""What one message says."""


@dataclass(frozen=True)
class _Chunk:
    """Messages of one stream, column by column."""

    messages: Sequence[Message]
    offsets: Ints
    record_ms: Ints
    keys: list[bytes | None]
    values: list[bytes | None]

    @classmethod
    def of(cls, messages: Sequence[Message]) -> _Chunk:
        n = len(messages)
        return cls(
            messages=messages,
            offsets=np.fromiter((message.offset() for message in messages), np.int64, n),
            record_ms=np.fromiter((message.timestamp()[1] for message in messages), np.int64, n),
            keys=[message.key() for message in messages],
            values=[message.value() for message in messages],
        )

    def part(self, indices: list[int]) -> _Chunk:
        """Some of the messages."""
        if len(indices) == len(self.messages):
            return self
        return _Chunk(
            messages=[self.messages[i] for i in indices],
            offsets=self.offsets[indices],
            record_ms=self.record_ms[indices],
            keys=[self.keys[i] for i in indices],
            values=[self.values[i] for i in indices],
        )


@dataclass
class StreamBatch:
    """The messages of one stream in one batch, read."""

    topic: str
    """Logical name."""
    decoder: Decoder
    next: int = 0
    """No offset below this one may come any more."""
    read: int = 0
    value_bytes: int = 0
    unknown_fields: int = 0
    newest_ms: int | None = None
    """Kafka timestamp of the last record that was not refused."""
    versions: list[ItemRecord] = field(default_factory=list)
    """On `items` only: one a row."""
    refused: list[Refusal] = field(default_factory=list)
    origins: dict[int, Claimed] = field(default_factory=dict)
    """offset -> the dead letters that this record says it repeats; who believes it asks for the proof."""
    unreadable_headers: int = 0
    """Records that were not refused and whose headers the client cannot give."""
    _chunks: list[pa.RecordBatch] = field(default_factory=list)

    def take(self, *messages: Message) -> None:
        """Messages, in offset order.

        :raises Disorder: one lies before what is known or was taken.
        """
        chunk = _Chunk.of(messages)
        self._check_order(chunk.offsets)
        self.read += len(messages)
        self.value_bytes += sum(map(len, messages))
        chunk, records = self._readable(chunk)
        rows = rows_of(self._layout, records, offsets=chunk.offsets, record_ms=chunk.record_ms)
        if doubtful := set(np.flatnonzero(self._doubts(chunk, records, rows)).tolist()):
            sure = [i for i in range(len(records)) if i not in doubtful or self._judge(chunk.messages[i]) is not None]
            chunk, records, rows = chunk.part(sure), [records[i] for i in sure], rows.take(pa.array(sure, pa.int64()))
        self._note(chunk, records)
        self._chunks.append(rows)

    def rows(self) -> pa.Table:
        """What was not refused, as rows of `storage.log.event_log`, in offset order."""
        return pa.Table.from_batches(self._chunks, self._layout.schema).combine_chunks()

    @property
    def _layout(self) -> Layout:
        return LAYOUTS[self.decoder.record]

    @property
    def _is_item(self) -> bool:
        return self.decoder.record is Item

    def _check_order(self, offsets: Ints) -> None:
        expected = np.concatenate([[self.next], offsets + 1])
        if (back := np.flatnonzero(offsets < expected[:-1])).size:
            at = int(back[0])
            raise Disorder(f"{self.topic}: offset {offsets[at]} came where {expected[at]} was next")
        self.next = int(expected[-1])

    def _readable(self, chunk: _Chunk) -> tuple[_Chunk, list[Read]]:
        """The messages that can be read, and what they say."""
        refused = len(self.refused)
        # Items are few, with tombstones among them; what is too large must not be parsed at all.
        one_by_one = self._is_item or max(map(len, chunk.messages), default=0) > MAX_RECORD_BYTES
        found = [self._judge(message) for message in chunk.messages] if one_by_one else self._parse(chunk)
        if len(self.refused) == refused:
            return chunk, cast("list[Read]", found)
        kept = [i for i, record in enumerate(found) if record is not None]
        return chunk.part(kept), [record for record in found if record is not None]

    def _parse(self, chunk: _Chunk) -> list[Read | None]:
        parse = self.decoder.parse
        found: list[Read | None] = []
        for index, value in enumerate(chunk.values):  # the one loop of Python code that runs for every record
            try:
                found.append(parse(value))  # type: ignore[arg-type]  # no value is a TypeError
            except (TypeError, *UNREADABLE):
                found.append(self._judge(chunk.messages[index]))
        return found

    def _doubts(self, chunk: _Chunk, records: list[Read], rows: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which of the records that could be parsed may be wrong all the same."""
        doubts = (chunk.record_ms < 0) | (chunk.record_ms > MAX_RECORD_MS)
        if self._is_item:
            return np.zeros(len(records), bool)  # each was judged
        same_key = pc.equal(rows["user"].cast(pa.binary()), pa.array(chunk.keys, pa.binary()))
        doubts |= ~np.asarray(same_key.fill_null(False))
        record_us = chunk.record_ms * 1000
        for name in self._layout.times:
            times = microseconds(rows[name])
            ahead = times - record_us
            doubts |= (ahead > _MAX_AHEAD_US) | (ahead < -_MAX_BEHIND_US)
        if self.decoder.record is Relation:
            doubts |= np.asarray(pc.equal(rows["user"], rows["other"]))
        values = cast("list[bytes]", chunk.values)
        if may_hold_nul(b"".join(values)):
            doubts |= [may_hold_nul(value) for value in values]
        versions = [record.schema for record in _said(records)]
        if not all(map(self.decoder.knows, set(versions))):
            doubts |= [not self.decoder.knows(version) for version in versions]
        return doubts

    def _judge(self, message: Message) -> Read | None:
        """What one message says. None: it says nothing that could be accepted, and is among the refused."""
        value, key = message.value(), message.key()
        try:
            return self._read(value, key, message.timestamp()[1])
        except Malformed as wrong:
            kept = StoredRecord.of(key, value)
            origin = message.offset() or 0, message.timestamp()[1]
            self.refused.append(Refusal(*origin, kept, wrong.reason, wrong.detail))
            return None

    def _read(self, value: bytes | None, key: bytes | None, record_ms: int) -> Read:
        check_record_time(record_ms)
        if value is None and self._is_item:
            return ItemRecord(item_of_tombstone(key), None)
        record = self.decoder.decode(value, key)
        for column in self._layout.times:
            name = self._layout.fields[column]
            check_stated_time(name, microseconds_of(getattr(record, name)), record_ms)
        return ItemRecord(record.item_id, record) if isinstance(record, Item) else record

    def _note(self, chunk: _Chunk, records: list[Read]) -> None:
        """Keeps what the rows do not tell."""
        if not records:
            return
        self.newest_ms = int(chunk.record_ms[-1])
        if self._is_item:
            self.versions += cast("list[ItemRecord]", records)
        self.unknown_fields += self.decoder.with_unknown_fields(_said(records))
        for message, headers in zip(chunk.messages, headers_of(chunk.messages), strict=True):
            if not headers:
                continue
            if headers is UNREADABLE_HEADERS:
                self.unreadable_headers += 1
            elif claimed := claimed_by(message, headers, self.topic):
                self.origins[message.offset() or 0] = claimed


def _said(records: list[Read]) -> list[Record]:
    if records and isinstance(records[0], ItemRecord):
        return [version.item for version in cast("list[ItemRecord]", records) if version.item is not None]
    return cast("list[Record]", records)


def item_of_tombstone(key: bytes | None) -> str:
    """A tombstone has only its key to say which item it deletes.

    :raises Malformed: the key is no item id.
    """
    try:
        item = (key or b"").decode()
    except UnicodeDecodeError:
        item = ""
    if not 0 < len(item) <= MAX_ID_CHARS or "\0" in item:
        raise Malformed(Reason.KEY_MISMATCH, "a tombstone's key must be the id of the item it deletes")
    return item


def decoders() -> dict[str, Decoder]:
    """A decoder for each input topic, by logical name."""
    return {topic: Decoder(record) for topic, record in INPUTS.items()}
