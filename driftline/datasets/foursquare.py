"""Foursquare check-ins of four cities, 2012-04 to 2014-01, and the friendships before and after them.

A check-in is a user event of type `category-N` at a venue. Users and venues are namespaced by city
("foursquare:NYC:42"): ids of different cities collide and mean nothing to each other. Times are the cities'
local clocks, in whole hours, sent as if they were UTC.
A venue is published at its first check-in, with its city and the category of that check-in.
Each row of the friendships is a relational event: `friend-before` at the first check-in's time, `friend-after`
one second after the last: the data say when neither of them began.

Source: D. Yang et al., "Revisiting User Mobility and Social Relationships in LBSNs", WWW 2019.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts import topics
from contracts.codec import encode
from contracts.records import Item, Relation
from driftline.recorded import Columns, Reshape, Source
from driftline.recorded.values import record_ms, time
from runtime.produce import Outgoing

NAME = "foursquare"
_AFTER = timedelta(seconds=1)


def source(folder: Path) -> Source:
    """The check-ins; `folder` holds the folder `lbsn_foursquare`."""
    home = folder / "lbsn_foursquare"
    return Source(
        name=NAME,
        file=home / "events.parquet",
        columns=Columns(user="user", time="ts_local", type="type", item="venue"),
        reshape=Reshape(reads=("city", "user_id", "item_id", "category", "ts_local"), make=_namespaced),
        beside=partial(_beside, home),
    )


def _namespaced(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    for table in tables:
        yield pa.table(
            {
                "user": _in_city(table, "user_id"),
                "venue": _in_city(table, "item_id"),
                "type": pc.binary_join_element_wise("category", _text(table["category"]), "-"),
                "ts_local": table["ts_local"],
            }
        )


def _in_city(table: pa.Table, column: str) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(_text(table["city"]), _text(table[column]), ":")


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.cast(column, pa.string())


def _beside(home: Path, first_at: datetime, last_at: datetime) -> Iterator[Outgoing]:
    friends = pq.read_table(home / "friends.parquet")
    before, after = (friends.filter(pc.equal(friends["snapshot"], which)) for which in ("old", "new"))
    yield from heapq.merge(
        _friendships(before, "friend-before", first_at),
        _venues(home / "events.parquet"),
        _friendships(after, "friend-after", last_at + _AFTER),
        key=lambda record: record.at_ms,
    )


def _friendships(edges: pa.Table, relation: str, at: datetime) -> Iterable[Outgoing]:
    pairs = zip(_in_city(edges, "u").to_pylist(), _in_city(edges, "v").to_pylist(), strict=True)
    for number, (one, other) in enumerate(pairs):
        event = Relation(
            event_id=f"{NAME}:{relation}:{number}",
            actor_id=f"{NAME}:{one}",
            relation=relation,
            counterpart_id=f"{NAME}:{other}",
            occurred_at=at,
            source=NAME,
        )
        yield Outgoing(topics.RELATIONAL, event.actor_id.encode(), encode(event), record_ms(at))


def _venues(file: Path) -> Iterable[Outgoing]:
    """Each venue at its first check-in, by (time, row)."""
    table = pq.read_table(file, columns=["city", "item_id", "category", "ts_local"])
    order = np.argsort(table["ts_local"].to_numpy(), kind="stable")
    table = table.take(pa.array(order))
    _, firsts = np.unique(np.asarray(_in_city(table, "item_id").to_pylist()), return_index=True)
    for row in table.take(pa.array(np.sort(firsts))).to_pylist():
        item = Item(
            item_id=f"{NAME}:{row['city']}:{row['item_id']}",
            source=NAME,
            attributes={"city": row["city"], "category": str(row["category"])},
        )
        at_ms = record_ms(time(row["ts_local"] * 1_000_000))
        yield Outgoing(topics.ITEMS, item.item_id.encode(), encode(item), at_ms)
