"""What an erasure takes out of each table: log rows, entries of sequences, dead letters, strings (protocol, rule 18).

An event is a user's if it is the user's own, or names the user as counterpart or payee: the same ones that
acceptance refuses once the user is suppressed, so a replay of the topics leads to the same tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from re import Pattern

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, text

from contracts import topics
from storage.learning import label_resolutions, predictions, signature_rows
from storage.log import event_log
from storage.log.dead_letters import ERASED_DETAIL
from storage.privacy import suppression
from storage.sequences import compaction, sequence_retention

_NAMING_TOPICS = (topics.USER, topics.PAYMENT, topics.RELATIONAL, topics.LABELS)
"""Topics whose records name users."""
_ID_BYTE = rb"[0-9A-Za-z_\x80-\xff]"


@dataclass(frozen=True, kw_only=True)
class RowPosition:
    """A log segment."""

    stream_id: int
    first: int
    epoch: int


_SEGMENTS = text("""
    SELECT g.stream_id, g.first_offset AS first, g.epoch
    FROM log_segment g JOIN stream_offset USING (stream_id)
    WHERE topic = ANY(CAST(:topics AS text[])) AND rows IS NOT NULL ORDER BY g.stream_id, g.first_offset, g.epoch
""")

_ROWS = text("""
    SELECT rows FROM log_segment WHERE stream_id = :stream_id AND first_offset = :first AND epoch = :epoch
    FOR UPDATE
""")

_PUT_BACK = text("""
    UPDATE log_segment SET rows = :rows, accepted = accepted - :gone, suppressed = suppressed + :gone,
           first_event_at = :first_event_at, last_event_at = :last_event_at
    WHERE stream_id = :stream_id AND first_offset = :first AND epoch = :epoch
""")

_TOUCHED = text("""
    UPDATE snapshot SET irreproducible = true
    WHERE NOT irreproducible AND (cursor ->> CAST(:stream AS text))::bigint > :position
""")

# Retention removed what would tell who learnt of them, and when.
_UNTOLD = text("""
    UPDATE snapshot SET irreproducible = true
    WHERE NOT irreproducible AND (manifest ->> 'names_users')::bool
""")

_IDS = text("""
    SELECT id, space, value FROM vocabulary WHERE space IN (1, 4) AND value = ANY(CAST(:values AS text[]))
""")

_COUNTERPARTS = text("""
    SELECT DISTINCT e.other
    FROM user_segment s CROSS JOIN LATERAL unnest(s.kind, s.other) AS e(kind, other)
    WHERE s.user_id = ANY(CAST(:ids AS bigint[])) AND e.kind IN (3, 4)
      AND e.other <> ALL(CAST(:ids AS bigint[])) ORDER BY e.other
""")

_PAYERS = text("""
    SELECT DISTINCT user_id FROM user_segment
    WHERE other && CAST(:ids AS bigint[]) AND user_id <> ALL(CAST(:ids AS bigint[])) ORDER BY user_id
""")

_WITHOUT = text(
    compaction.replacing(
        """
        SELECT user_id, stream_id, first_offset, epoch FROM user_segment
        WHERE user_id = ANY(CAST(:users AS bigint[])) AND other && CAST(:ids AS bigint[])
        """,
        kept="e.other IS NULL OR e.other <> ALL(CAST(:ids AS bigint[]))",
    )
)

_FIRST_POSITIONS = text("""
    SELECT e.stream, min(e.position) AS position
    FROM user_segment s CROSS JOIN LATERAL unnest(s.stream, s.position) AS e(stream, position)
    WHERE s.user_id = ANY(CAST(:ids AS bigint[])) GROUP BY e.stream
""")

_DELETE_SEQUENCES = text("""
    WITH gone AS (DELETE FROM user_segment WHERE user_id = ANY(CAST(:ids AS bigint[]))
                  RETURNING CASE WHEN stream_id <> 0 THEN cardinality(at) ELSE events END AS n)
    SELECT coalesce(sum(n), 0)::bigint FROM gone
""")

_LETTERS = text("""
    SELECT stream_id, position, epoch, key, value, detail FROM dead_letter
    WHERE (stream_id, position, epoch) > (:stream_id, :position, :epoch)
    ORDER BY stream_id, position, epoch LIMIT 1000
""")

# The row stays: it says that the offset was dealt with. What it kept of the record goes, its hash included.
_BLANK = text("""
    UPDATE dead_letter SET key = NULL, value = NULL, sha256 = '', cut = true, detail = :detail
    WHERE stream_id = :stream_id AND position = :position AND epoch = :epoch
""")

_DELETE_STRINGS = text("DELETE FROM vocabulary WHERE id = ANY(CAST(:ids AS bigint[]))")


def segments(connection: Connection) -> list[RowPosition]:
    """Log segments that may name users."""
    found = connection.execute(_SEGMENTS, {"topics": list(_NAMING_TOPICS)})
    return [RowPosition(**row._mapping) for row in found]


def from_segment(connection: Connection, place: RowPosition, users: Sequence[str]) -> int:
    """Takes users' rows out of a log segment with what was predicted of them, and marks snapshots learnt from them;
    how many rows.

    They count as suppressed from now on, as a replay would count them, and the users as found.
    """
    key = {"stream_id": place.stream_id, "first": place.first, "epoch": place.epoch}
    stored = connection.scalar(_ROWS, key)
    if stored is None:  # retention was faster
        return 0
    rows = event_log.decode_rows(stored)
    named = _named(rows, users)
    if not named.any():
        return 0
    left = rows.filter(pa.array(~named)).combine_chunks()
    suppression.found(connection, _names_in(rows.filter(pa.array(named))) & set(users))
    bounds = pc.min_max(left["at"]).as_py()
    values = {"rows": event_log.encode_rows(left) if left.num_rows else None, "gone": int(named.sum())}
    connection.execute(_PUT_BACK, {**key, **values, "first_event_at": bounds["min"], "last_event_at": bounds["max"]})
    gone = rows["offset"].to_numpy()[named]
    predictions.erase_events(connection, place.stream_id, gone.tolist())
    label_resolutions.erase_events(connection, place.stream_id, gone.tolist())
    _mark_touched(connection, place.stream_id, int(gone[0]))
    return len(gone)


def _named(rows: pa.Table, users: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    wanted = pa.array(users, pa.string())
    named = np.zeros(rows.num_rows, bool)
    for column in {"user", "other"} & set(rows.column_names):
        named |= pc.is_in(rows[column], value_set=wanted).to_numpy(zero_copy_only=False).astype(bool)
    return named


def _names_in(rows: pa.Table) -> set[str]:
    """Users and counterparts that stand in rows."""
    return {
        name for column in {"user", "other"} & set(rows.column_names) for name in pc.unique(rows[column]).to_pylist()
    }


def _mark_touched(connection: Connection, stream_id: int, position: int) -> None:
    """Snapshots whose learner has passed the position cannot be rebuilt any more."""
    connection.execute(_TOUCHED, {"stream": str(stream_id), "position": position})


def ids_of(connection: Connection, users: Sequence[str]) -> tuple[list[int], list[int]]:
    """Numbers of the users' strings: as users, as payees. Who has one counts as found."""
    rows = connection.execute(_IDS, {"values": list(users)}).all()
    suppression.found(connection, {row.value for row in rows})
    return [row.id for row in rows if row.space == 1], [row.id for row in rows if row.space == 4]


def known_of(connection: Connection, names: Collection[str]) -> set[str]:
    """Those of the names under which there is a user or a payee."""
    return {row.value for row in connection.execute(_IDS, {"values": list(names)})}


def others_of(connection: Connection, users: Sequence[int], payees: Sequence[int]) -> list[int]:
    """Other users in whose sequences these stand. Payees are found by looking through all sequences."""
    found = set(connection.scalars(_COUNTERPARTS, {"ids": list(users)}))
    if payees:
        found |= set(connection.scalars(_PAYERS, {"ids": list(payees)}))
    return sorted(found - set(users))


def from_sequences_of_others(connection: Connection, others: Sequence[int], ids: Sequence[int]) -> None:
    """Takes events that name `ids` out of other users' sequences; call it in a transaction of its own."""
    compaction.lock(connection, others)
    values = {"users": list(others), "ids": list(ids), "chunk": compaction.CHUNK_EVENTS}
    connection.execute(_WITHOUT, values)


def sequences_of(connection: Connection, users: Sequence[int]) -> int:
    """Deletes users' sequences, and marks snapshots learnt from them; how many entries."""
    compaction.lock(connection, users)
    for row in connection.execute(_FIRST_POSITIONS, {"ids": list(users)}):
        _mark_touched(connection, row.stream, row.position)
    return int(connection.scalar(_DELETE_SEQUENCES, {"ids": list(users)}) or 0)


def from_letters(connection: Connection, users: Collection[str]) -> int:
    """Empties dead letters that name users, who count as found; how many."""
    naming = naming_pattern(users)
    emptied, named = 0, set[str]()
    for letter in list(_letters(connection)):
        content = b"\0".join([letter.key or b"", letter.value or b"", letter.detail.encode()])
        if naming.search(content):
            key = {"stream_id": letter.stream_id, "position": letter.position, "epoch": letter.epoch}
            connection.execute(_BLANK, {**key, "detail": ERASED_DETAIL})
            emptied += 1
            named |= {user for user in set(users) - named if naming_pattern([user]).search(content)}
    suppression.found(connection, named)
    return emptied


def _letters(connection: Connection) -> Iterator[pa.Any]:
    at = {"stream_id": 0, "position": -1, "epoch": -1}
    while page := connection.execute(_LETTERS, at).all():
        yield from page
        at = {name: getattr(page[-1], name) for name in at}


def strings(connection: Connection, users: Sequence[int], payees: Sequence[int]) -> None:
    """Deletes strings; nothing refers to them any more but signature tables and predictions, which go with them.

    Snapshots that keep names are marked where retention has removed events that these stood in, or may have.
    """
    ids = [*users, *payees]
    connection.execute(_DELETE_STRINGS, {"ids": ids})
    signature_rows.erase(connection, ids)
    label_resolutions.erase_users(connection, ids)
    predictions.erase_users(connection, ids)
    if sequence_retention.erase(connection, ids) or payees:
        connection.execute(_UNTOLD)


def naming_pattern(users: Collection[str]) -> Pattern[bytes]:
    """Finds a user's id in bytes: whole (`ann` not in `hannah`), plain or as JSON escapes it."""
    forms = {
        form for user in users for form in (user, json.dumps(user)[1:-1], json.dumps(user, ensure_ascii=False)[1:-1])
    }
    either = b"|".join(re.escape(form.encode()) for form in sorted(forms, key=len, reverse=True))
    return re.compile(b"(?<!" + _ID_BYTE + b")(?:" + either + b")(?!" + _ID_BYTE + b")")
