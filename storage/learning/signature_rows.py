"""Signature tables of users: a cache for scoring, written behind `train` and never read by it (protocol, rule 17).

A row is one user's table of one version of the item vectors, written whole, with the cursor below which every event
of the user is in it. What came later the reader adds; for a missing row, or one of another version, it rebuilds the
table from the user's sequence. So an old row is no error, and losing them all costs time alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql import bindparam

from storage.log.offsets import Cursor


@dataclass(frozen=True, kw_only=True)
class TableVersion:
    """Which tables: those of other versions say nothing to its reader."""

    learner: str
    embedding: str
    """Version of the item vectors."""
    hash_id: str
    """Digest of the hash's matrix."""


@dataclass(frozen=True, kw_only=True)
class StoredSignature:
    """One user's row."""

    user: str
    cursor: Cursor
    """Every event of the user below it is in the table, and no other; streams not named: none of theirs."""
    events: int
    """Behaviours in the table: the user's newest."""
    last_at: int
    """Event time of the newest of them, microseconds since 1970."""
    oldest: tuple[tuple[int, str], ...]
    """(event time, item) of the oldest of them, oldest first."""
    sums: NDArray[np.float32]
    """[G, R, D]"""
    counts: NDArray[np.int32]
    """[G, R]"""


# A user whose name is gone (erased) gets no row: the lock makes an erasure wait, and it looks for rows afterwards.
_PUT = text("""
    INSERT INTO signature_table (user_id, learner, embedding, hash_id, cursor, events, last_at, oldest_at, oldest_item,
                                 shape, sums, counts)
    SELECT id, :learner, :embedding, :hash_id, :cursor, :events, :last_at, CAST(:oldest_at AS bigint[]),
           CAST(:oldest_item AS text[]), CAST(:shape AS int[]), :sums, :counts
    FROM vocabulary WHERE space = 1 AND value = :user FOR KEY SHARE
    ON CONFLICT (user_id, learner, embedding, hash_id) DO UPDATE
    SET cursor = excluded.cursor, events = excluded.events, last_at = excluded.last_at,
        oldest_at = excluded.oldest_at, oldest_item = excluded.oldest_item, shape = excluded.shape,
        sums = excluded.sums, counts = excluded.counts, written_at = clock_timestamp()
""").bindparams(bindparam("cursor", type_=JSONB))

_READ = text("""
    SELECT u.value AS "user", s.cursor, s.events, s.last_at, s.oldest_at, s.oldest_item, s.shape, s.sums, s.counts
    FROM unnest(CAST(:users AS text[])) AS asked(value)
    CROSS JOIN LATERAL (SELECT id, value FROM vocabulary WHERE space = 1 AND value = asked.value) AS u
    JOIN signature_table s ON s.user_id = u.id
    WHERE s.learner = :learner AND s.embedding = :embedding AND s.hash_id = :hash_id
""")

_DROP_OTHERS = text("""
    DELETE FROM signature_table WHERE learner = :learner AND embedding <> ALL(CAST(:embeddings AS text[]))
""")

_ERASE = text("DELETE FROM signature_table WHERE user_id = ANY(CAST(:ids AS bigint[]))")


def put(connection: Connection, version: TableVersion, rows: Sequence[StoredSignature]) -> None:
    """Writes rows whole, in place of the users' older ones of this version.

    Users the vocabulary does not know are passed over. Sorted by user, so that two writers never deadlock.
    """
    ordered = sorted(rows, key=lambda row: row.user)
    if ordered:
        connection.execute(_PUT, [{**_key(version), **_values(row)} for row in ordered])


def read(connection: Connection, version: TableVersion, users: Sequence[str]) -> dict[str, StoredSignature]:
    """The users' rows of this version. Users without one are absent, and so are those whose bytes are no table.

    Read the events in [row's cursor, watermark) in the same transaction (protocol, rule 19).
    """
    found = connection.execute(_READ, {**_key(version), "users": list(dict.fromkeys(users))})
    rows = {row.user: _row(row) for row in found}
    return {user: row for user, row in rows.items() if row is not None}


def drop_others(connection: Connection, learner: str, embeddings: Sequence[str]) -> int:
    """Deletes a learner's rows of all versions but these; how many."""
    return connection.execute(_DROP_OTHERS, {"learner": learner, "embeddings": list(embeddings)}).rowcount


def erase(connection: Connection, user_ids: Sequence[int]) -> None:
    """Deletes the rows of erased users, by vocabulary id: after their names, in the same transaction."""
    connection.execute(_ERASE, {"ids": list(user_ids)})


def _key(version: TableVersion) -> dict[str, str]:
    return {"learner": version.learner, "embedding": version.embedding, "hash_id": version.hash_id}


def _values(row: StoredSignature) -> dict[str, object]:
    return {
        "user": row.user,
        "cursor": {str(stream): offset for stream, offset in row.cursor.items()},
        "events": row.events,
        "last_at": row.last_at,
        "oldest_at": [at for at, _ in row.oldest],
        "oldest_item": [item for _, item in row.oldest],
        "shape": list(row.sums.shape),
        "sums": row.sums.astype("<f4").tobytes(),
        "counts": row.counts.astype("<i4").tobytes(),
    }


def _row(row: Any) -> StoredSignature | None:
    signatures, buckets, width = row.shape
    if (len(row.sums), len(row.counts)) != (4 * signatures * buckets * width, 4 * signatures * buckets):
        return None
    return StoredSignature(
        user=row.user,
        cursor={int(stream): offset for stream, offset in row.cursor.items()},
        events=row.events,
        last_at=row.last_at,
        oldest=tuple(zip(row.oldest_at, row.oldest_item, strict=True)),
        sums=np.frombuffer(row.sums, "<f4").astype(np.float32).reshape(row.shape),
        counts=np.frombuffer(row.counts, "<i4").astype(np.int32).reshape(row.shape[:2]),
    )
