"""Where bytes still stand: every column of every table, the event log decoded, and every file of a folder.

An erasure claims that nothing of a user is left; this looks without asking it, with SQL of its own. What a table
holds is meant: pages that Postgres has not yet written over, and its write-ahead log, are for its own tools.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from re import Pattern

import psycopg
from psycopg import sql

from storage.log.event_log import decode_rows
from storage.postgres.address import conninfo

_COLUMNS = """
    SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
      AND (c.relnamespace = 'public'::regnamespace OR c.relname = 'pg_statistic')
      AND (c.relname, a.attname) <> ('log_segment', 'rows') ORDER BY 1, 2
"""
_SEGMENTS = "SELECT rows FROM log_segment WHERE rows IS NOT NULL"
AT_ONCE = 2**22
"""Bytes of a file read at a time."""


def traces(postgres_url: str, folder: Path, *needles: str) -> dict[str, int]:
    """Place ("table.column", or a file's name) -> rows or files there that hold a needle; {} = nowhere.

    A longer name that begins with the needle, `user-11` in `user-117`, counts too: choose one that none does.
    """
    plain = sorted(needle.encode() for needle in needles)
    with psycopg.connect(conninfo(postgres_url, client_encoding="UTF8")) as connection:
        found = Counter(_in_tables(connection, plain))
    pattern, longest = _any_of(plain), max(map(len, plain))
    files = (file for file in sorted(folder.rglob("*")) if _holds(file, pattern, longest))
    found.update(str(file.relative_to(folder)) for file in files)
    return dict(found)


def _any_of(needles: Iterable[bytes]) -> Pattern[bytes]:
    return re.compile(b"|".join(map(re.escape, needles)))


def _in_tables(connection: psycopg.Connection, needles: list[bytes]) -> Iterator[str]:
    pattern = _any_of([*needles, *(needle.hex().encode() for needle in needles)])
    for table, column in connection.execute(_COLUMNS).fetchall():
        asked = sql.SQL("SELECT {}::text FROM {}").format(sql.Identifier(column), sql.Identifier(table))
        for (value,) in connection.execute(asked):
            if value is not None and pattern.search(value.encode()):
                yield f"{table}.{column}"
    for (rows,) in connection.execute(_SEGMENTS):  # compressed: as text they may show nothing
        events = sum(pattern.search(str(row).encode()) is not None for row in decode_rows(rows).to_pylist())
        yield from ["log_segment.rows"] * (events or pattern.search(rows) is not None)


def _holds(file: Path, pattern: Pattern[bytes], longest: int) -> bool:
    """Whether a file holds the pattern, of at most `longest` bytes; read piece by piece, each with the end of the one
    before."""
    if not file.is_file():
        return False
    tail = b""
    with file.open("rb") as content:
        while piece := content.read(AT_ONCE):
            if pattern.search(tail + piece):
                return True
            tail = piece[-longest:]
    return False
