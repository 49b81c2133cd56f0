"""Recorded events in a CSV or Parquet file, as records in the order of the world: by (event time, row).

A record's time is its event's time. Ids become "SOURCE:id". A row that cannot become an event (no user, no
time, an amount that is none) becomes the malformed record it is. Labels come when they became known.

Memory: the file is read in batches where it is sorted by time; else the needed columns are held at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from contracts import topics
from contracts.codec import encode
from contracts.records import MAX_AMOUNT, MILLIONTHS, SCHEMA, Label, Payment, Relation, UserEvent
from runtime.lifecycle import Usage
from runtime.produce import Outgoing

BATCH_ROWS = 65_536
_UNITS_US = {"s": 1_000_000, "ms": 1_000, "us": 1}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNKNOWN = np.iinfo(np.int64).min  # a time that is missing or unreadable; sorts first
_FIRST_US, _LAST_US = ((datetime(year, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1) for year in (1, 9999))


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column holds what. A value that starts with "=" is no column but the value itself: "=EUR".

    With `amount` rows are payments, else with `with_` relational events, else user events.
    """

    user: str
    time: str
    """Seconds since 1970 (see `time_unit`), ISO 8601 text or a timestamp column; without a zone it is UTC."""
    time_unit: Literal["s", "ms", "us"] = "s"
    type: str = "=event"
    item: str | None = None
    amount: str | None = None
    """Currency units. A float counts as its shortest decimal ("57.16"), rounded half-even to millionths."""
    currency: str = "=EUR"
    with_: str | None = None
    """The other side: payee of a payment, counterpart of a relational event."""
    id: str | None = None
    """Identity of the event; None = the row's number in the file, from 0."""

    @property
    def named(self) -> list[str]:
        """The columns read, without repeats."""
        given = (self.user, self.time, self.type, self.item, self.amount, self.currency, self.with_, self.id)
        return list(dict.fromkeys(name for name in given if name and not name.startswith("=")))

    @property
    def topic(self) -> str:
        """Where the rows go."""
        return topics.PAYMENT if self.amount else topics.RELATIONAL if self.with_ else topics.USER


@dataclass(frozen=True, kw_only=True)
class LateLabel:
    """A column with an outcome that became known some time after the event. A null is no label."""

    column: str
    task: str
    delay: timedelta


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of events."""

    name: str
    """Stands before every id."""
    file: Path
    """*.parquet, else CSV with a header line."""
    columns: Columns
    type_names: Mapping[str, str] = field(default_factory=dict)
    """Value of the type column -> name; other values keep their text."""
    label: LateLabel | None = None


class Recording:
    """A file being read. `records` may be called once; the counts grow with it.

    :param limit: only the first so many rows in the order of time.
    :raises Usage: the file is unreadable or lacks a column.
    """

    def __init__(self, source: Source, *, limit: int | None = None) -> None:
        self.source = source
        self.rows = 0
        """Rows read so far; each became one record."""
        self.malformed = 0
        """Of these, rows without a user, time, type, amount or counterpart where one is needed."""
        times = [_times(table[source.columns.time], source.columns) for table in _tables(source, [source.columns.time])]
        self._times = np.concatenate(times) if times else np.empty(0, np.int64)
        known = self._times[self._times != _UNKNOWN]
        self.first_at: datetime | None = _time(int(known.min())) if len(known) else None
        self.last_at: datetime | None = _time(int(known.max())) if len(known) else None
        self.total = len(self._times) if limit is None else min(limit, len(self._times))
        """Rows there will be."""

    def records(self) -> Iterator[Outgoing]:
        """Events by (time, row), and each label where it became known."""
        source, topic, name = self.source, self.source.columns.topic, self.source.name
        known_later: deque[Outgoing] = deque()  # stays sorted: the delay is the same for all
        for numbers, table in self._batches():
            for row in _rows(source, numbers, self._times[numbers], table):
                at_ms = _ms(row.at or self.first_at or _EPOCH)
                while known_later and known_later[0].at_ms <= at_ms:
                    yield known_later.popleft()
                event = _event(topic, row, name)
                self.rows += 1
                self.malformed += event is None
                value = _as_it_is(topic, row, name) if event is None else encode(event)
                yield Outgoing(topic, row.user.encode() if row.user else None, value, at_ms)
                if event is not None and source.label is not None and row.outcome is not None:
                    known_later.append(_late_label(source.label, row, name))
        yield from known_later

    def _batches(self) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
        """Row numbers and rows, in the order of time."""
        columns = self.source.columns.named
        if self.source.label is not None and self.source.label.column not in columns:
            columns.append(self.source.label.column)
        if bool(np.all(self._times[1:] >= self._times[:-1])):
            row = 0
            for table in _tables(self.source, columns):
                table = table.slice(0, self.total - row)
                if len(table):
                    yield np.arange(row, row + len(table)), table
                row += len(table)
            return
        whole = pa.concat_tables(list(_tables(self.source, columns))).combine_chunks()
        order = np.argsort(self._times, kind="stable")[: self.total]
        for start in range(0, len(order), BATCH_ROWS):
            numbers = order[start : start + BATCH_ROWS]
            yield numbers, whole.take(pa.array(numbers))


class _Row(NamedTuple):
    """A row; None = missing or unfit."""

    id: str
    at: datetime | None
    user: str | None
    type: str | None
    item: str | None
    other: str | None
    amount: int | None
    currency: str | None
    outcome: float | None


def _rows(source: Source, numbers: NDArray[np.int64], times: NDArray[np.int64], table: pa.Table) -> Iterator[_Row]:
    columns, name = source.columns, source.name
    nothing = [None] * len(table)
    ids = [f"{name}:{number}" for number in numbers.tolist()]
    if columns.id is not None:
        given = _ids(name, table, columns.id)
        ids = [named or f"{name}:row-{row}" for named, row in zip(given, numbers.tolist(), strict=True)]
    rename = source.type_names.get
    types = [text if text is None else rename(text, text) for text in _texts(table, columns.type)]
    return map(
        _Row._make,
        zip(
            ids,
            [None if us == _UNKNOWN else _time(us) for us in times.tolist()],
            _ids(name, table, columns.user),
            types,
            _ids(name, table, columns.item) if columns.item else nothing,
            _ids(name, table, columns.with_) if columns.with_ else nothing,
            [_millionths(text) for text in _texts(table, columns.amount)] if columns.amount else nothing,
            _texts(table, columns.currency),
            [_number(text) for text in _texts(table, source.label.column)] if source.label else nothing,
            strict=True,
        ),
    )


def _event(topic: str, row: _Row, source: str) -> UserEvent | Payment | Relation | None:
    """The record a row stands for; None = something it needs is missing."""
    if row.at is None or row.user is None or row.type is None:
        return None
    if topic == topics.PAYMENT:
        if row.amount is None or row.currency is None:
            return None
        return Payment(
            event_id=row.id,
            user_id=row.user,
            occurred_at=row.at,
            source=source,
            type=row.type,
            amount=row.amount,
            currency=row.currency,
            payee_id=row.other,
            item_id=row.item,
        )
    if topic == topics.RELATIONAL:
        if row.other is None:
            return None
        return Relation(
            event_id=row.id,
            actor_id=row.user,
            relation=row.type,
            counterpart_id=row.other,
            occurred_at=row.at,
            source=source,
        )
    return UserEvent(
        event_id=row.id, user_id=row.user, occurred_at=row.at, source=source, type=row.type, item_id=row.item
    )


def _as_it_is(topic: str, row: _Row, source: str) -> bytes:
    """What is there of a row that is no event; `ingest` says what is missing."""
    user, type, other = (
        ("actor_id", "relation", "counterpart_id") if topic == topics.RELATIONAL else ("user_id", "type", "payee_id")
    )
    fields: dict[str, object] = {
        "schema": SCHEMA,
        "event_id": row.id,
        user: row.user,
        "occurred_at": row.at,
        "source": source,
        type: row.type,
        other: row.other,
        "item_id": row.item,
    }
    if topic == topics.PAYMENT:
        fields |= {"amount": row.amount, "currency": row.currency}
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


def _late_label(rule: LateLabel, row: _Row, source: str) -> Outgoing:
    assert row.at is not None
    assert row.user is not None
    assert row.outcome is not None
    label = Label(
        event_id=f"{row.id}:{rule.task}",
        user_id=row.user,
        task=rule.task,
        subject_event_id=row.id,
        ref_time=row.at,
        known_at=row.at + rule.delay,
        value=row.outcome,
        source=source,
    )
    return Outgoing(topics.LABELS, row.user.encode(), encode(label), _ms(label.known_at))


def _tables(source: Source, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The columns in batches, in the order of the file."""
    try:
        if source.file.suffix == ".parquet":
            with pq.ParquetFile(source.file) as parquet:
                if missing := set(columns) - set(parquet.schema_arrow.names):
                    raise KeyError(f"no column {', '.join(sorted(missing))}")
                for batch in parquet.iter_batches(BATCH_ROWS, columns=list(columns)):
                    yield pa.table(batch)
        else:
            text = pa_csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()),
                include_columns=list(columns),
                strings_can_be_null=True,
                null_values=[""],
            )
            with pa_csv.open_csv(source.file, convert_options=text) as csv:
                for batch in csv:
                    yield pa.table(batch)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise Usage(
            f"unreadable: {error}", where=str(source.file), todo="check the file and the columns named"
        ) from None


def _texts(table: pa.Table, column: str) -> list[str | None]:
    """A column as text; "=X" is X in every row.

    :raises Usage: a column of lists, structures or the like.
    """
    if column.startswith("="):
        return [column[1:]] * len(table)
    try:
        return _as_text(table[column])
    except pa.ArrowException as error:
        raise Usage(f"column {column} holds no plain values: {error}", todo="name another column") from None


def _as_text(column: pa.ChunkedArray) -> list[str | None]:
    """Shortest decimals for floats; nulls and empty texts are None."""
    return [text or None for text in pc.cast(column, pa.string()).to_pylist()]


def _ids(source: str, table: pa.Table, column: str) -> list[str | None]:
    return [None if text is None else f"{source}:{text}" for text in _texts(table, column)]


def _times(column: pa.ChunkedArray, columns: Columns) -> NDArray[np.int64]:
    """Microseconds since 1970."""
    kind, unit_us = column.type, _UNITS_US[columns.time_unit]
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        seconds = pc.cast(column, pa.float64(), safe=False).to_numpy()
        exact = np.rint(seconds * unit_us)
        fit = (exact >= _FIRST_US) & (exact <= _LAST_US)  # False for NaN
        return np.where(fit, np.where(fit, exact, 0).astype(np.int64), _UNKNOWN)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        cast = pc.cast(pc.cast(column, pa.timestamp("us", getattr(kind, "tz", None)), safe=False), pa.int64())
        us = np.asarray(pc.fill_null(cast, _UNKNOWN).to_numpy(), np.int64)
        return np.where((us >= _FIRST_US) & (us <= _LAST_US), us, _UNKNOWN)
    return np.array([_parsed_time(text, unit_us) for text in _as_text(column)], np.int64)


def _parsed_time(text: str | None, unit_us: int) -> int:
    try:
        us = int((Decimal(text or "") * unit_us).to_integral_value(ROUND_HALF_EVEN))
    except (InvalidOperation, OverflowError, ValueError):
        try:
            at = datetime.fromisoformat(text or "")
        except ValueError:
            return _UNKNOWN
        us = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)
    return us if _FIRST_US <= us <= _LAST_US else _UNKNOWN


def _millionths(text: str | None) -> int | None:
    """A decimal number of currency units in millionths; None = no number, or beyond what a record holds."""
    try:
        amount = Decimal(text or "") * MILLIONTHS
        return int(amount.to_integral_value(ROUND_HALF_EVEN)) if abs(amount) <= MAX_AMOUNT else None
    except InvalidOperation:  # NaN too: it does not compare
        return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _time(us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=us)


def _ms(at: datetime) -> int:
    """A record time. To Kafka clients 0 means now, and before 1970 there is none."""
    return max((at - _EPOCH) // timedelta(milliseconds=1), 1)
