"""One row of a recording, and the record it stands for."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contracts import topics
from contracts.codec import encode
from contracts.records import SCHEMA, Label, Payment, Relation, UserEvent
from driftline.recorded import values
from driftline.recorded.source import LateLabel, Source
from runtime.produce import Outgoing


class Row(NamedTuple):
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


def rows(source: Source, numbers: NDArray[np.int64], times: NDArray[np.int64], table: pa.Table) -> Iterator[Row]:
    """The rows of a table.

    :param numbers: [rows] their places in the file, from 0. :param times: [rows] microseconds since 1970.
    """
    columns, name = source.columns, source.name
    nothing = [None] * len(table)
    rename = source.type_names.get
    types = [text if text is None else rename(text, text) for text in values.texts(table, columns.type)]
    amounts = values.texts(table, columns.amount) if columns.amount else nothing
    return map(
        Row._make,
        zip(
            _event_ids(source, numbers, table),
            [None if us == values.UNKNOWN else values.time(us) for us in times.tolist()],
            values.ids(name, table, columns.user),
            types,
            values.ids(name, table, columns.item) if columns.item else nothing,
            values.ids(name, table, columns.with_) if columns.with_ else nothing,
            map(values.millionths, amounts),
            values.texts(table, columns.currency),
            map(values.number, values.texts(table, source.label.column)) if source.label else nothing,
            strict=True,
        ),
    )


def event(topic: str, row: Row, source: str) -> UserEvent | Payment | Relation | None:
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


def as_it_is(topic: str, row: Row, source: str) -> bytes:
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


def late_label(rule: LateLabel, row: Row, source: str) -> Outgoing:
    """The outcome of a row that is an event and has one."""
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
    return Outgoing(topics.LABELS, row.user.encode(), encode(label), values.record_ms(label.known_at))


def _event_ids(source: Source, numbers: NDArray[np.int64], table: pa.Table) -> list[str]:
    name, column = source.name, source.columns.id
    if column is None:
        return [f"{name}:{number}" for number in numbers.tolist()]
    given = values.ids(name, table, column)
    return [id or f"{name}:row-{row}" for id, row in zip(given, numbers.tolist(), strict=True)]
