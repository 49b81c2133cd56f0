"""Amazon Office and Industrial 2018: who bought which item next. Order only: THE TIMES ARE MADE UP.

The data hold, for each target item, the up to 10 items that the user bought before it, and are sorted by the
target's time, which they do not tell. So each user's items are laid out once, in their order: first the
history of the user's first row, then the targets. Every record says `amazon_titles/synthetic-time` in `source`.
Made up: a target comes one minute after the row before it, rows of both categories in step, `valid` before
`test`; the history lies in the minutes before the first target of all, the j-th item from its end j minutes
before. Only the order within a user, and of targets within a category, is real.
Ids are namespaced by category: "amazon_titles:Office_Products:A17".

Source: the MiniOneRec project's cut of the Amazon reviews 2018 (J. Ni, J. Li, J. McAuley, EMNLP 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from contracts import topics
from contracts.codec import encode
from contracts.records import MAX_TEXT_CHARS, Item
from driftline.recorded import Columns, Reshape, Source
from driftline.recorded.values import record_ms
from runtime.produce import Outgoing

NAME = "amazon_titles"
STATED = f"{NAME}/synthetic-time"
FIRST_TARGET_AT = datetime(2018, 1, 1, tzinfo=UTC)
"""Made up, like every time here."""

_MINUTE_S = 60
_SPLITS = ("valid", "test")


def source(folder: Path) -> Source:
    """The purchases; `folder` holds the folder `amazon_titles_sequences`."""
    home = folder / "amazon_titles_sequences"
    return Source(
        name=NAME,
        file=home / "sequences.parquet",
        columns=Columns(user="user", time="made_up_s", type="=purchase", item="item", id="id"),
        reshape=Reshape(reads=("category", "split", "row", "user_id", "history", "item_id"), make=_laid_out),
        beside=partial(_items, home / "items.parquet"),
        stated=STATED,
    )


def _laid_out(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Rows with histories -> one row a purchase: user, item, made_up_s, id."""
    rows = [row for table in tables for row in table.to_pylist()]
    numbered = sorted(enumerate(rows), key=lambda pair: _place(pair[1]))
    test_from = 1 + max((row["row"] for row in rows if row["split"] == "valid"), default=-1)
    met: set[str] = set()
    purchases = []
    for number, row in numbered:
        user = f"{row['category']}:{row['user_id']}"
        before = () if user in met else row["history"]
        met.add(user)
        purchases += [
            (user, f"{row['category']}:{item}", (n - len(before)) * _MINUTE_S, f"{number}:history-{n}")
            for n, item in enumerate(before)
        ]
        minute = row["row"] + (test_from if row["split"] == "test" else 0)
        purchases.append((user, f"{row['category']}:{row['item_id']}", minute * _MINUTE_S, str(number)))
    start_s = int(FIRST_TARGET_AT.timestamp())
    users, items, seconds, ids = zip(*purchases, strict=True)
    yield pa.table(
        {
            "user": pa.array(users, pa.string()),
            "item": pa.array(items, pa.string()),
            "made_up_s": pa.array([start_s + second for second in seconds], pa.int64()),
            "id": pa.array(ids, pa.string()),
        }
    )


def _place(row: dict[str, Any]) -> tuple[int, int, str]:
    return _SPLITS.index(row["split"]), row["row"], row["category"]


def _items(file: Path, first_at: datetime, last_at: datetime) -> Iterable[Outgoing]:
    """The catalogue, known from the start."""
    for row in pq.read_table(file).to_pylist():
        attributes = {name: row[name] for name in ("category", "brand", "categories", "semantic_id") if row[name]}
        item = Item(
            item_id=f"{NAME}:{row['category']}:{row['item_id']}",
            source=STATED,
            title=row["title"],
            text=row["description"][:MAX_TEXT_CHARS],
            attributes=attributes,
        )
        yield Outgoing(topics.ITEMS, item.item_id.encode(), encode(item), record_ms(first_at))
