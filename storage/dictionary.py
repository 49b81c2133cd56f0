"""Strings of the sequences as integers, lossless (protocol, rule 7).

New strings are allocated in sorted order in a short transaction of their own and cached only after it
committed: inside the batch's transaction two owners would deadlock on each other's new strings, and a cache
filled before a rollback would write ids that do not exist.
"""

from __future__ import annotations

from enum import IntEnum

import pyarrow as pa
from sqlalchemy import Connection, Engine, text


class Space(IntEnum):
    """What a string names. Users have a space of their own, so that erasing one can delete the string."""

    USER = 1
    NAME = 2
    ITEM = 3
    PARTY = 4


_ALLOCATE = text("""
    INSERT INTO vocabulary (space, value)
    SELECT :space, value FROM unnest(CAST(:values AS text[])) AS new(value) ORDER BY value
    ON CONFLICT (space, value) DO NOTHING
""")

_LOOK_UP = text("SELECT value, id FROM vocabulary WHERE space = :space AND value = ANY(CAST(:values AS text[]))")


class Dictionary:
    """The ids of strings, cached."""

    def __init__(self, engine: Engine, *, cache_entries: int = 2_000_000) -> None:
        self._engine = engine
        self._cache_entries = cache_entries
        self._ids: dict[Space, dict[str, int]] = {space: {} for space in Space}

    def encode(self, space: Space, values: pa.ChunkedArray | pa.Array) -> pa.Array:
        """Strings to ids (int64); null stays null.

        New strings are committed before this returns.
        """
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        encoded = values.dictionary_encode()
        strings = encoded.dictionary.to_pylist()
        known = self._ids[space]
        if missing := [value for value in strings if value not in known]:
            self._allocate(space, missing, wanted=strings)
            known = self._ids[space]
        ids = pa.array([known[value] for value in strings], pa.int64())
        return ids.take(encoded.indices)

    def known(self, space: Space, values: list[str]) -> dict[str, int]:
        """The ids of those strings that have one; allocates nothing."""
        cached = {value: self._ids[space][value] for value in values if value in self._ids[space]}
        if unknown := [value for value in values if value not in cached]:
            with self._engine.connect() as connection:
                cached |= _select(connection, space, unknown)
        return cached

    def forget_people(self) -> None:
        """Drops the cached users and payees: somebody was erased, and it is not known by name who."""
        for space in (Space.USER, Space.PARTY):
            self._ids[space] = {}

    def _allocate(self, space: Space, values: list[str], *, wanted: list[str]) -> None:
        with self._engine.begin() as connection:
            found = _select(connection, space, values)
            if new := [value for value in values if value not in found]:
                connection.execute(_ALLOCATE, {"space": int(space), "values": new})
                found |= _select(connection, space, new)
        if len(self._ids[space]) + len(found) > self._cache_entries:
            # The strings of this call stay: the caller is about to read all of them.
            kept = self._ids[space]
            self._ids[space] = {value: kept[value] for value in wanted if value in kept}
        self._ids[space].update(found)


def _select(connection: Connection, space: Space, values: list[str]) -> dict[str, int]:
    rows = connection.execute(_LOOK_UP, {"space": int(space), "values": values})
    return {row.value: row.id for row in rows}
