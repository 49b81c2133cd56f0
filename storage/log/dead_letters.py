"""Refused records: kept whole where they fit, so that they can be read, mended and replayed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, text

from storage.log.offsets import Claim
from storage.privacy.suppression import Suppression

ERASED_DETAIL = "it named an erased user"
"""Detail of a letter of which nothing else is kept."""
MAX_KEY_BYTES = 1024
MAX_VALUE_BYTES = 65_536


@dataclass(frozen=True, kw_only=True)
class StoredRecord:
    """What is kept of a refused record: so much that it can be read and, if it is whole, replayed."""

    key: bytes | None
    value: bytes | None
    size: int
    """Bytes of the whole value."""
    sha256: str
    """Of the whole value."""
    cut: bool
    """Key or value is not whole."""

    @classmethod
    def of(cls, key: bytes | None, value: bytes | None) -> StoredRecord:
        """Cuts a record to the limits, so that what is refused for its size is not held whole until the commit."""
        return cls(
            key=None if key is None else key[:MAX_KEY_BYTES],
            value=None if value is None else value[:MAX_VALUE_BYTES],
            size=len(value or b""),
            sha256=hashlib.sha256(value or b"").hexdigest(),
            cut=len(key or b"") > MAX_KEY_BYTES or len(value or b"") > MAX_VALUE_BYTES,
        )


@dataclass(frozen=True, kw_only=True)
class NewLetter:
    """A record to refuse."""

    claim: Claim
    offset: int
    record_at: datetime
    kept: StoredRecord
    reason: str
    detail: str

    def names(self, suppressed: Suppression) -> bool:
        """Whether it names an erased user."""
        return suppressed.named_in(b"\n".join([self.kept.key or b"", self.kept.value or b"", self.detail.encode()]))


@dataclass(frozen=True, kw_only=True)
class Letter:
    """A refused record as kept."""

    id: str
    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    record_at: datetime
    received_at: datetime
    key: bytes | None
    value: bytes | None
    size: int
    sha256: str
    cut: bool
    replayed: bool
    """It came in again and was accepted."""


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """A refused record without its content."""

    stream_id: int
    offset: int
    topic: str
    partition: int
    reason: str
    size: int
    sha256: str

    @property
    def id(self) -> str:
        return f"{self.stream_id}:{self.offset}"


_INSERT = text("""
    INSERT INTO dead_letter (stream_id, position, epoch, reason, detail, record_at, key, value, size, sha256, cut)
    VALUES (:stream_id, :position, :epoch, :reason, :detail, :record_at, :key, :value, :size, :sha256, :cut)
""")

_SELECT = """
    SELECT d.stream_id || ':' || d.position AS id, f.topic, f.partition, d.position AS "offset", d.reason,
           d.detail, d.record_at, d.received_at, d.key, d.value, d.size, d.sha256, d.cut,
           r.position IS NOT NULL AS replayed
    FROM dead_letter d
    JOIN stream_offset f USING (stream_id)
    LEFT JOIN replayed_letter r ON r.origin_stream_id = d.stream_id AND r.origin_position = d.position
"""

_NEWEST = text(
    _SELECT
    + """
    WHERE (CAST(:reason AS text) IS NULL OR d.reason = :reason) AND (:all OR r.position IS NULL)
    ORDER BY d.received_at DESC, d.stream_id, d.position DESC LIMIT :limit
"""
)

_ONE = text(_SELECT + " WHERE d.stream_id = :stream_id AND d.position = :position")

_UNNOTICED = text("""
    SELECT d.stream_id, d.position AS "offset", f.topic, f.partition, d.reason, d.size, d.sha256
    FROM dead_letter d
    JOIN stream_offset f USING (stream_id)
    WHERE d.noticed_at IS NULL AND d.stream_id = ANY(CAST(:streams AS int[]))
    ORDER BY d.stream_id, d.position LIMIT :limit
""")

_NOTICED = text("""
    UPDATE dead_letter d SET noticed_at = clock_timestamp()
    FROM unnest(CAST(:streams AS int[]), CAST(:positions AS bigint[])) AS n(stream_id, position)
    WHERE d.stream_id = n.stream_id AND d.position = n.position
""")

_COUNTS = text("SELECT reason, count(*) AS n FROM dead_letter GROUP BY reason ORDER BY n DESC, reason")

# Origins are looked up without a window, however long ago the letter was written.
_ORIGINS = text("""
    SELECT d.stream_id, d.position, bool_or(r.position IS NOT NULL) AS known
    FROM unnest(CAST(:streams AS int[]), CAST(:positions AS bigint[])) AS o(stream_id, position)
    JOIN dead_letter d USING (stream_id, position)
    JOIN stream_offset f ON f.stream_id = d.stream_id AND f.topic = :topic
    LEFT JOIN replayed_letter r ON r.origin_stream_id = d.stream_id AND r.origin_position = d.position
    GROUP BY d.stream_id, d.position
""")

# The unique key makes two owners that replay one letter at the same moment agree on who brought it in; sorted, they
# wait for each other in one order.
_CLAIM_ORIGINS = text("""
    INSERT INTO replayed_letter (origin_stream_id, origin_position, stream_id, position)
    SELECT o.stream_id, o.position, :claimed_by, o.at
    FROM unnest(CAST(:streams AS int[]), CAST(:positions AS bigint[]), CAST(:at AS bigint[]))
         AS o(stream_id, position, at)
    ORDER BY o.stream_id, o.position
    ON CONFLICT DO NOTHING RETURNING origin_stream_id, origin_position
""")

LetterId = tuple[int, int]
"""A letter's stream id and offset."""


def append(connection: Connection, letters: Sequence[NewLetter]) -> None:
    """Keeps refused records, in the transaction of their batch."""
    if letters:
        connection.execute(_INSERT, [_values(letter) for letter in letters])


def emptied(letter: NewLetter) -> NewLetter:
    """What is kept of a letter that names an erased user: that there was one."""
    nothing = StoredRecord(key=None, value=None, size=letter.kept.size, sha256="", cut=True)
    return replace(letter, kept=nothing, detail=ERASED_DETAIL)


def newest(connection: Connection, *, reason: str | None, replayed: bool, limit: int) -> list[Letter]:
    """The newest letters, of one reason or all; those replayed already only if asked for."""
    rows = connection.execute(_NEWEST, {"reason": reason, "all": replayed, "limit": limit})
    return [Letter(**row._mapping) for row in rows]


def find(connection: Connection, letter_id: str) -> Letter | None:
    """A letter by its id, "<stream id>:<offset>".

    :raises ValueError: that is no id.
    """
    stream_id, position = parse_id(letter_id)
    row = connection.execute(_ONE, {"stream_id": stream_id, "position": position}).one_or_none()
    return None if row is None else Letter(**row._mapping)


def unnoticed(connection: Connection, stream_ids: Sequence[int], *, limit: int) -> list[Pointer]:
    """Letters of these streams whose notice on `events.dlq` is not known to have arrived."""
    return [Pointer(**row._mapping) for row in connection.execute(_UNNOTICED, {"streams": stream_ids, "limit": limit})]


def mark_noticed(connection: Connection, letters: Sequence[Pointer]) -> None:
    """Their notices arrived."""
    values = {"streams": [letter.stream_id for letter in letters], "positions": [letter.offset for letter in letters]}
    connection.execute(_NOTICED, values)


def counts(connection: Connection) -> dict[str, int]:
    """Letters by reason."""
    return {row.reason: row.n for row in connection.execute(_COUNTS)}


def origins(connection: Connection, topic: str, wanted: Collection[LetterId]) -> dict[LetterId, bool]:
    """Those of `wanted` that are dead letters of a topic -> whether they came in by a replay already."""
    values = {"streams": [at[0] for at in wanted], "positions": [at[1] for at in wanted], "topic": topic}
    return {(row.stream_id, row.position): row.known for row in connection.execute(_ORIGINS, values)}


def claim_origins(connection: Connection, claim: Claim, brought: Mapping[LetterId, int]) -> set[LetterId]:
    """Notes which letters came in by records of a stream (letter -> the record's offset).

    :returns: those noted; the others came in before, or by another owner meanwhile.
    """
    values = {
        "claimed_by": claim.stream_id,
        "streams": [at[0] for at in brought],
        "positions": [at[1] for at in brought],
        "at": list(brought.values()),
    }
    return {(row[0], row[1]) for row in connection.execute(_CLAIM_ORIGINS, values)}


def parse_id(letter_id: str) -> tuple[int, int]:
    """:raises ValueError: not "<stream id>:<offset>"."""
    stream_id, separator, position = letter_id.partition(":")
    if not (separator and stream_id.isascii() and stream_id.isdigit() and position.isascii() and position.isdigit()):
        raise ValueError(f"{letter_id[:40]!r} is no dead letter id; it looks like 12:345 (see `driftline dlq list`)")
    if len(stream_id) > 9 or len(position) > 18:
        raise ValueError(f"{letter_id[:40]!r} is no dead letter id: a number is too large")
    return int(stream_id), int(position)


def _values(letter: NewLetter) -> dict[str, object]:
    return {
        "stream_id": letter.claim.stream_id,
        "position": letter.offset,
        "epoch": letter.claim.epoch,
        "reason": letter.reason,
        # What the producer sent may stand in the detail; Postgres cannot store U+0000.
        "detail": letter.detail.replace("\0", "\\0")[:1000],
        "record_at": letter.record_at,
        "key": letter.kept.key,
        "value": letter.kept.value,
        "size": letter.kept.size,
        "sha256": letter.kept.sha256,
        "cut": letter.kept.cut,
    }
