"""Lets `drift` read records whose header names are not UTF-8.

Kafka keeps any bytes as a header's name. aiokafka decodes the names of a record as it unpacks it, stops there with an
error, and fetches the same record again, for ever. Here the batch that holds such a record is read by aiokafka's own
Python parser, with names that never fail to decode; all other batches take the fast way, as ever.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.legacy_records import LegacyRecordBatch

_HEAD = struct.Struct(">qiib")  # base offset, length of what follows, leader epoch, magic
_BEFORE_LENGTH_COUNTS = 12
"""Bytes of offset and length, which the length does not cover."""


class UnreadableName(str):
    """A header name that is not UTF-8; its bytes are escaped."""


def tolerate() -> None:
    """From now on every aiokafka consumer of this process reads such records."""
    fetcher.MemoryRecords = Records  # which a long method of it makes by this name


def unreadable(headers: Iterable[tuple[str, Any]] | None) -> bool:
    """Whether a name among a record's headers is not UTF-8."""
    return any(isinstance(name, UnreadableName) for name, _ in headers or ())


class Records:
    """What a fetch brought of one partition, as `aiokafka.record.memory_records.MemoryRecords`."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0

    def size_in_bytes(self) -> int:
        """All of it, a last batch that is not whole included."""
        return len(self._data)

    def has_next(self) -> bool:
        """Whether a whole batch is left."""
        return self._at < self._end()

    def next_batch(self) -> Any:
        """The next whole one; None: there is none."""
        end = self._end()
        if end <= self._at:
            return None
        batch, self._at = self._data[self._at : end], end
        magic = _HEAD.unpack_from(batch)[3]
        return _Batch(batch) if magic >= 2 else LegacyRecordBatch(batch, magic)  # those have no headers

    def _end(self) -> int:
        """Where the next batch ends; where it begins, if it is not whole."""
        if len(self._data) - self._at < _HEAD.size:
            return self._at
        end: int = self._at + _BEFORE_LENGTH_COUNTS + _HEAD.unpack_from(self._data, self._at)[1]
        return end if end <= len(self._data) else self._at


class _Batch:
    """A batch of records: aiokafka's, with another way to its records where a header name stops the first."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._batch = DefaultRecordBatch(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        read = 0
        try:
            for record in self._batch:
                yield record
                read += 1
        except (UnicodeDecodeError, CorruptRecordException) as error:
            if not isinstance(error.__cause__ or error, UnicodeDecodeError):
                raise
            yield from islice(_leniently(self._data), read, None)


class _Text(bytearray):
    """Bytes whose parts always decode."""

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return found if isinstance(found, int) else _Text(found)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        try:
            return super().decode(encoding, errors)
        except UnicodeDecodeError:
            return UnreadableName(super().decode(encoding, "backslashreplace"))


def _leniently(data: memoryview) -> Iterator[Any]:
    batch: Any = _DefaultRecordBatchPy(data)
    records: Iterator[Any] = iter(batch)  # uncompressed from here on
    batch._buffer = _Text(batch._buffer)
    return records
