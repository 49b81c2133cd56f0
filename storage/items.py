"""Versions of items: appended, never changed; as of a cursor the newest below it counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql import bindparam

from storage.log.offsets import Claim, Cursor


@dataclass(frozen=True, kw_only=True)
class NewVersion:
    """What `items` said of an item at an offset."""

    claim: Claim
    offset: int
    item_id: str
    record_at: datetime
    payload: dict[str, Any] | None
    """None: deleted."""


@dataclass(frozen=True, kw_only=True)
class ItemVersion:
    """What was known of an item from an offset on."""

    stream_id: int
    offset: int
    record_at: datetime
    """Kafka timestamp; of a deletion whose tombstone was gone before it could be read, that of the version it ended."""
    payload: dict[str, Any] | None
    """title, text, attributes, source; None: deleted."""


_INSERT = text("""
    INSERT INTO item_version (item_id, stream_id, position, epoch, record_at, payload)
    VALUES (:item_id, :stream_id, :position, :epoch, :record_at, :payload)
""").bindparams(bindparam("payload", type_=JSONB(none_as_null=True)))

_AS_OF = text("""
    SELECT DISTINCT ON (v.item_id) v.item_id, v.payload
    FROM item_version v
    JOIN unnest(CAST(:streams AS int[]), CAST(:offsets AS bigint[])) AS c(stream, next_offset)
         ON c.stream = v.stream_id AND v.position < c.next_offset
    WHERE v.item_id = ANY(CAST(:items AS text[]))
    ORDER BY v.item_id, v.stream_id DESC, v.position DESC
""")


_ALIVE = text("""
    SELECT item_id, record_at
    FROM (SELECT DISTINCT ON (item_id) item_id, stream_id, record_at, payload FROM item_version
          ORDER BY item_id, stream_id DESC, position DESC) AS newest
    WHERE stream_id = :stream_id AND payload IS NOT NULL
""")

_VERSIONS = text("""
    SELECT v.stream_id, v.position, v.record_at, v.payload
    FROM item_version v
    JOIN unnest(CAST(:streams AS int[]), CAST(:offsets AS bigint[])) AS c(stream, next_offset)
         ON c.stream = v.stream_id AND v.position < c.next_offset
    WHERE v.item_id = :item_id
    ORDER BY v.stream_id DESC, v.position DESC LIMIT :limit
""")


def append(connection: Connection, versions: Sequence[NewVersion]) -> None:
    """Adds versions; `offsets.advance` in the same transaction makes them count."""
    if versions:
        connection.execute(
            _INSERT,
            [
                {
                    "item_id": version.item_id,
                    "stream_id": version.claim.stream_id,
                    "position": version.offset,
                    "epoch": version.claim.epoch,
                    "record_at": version.record_at,
                    "payload": version.payload,
                }
                for version in versions
            ],
        )


def as_of(connection: Connection, item_ids: Sequence[str], cursor: Cursor) -> dict[str, dict[str, Any]]:
    """What was known of items below the cursor; unknown and deleted ones are absent."""
    values = {"items": list(item_ids), "streams": list(cursor), "offsets": list(cursor.values())}
    return {row.item_id: row.payload for row in connection.execute(_AS_OF, values) if row.payload is not None}


def alive(connection: Connection, stream_id: int) -> dict[str, datetime]:
    """Items whose newest version is of this stream and no deletion -> that version's record time."""
    return {row.item_id: row.record_at for row in connection.execute(_ALIVE, {"stream_id": stream_id})}


def versions(connection: Connection, item_id: str, cursor: Cursor, *, limit: int) -> list[ItemVersion]:
    """An item's versions below the cursor, the newest first: the first is what counts as of it."""
    values = {"item_id": item_id, "streams": list(cursor), "offsets": list(cursor.values()), "limit": limit}
    return [
        ItemVersion(stream_id=row.stream_id, offset=row.position, record_at=row.record_at, payload=row.payload)
        for row in connection.execute(_VERSIONS, values)
    ]
