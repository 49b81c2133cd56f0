"""What the numbers in sequences stand for: strings of the vocabulary, topics and partitions of streams.

A number never changes its meaning and is never given twice, so what a connection has seen it may remember. The
strings of an erased user go from memory with the connection, or with the next overflow; no row names them any more.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from sqlalchemy import Connection, text

from storage.engine import driver
from storage.sequences.array_columns import Ints, Strings

REMEMBERED = 500_000
"""Strings a connection keeps; some 60 MB."""
NOTHING = 0
"""The number of no string: vocabulary ids start at 1."""

_STRINGS = "SELECT id, value FROM vocabulary WHERE id = ANY(%s::bigint[])"
_PLACES = text("SELECT stream_id, topic, partition FROM stream_offset WHERE stream_id = ANY(CAST(:ids AS int[]))")

Places = dict[int, tuple[str, int]]
"""Stream -> (topic, partition)."""


class Gone(RuntimeError):
    """Rows name strings that the vocabulary does not hold."""


class Names:
    """Numbers' meanings, as far as one connection has asked for them."""

    def __init__(self) -> None:
        self._strings: dict[int, str | None] = {NOTHING: None}
        self._places: Places = {}

    @classmethod
    def of(cls, connection: Connection) -> Names:
        """Those of the connection below SQLAlchemy's; pooled ones keep them between uses."""
        names: Names = connection.info.setdefault("driftline_names", cls())
        return names

    def strings(self, connection: Connection, numbers: Ints) -> Strings:
        """Strings of vocabulary ids, None for NOTHING; same shape.

        :raises Gone: a string was deleted.
        """
        if not numbers.any():
            return np.full(numbers.shape, None, np.object_)
        encoded = pa.array(numbers).dictionary_encode()
        distinct = encoded.dictionary.tolist()
        self._learn(connection, distinct)
        found = np.empty(len(distinct), np.object_)
        found[:] = [self._strings[number] for number in distinct]
        taken: Strings = found[encoded.indices.to_numpy()]
        return taken

    def places(self, connection: Connection, streams: Iterable[int]) -> Places:
        """Topics and partitions of streams."""
        wanted = list(streams)
        if missing := [stream for stream in wanted if stream not in self._places]:
            rows = connection.execute(_PLACES, {"ids": missing})
            self._places |= {row.stream_id: (row.topic, row.partition) for row in rows}
        return {stream: self._places[stream] for stream in wanted}

    def _learn(self, connection: Connection, numbers: list[int]) -> None:
        missing = [number for number in numbers if number not in self._strings]
        if not missing:
            return
        if len(self._strings) + len(missing) > REMEMBERED:
            self._strings = {number: self._strings[number] for number in numbers if number in self._strings}
            self._strings[NOTHING] = None
        self._strings |= dict(driver(connection).execute(_STRINGS, [missing]).fetchall())
        if gone := [number for number in missing if number not in self._strings]:
            raise Gone(f"rows of user_segment name strings that the vocabulary does not hold, e.g. {gone[0]}")
