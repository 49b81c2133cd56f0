"""Decoded records as Arrow rows of `storage.log.event_log`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contracts.records import Item, Label, Payment, Record, Relation, UserEvent
from storage.log.event_log import EVENT_ROWS, ITEM_ROWS, LABEL_ROWS

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """Where the fields of a record stand in its rows."""

    schema: pa.Schema
    fields: Mapping[str, str]
    """Column -> field. `offset` and `record_at` are Kafka's; a column without a field is null."""
    times: tuple[str, ...] = ()
    """Columns that hold times which the producer states."""
    key: str = "user"
    """The column that the record's Kafka key repeats."""


_COMMON = {"at": "occurred_at", "event_id": "event_id", "source": "source"}

LAYOUTS: Mapping[type[Record], Layout] = {
    UserEvent: Layout(EVENT_ROWS, {**_COMMON, "user": "user_id", "type": "type", "item": "item_id"}, times=("at",)),
    Payment: Layout(
        EVENT_ROWS,
        {
            **_COMMON,
            "user": "user_id",
            "type": "type",
            "item": "item_id",
            "amount": "amount",
            "currency": "currency",
            "other": "payee_id",
        },
        times=("at",),
    ),
    Relation: Layout(
        EVENT_ROWS,
        {**_COMMON, "user": "actor_id", "type": "relation", "other": "counterpart_id"},
        times=("at",),
    ),
    Label: Layout(
        LABEL_ROWS,
        {
            "at": "known_at",
            "event_id": "event_id",
            "user": "user_id",
            "task": "task",
            "subject": "subject_event_id",
            "ref_time": "ref_time",
            "value": "value",
            "source": "source",
        },
        times=("at", "ref_time"),
    ),
    Item: Layout(ITEM_ROWS, {"item": "item_id"}, key="item"),
}


def rows_of(layout: Layout, records: Sequence[object], *, offsets: Ints, record_ms: Ints) -> pa.RecordBatch:
    """One row a record.

    :param offsets: [n] their offsets.
    :param record_ms: [n] their Kafka timestamps, milliseconds since 1970.
    """
    stamps = pa.array(record_ms * 1000).cast(layout.schema.field("record_at").type)
    columns = {"offset": pa.array(offsets), "record_at": stamps}
    for column, field in layout.fields.items():
        values = list(map(attrgetter(field), records))
        columns[column] = pa.array(values, layout.schema.field(column).type)
    return pa.record_batch(
        [
            columns[name] if name in columns else pa.nulls(len(records), kind)
            for name, kind in zip(layout.schema.names, layout.schema.types, strict=True)
        ],
        schema=layout.schema,
    )


def microseconds(column: pa.Array) -> Ints:
    """A column of times as microseconds since 1970."""
    return np.asarray(column.cast(pa.int64()))
