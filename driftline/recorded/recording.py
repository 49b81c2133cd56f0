"""The rows of a file as records, in the order of their times."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from itertools import takewhile

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contracts.codec import encode
from driftline.recorded import record_rows as row_values
from driftline.recorded import tables, values
from driftline.recorded.source import Source
from runtime.produce import Outgoing


class Recording:
    """A file being read. `records` may be called once; the counts grow with it.

    :param limit: only the first so many rows in the order of time, and of what stands beside them what is not later.
    :raises Usage: the file is unreadable or lacks a column.
    """

    def __init__(self, source: Source, *, limit: int | None = None) -> None:
        self.source = source
        self.rows = 0
        """Rows read so far; each became one record."""
        self.malformed = 0
        """Of these, rows without a user, time, type, amount or counterpart where one is needed."""
        column, unit = source.columns.time, source.columns.time_unit
        times = [values.times(table[column], unit) for table in tables.tables(source, [column])]
        self._times = np.concatenate(times) if times else np.empty(0, np.int64)
        known = self._times[self._times != values.UNKNOWN]
        self.first_at: datetime | None = values.time(int(known.min())) if len(known) else None
        self.last_at: datetime | None = values.time(int(known.max())) if len(known) else None
        self.total = len(self._times) if limit is None else min(limit, len(self._times))
        """Rows there will be."""

    def records(self) -> Iterator[Outgoing]:
        """Events by (time, row); each label where it became known; what stands beside the rows before rows of its time.

        :raises Usage: the file is unreadable.
        """
        beside = self.source.beside
        if beside is None or self.first_at is None or self.last_at is None:
            return self._of_rows()
        others = iter(beside(self.first_at, self.last_at))
        if self.total < len(self._times):
            end = int(np.partition(self._times, self.total - 1)[self.total - 1])
            others = takewhile(lambda record: record.at_ms * 1000 <= end, others)
        return heapq.merge(others, self._of_rows(), key=lambda record: record.at_ms)

    def _of_rows(self) -> Iterator[Outgoing]:
        source, topic, says = self.source, self.source.columns.topic, self.source.says
        known_later: deque[Outgoing] = deque()  # stays sorted: the delay is the same for all
        for numbers, table in self._batches():
            for row in row_values.rows(source, numbers, self._times[numbers], table):
                at_ms = values.record_ms(row.at or self.first_at or values.EPOCH)
                while known_later and known_later[0].at_ms <= at_ms:
                    yield known_later.popleft()
                event = row_values.event(topic, row, says)
                self.rows += 1
                self.malformed += event is None
                value = row_values.as_it_is(topic, row, says) if event is None else encode(event)
                yield Outgoing(topic, row.user.encode() if row.user else None, value, at_ms)
                if event is not None and source.label is not None and row.outcome is not None:
                    known_later.append(row_values.late_label(source.label, row, says))
        yield from known_later

    def _batches(self) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
        """Row numbers and rows, in the order of time."""
        columns = self.source.columns.named
        if self.source.label is not None and self.source.label.column not in columns:
            columns.append(self.source.label.column)
        if bool(np.all(self._times[1:] >= self._times[:-1])):
            row = 0
            for table in tables.tables(self.source, columns):
                table = table.slice(0, self.total - row)
                if len(table):
                    yield np.arange(row, row + len(table)), table
                row += len(table)
            return
        whole = pa.concat_tables(list(tables.tables(self.source, columns))).combine_chunks()
        order = np.argsort(self._times, kind="stable")[: self.total]
        for start in range(0, len(order), tables.BATCH_ROWS):
            numbers = order[start : start + tables.BATCH_ROWS]
            yield numbers, whole.take(pa.array(numbers))
