"""UCI Online Retail: the invoice lines of a British gift shop, 2010-12 to 2011-12.

A line is a user event: `purchase` (quantity above 0), `cancellation` (the invoice was taken back) or
`correction` (a negative quantity without a cancellation). Lines of one invoice share user and time: a basket.
A line that repeats another exactly is a line of its own: the event's id is the row's number.
135,080 lines name no customer; they are sent as they are, without a user, and become dead letters.
Items are the 3,958 stock codes that have a description; 112 codes of the lines have none and stay unknown.
Stock codes such as POST or D are services and discounts; they are items like any other here.

Source: D. Chen, UCI Machine Learning Repository, Online Retail (2015), CC BY 4.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contracts import topics
from contracts.codec import encode
from contracts.records import Item
from driftline.recorded import Columns, Reshape, Source
from driftline.recorded.values import record_ms
from runtime.produce import Outgoing

NAME = "online_retail"


def source(folder: Path) -> Source:
    """The lines; `folder` holds the folder `online_retail`."""
    home = folder / "online_retail"
    return Source(
        name=NAME,
        file=home / "events.parquet",
        columns=Columns(user="user_id", time="ts", type="type", item="item_id"),
        reshape=Reshape(reads=("user_id", "ts", "item_id", "qty", "is_cancel"), make=_with_type),
        beside=partial(_items, home / "items.parquet"),
    )


def _with_type(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    for table in tables:
        cancelled = np.asarray(table["is_cancel"])
        kinds = np.where(np.asarray(table["qty"]) > 0, "purchase", "correction")
        yield table.append_column("type", pa.array(np.where(cancelled, "cancellation", kinds)))


def _items(file: Path, first_at: datetime, last_at: datetime) -> Iterable[Outgoing]:
    """The catalogue, known from the start."""
    for row in pq.read_table(file).to_pylist():
        price = row["median_unit_price"]
        item = Item(
            item_id=f"{NAME}:{row['item_id']}",
            source=NAME,
            title=row["title"],
            attributes={} if price is None else {"median_unit_price": f"{price} GBP"},
        )
        yield Outgoing(topics.ITEMS, item.item_id.encode(), encode(item), record_ms(first_at))
