"""The event log: what was accepted, batch by batch, as Arrow.

One row of `log_segment` is one committed batch of one stream. It covers the offsets [first, next), whether
or not anything in there was accepted, and the next segment starts where it ends: readers check that chain
and never a count, since transaction markers, aborted and compacted records take offsets but yield no record.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sqlalchemy import Connection, text

from contracts import clocks
from contracts.clocks import ROWS
from contracts.identity import SEPARATOR, digest, signed
from storage.log.offsets import Claim, Cursor

_TIME = pa.timestamp("us", tz="UTC")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

EVENT_ROWS = pa.schema(
    [
        ("offset", pa.int64()),
        ("record_at", _TIME),
        ("at", _TIME),
        ("event_id", pa.string()),
        ("user", pa.string()),
        ("type", pa.string()),
        ("item", pa.string()),
        ("amount", pa.int64()),
        ("currency", pa.string()),
        ("other", pa.string()),
        ("source", pa.string()),
    ]
)
"""Rows of `events.user`, `events.payment` and `events.relational`; `user` is the record's key."""

LABEL_ROWS = pa.schema(
    [
        ("offset", pa.int64()),
        ("record_at", _TIME),
        ("at", _TIME),
        ("event_id", pa.string()),
        ("user", pa.string()),
        ("task", pa.string()),
        ("subject", pa.string()),
        ("ref_time", _TIME),
        ("value", pa.float64()),
        ("source", pa.string()),
    ]
)
"""Rows of `labels`; `at` is when the outcome became known."""

IDENTITY = [EVENT_ROWS.get_field_index(name) for name in ("offset", "event_id", "user")]
"""Places of the columns that say who a record is; the same in `LABEL_ROWS`."""

ITEM_ROWS = pa.schema([("offset", pa.int64()), ("record_at", _TIME), ("item", pa.string())])
"""Rows of `items`; what each version says is in `item_version`."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What became of the records of a segment."""

    read: int = 0
    accepted: int = 0
    duplicates: int = 0
    dead: int = 0
    suppressed: int = 0
    unknown_fields: int = 0


@dataclass(frozen=True, kw_only=True)
class NewSegment:
    """A segment to write."""

    claim: Claim
    first: int
    next: int
    counts: Counts
    rows: pa.Table
    """Accepted records in offset order; may be empty."""
    far: Sequence[int] = ()
    """Offsets of those whose record time lies far ahead of the stream's."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A segment as read back."""

    stream_id: int
    first: int
    next: int
    lost: bool
    last_record_at: datetime | None
    rows: pa.Table | None
    """None when nothing was accepted."""


FAR_OFFSETS: Final = 100
"""Offsets of far records that a segment names at most; how many there are it says besides."""


class BrokenChain(RuntimeError):
    """A log segment is missing: offsets between two segments are covered by none."""


_INSERT = text("""
    INSERT INTO log_segment (stream_id, first_offset, epoch, next_offset, read, accepted, duplicates, dead,
                             suppressed, unknown_fields, first_event_at, last_event_at, last_record_at, far,
                             far_offsets, rows)
    VALUES (:stream_id, :first, :epoch, :next, :read, :accepted, :duplicates, :dead,
            :suppressed, :unknown_fields, :first_event_at, :last_event_at, :last_record_at, :far,
            CAST(:far_offsets AS bigint[]), :rows)
""")

_FROM = text("""
    SELECT first_offset, next_offset, status, last_record_at, rows
    FROM log_segment
    WHERE stream_id = :stream_id AND next_offset > :offset AND first_offset >= coalesce(
        -- the one that covers it, by the index: else all before it are walked through
        (SELECT max(first_offset) FROM log_segment WHERE stream_id = :stream_id AND first_offset <= :offset), :offset)
    ORDER BY first_offset, epoch
    LIMIT :limit
""")

_LAST = text("""
    SELECT first_offset, rows FROM log_segment
    WHERE stream_id = :stream_id AND first_offset < :below AND rows IS NOT NULL
    ORDER BY first_offset DESC, epoch DESC LIMIT :limit
""")

_LARGEST = text("""
    SELECT rows FROM log_segment WHERE stream_id = :stream_id AND rows IS NOT NULL
    ORDER BY last_record_at DESC NULLS LAST LIMIT :limit
""")

_COVERING = text("""
    SELECT DISTINCT ON (first_offset) rows FROM log_segment, unnest(CAST(:offsets AS bigint[])) AS o(at)
    WHERE stream_id = :stream_id AND first_offset <= o.at AND next_offset > o.at AND rows IS NOT NULL
""")

_START = text("SELECT min(first_offset) FROM log_segment WHERE stream_id = :stream_id")
_BACKWARDS = text("""
    SELECT DISTINCT ON (first_offset) first_offset, rows FROM log_segment
    WHERE stream_id = :stream_id AND first_offset < :offset AND rows IS NOT NULL
    ORDER BY first_offset DESC, epoch LIMIT :limit
""")

_STARTS = text("SELECT stream_id, min(first_offset) AS first FROM log_segment GROUP BY stream_id")


def append(connection: Connection, segments: Sequence[NewSegment]) -> None:
    """Writes segments; `offsets.advance` in the same transaction makes them count."""
    for segment in segments:
        first_event, last_event = _bounds(segment.rows)
        connection.execute(
            _INSERT,
            {
                "stream_id": segment.claim.stream_id,
                "first": segment.first,
                "epoch": segment.claim.epoch,
                "next": segment.next,
                "read": segment.counts.read,
                "accepted": segment.counts.accepted,
                "duplicates": segment.counts.duplicates,
                "dead": segment.counts.dead,
                "suppressed": segment.counts.suppressed,
                "unknown_fields": segment.counts.unknown_fields,
                "first_event_at": first_event,
                "last_event_at": last_event,
                "last_record_at": pc.max(segment.rows["record_at"]).as_py(),
                "far": len(segment.far),
                "far_offsets": list(segment.far[:FAR_OFFSETS]) or None,
                "rows": encode_rows(segment.rows) if segment.rows.num_rows else None,
            },
        )


def read(
    connection: Connection, stream_id: int, offset: int, *, limit: int = 8, fields: list[int] | None = None
) -> Iterator[Segment]:
    """Segments from the one that covers `offset` on, chained.

    :param fields: places of the columns wanted; the others are not even decompressed.
    :raises BrokenChain: a segment is missing between two that are there.
    """
    rows = connection.execute(_FROM, {"stream_id": stream_id, "offset": offset, "limit": limit})
    expected: int | None = None
    for row in rows:
        if (row.first_offset > offset) if expected is None else (row.first_offset != expected):
            raise BrokenChain(
                f"stream {stream_id}: offsets {expected or offset} to {row.first_offset} are in no log segment"
            )
        expected = row.next_offset
        yield Segment(
            stream_id=stream_id,
            first=row.first_offset,
            next=row.next_offset,
            lost=row.status == "lost",
            last_record_at=row.last_record_at,
            rows=None if row.rows is None else decode_rows(row.rows, fields),
        )


def covering(connection: Connection, stream_id: int, offsets: Iterable[int]) -> list[pa.Table]:
    """The rows of the segments that hold the given offsets."""
    values = {"stream_id": stream_id, "offsets": list(offsets)}
    return [decode_rows(row.rows) for row in connection.execute(_COVERING, values)]


def start(connection: Connection, stream_id: int) -> int | None:
    """Where the log of one stream begins; None = it is empty."""
    return connection.execute(_START, {"stream_id": stream_id}).scalar()


def last_times(connection: Connection, stream_id: int, name: str, *, rows: int = ROWS) -> list[int]:
    """A column of times of a stream's last accepted rows, in their order; as many as the log still holds.

    :param name: "record_at", or "at" of events and labels.
    :returns: microseconds since 1970.
    """
    found: list[int] = []
    below, limit = 2**63 - 1, 1
    while len(found) < rows:
        values = {"stream_id": stream_id, "below": below, "limit": limit}
        segments = connection.execute(_LAST, values).all()
        for segment in segments:
            found = decode_rows(segment.rows)[name].cast(pa.int64()).to_pylist() + found
            below = segment.first_offset
        if len(segments) < limit:
            break
        limit = min(2 * limit, rows)  # few large segments, or many of a row or two
    return found[-rows:]


def newest(connection: Connection, stream_ids: Iterable[int], name: str) -> datetime | None:
    """Where streams stand together in one of their times (see `last_times`), whatever a few false ones say.

    :returns: None: their log holds no row.
    """
    at = clocks.newest(last_times(connection, stream_id, name) for stream_id in stream_ids)
    return None if at is None else time_of(at)


def highest(connection: Connection, stream_id: int) -> datetime | None:
    """The newest good one (`contracts.clocks`) of the 33 largest record times of a stream's log, wherever they stand
    in it.

    :returns: None: the log holds no row.
    """
    segments = connection.execute(_LARGEST, {"stream_id": stream_id, "limit": ROWS})
    times = [decode_rows(row.rows)["record_at"].cast(pa.int64()).to_numpy() for row in segments]
    at = clocks.newest([np.sort(np.concatenate(times)).tolist()]) if times else None
    return None if at is None else time_of(at)


@dataclass(frozen=True, kw_only=True)
class Newest:
    """The newest accepted rows of a stream below an offset."""

    times: list[int]
    """Their event times (of labels: when the outcome became known), microseconds since 1970, in log order."""
    first_segment: int | None
    """Where the segment begins that holds the oldest of them; None: there are none."""


def newest_below(
    connection: Connection,
    stream_id: int,
    offset: int,
    *,
    count: int,
    task: str | None = None,
    erased: Container[str] = frozenset(),
) -> Newest:
    """At most `count` of the rows below `offset`, read backwards from there.

    :param task: of a stream of labels: only this task's rows. :param erased: users whose rows are not there.
    """
    found: list[int] = []
    first: int | None = None
    while len(found) < count:
        page = connection.execute(_BACKWARDS, {"stream_id": stream_id, "offset": offset, "limit": _PAGE}).all()
        for row in page:
            some = _times_below(decode_rows(row.rows), offset, task, erased)
            if some:
                found, first = some[-(count - len(found)) :] + found, row.first_offset
            if len(found) == count:
                break
        if len(page) < _PAGE:
            break
        offset = page[-1].first_offset
    return Newest(times=found, first_segment=first)


_PAGE = 4
"""Segments read at a time on the way backwards."""


def _times_below(rows: pa.Table, offset: int, task: str | None, erased: Container[str]) -> list[int]:
    rows = rows.filter(pc.less(rows["offset"], offset))
    if task is not None:
        rows = rows.filter(pc.equal(rows["task"], task))
    others = rows["other"].to_pylist() if "other" in rows.column_names else [None] * rows.num_rows
    named = zip(rows["at"].cast(pa.int64()).to_pylist(), rows["user"].to_pylist(), others, strict=True)
    return [at for at, user, other in named if user not in erased and other not in erased]


def starts(connection: Connection) -> Cursor:
    """Where the log of each stream begins."""
    return {row.stream_id: row.first for row in connection.execute(_STARTS)}


def encode_rows(rows: pa.Table) -> bytes:
    """Arrow IPC stream, zstd."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, rows.schema, options=options) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def decode_rows(data: bytes, fields: list[int] | None = None) -> pa.Table:
    """The inverse of `encode_rows`; of the columns at these places only, if they are given."""
    # One thread: for a few columns waking others takes longer than the work.
    options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False) if fields else None
    with pa.ipc.open_stream(data, options=options) as reader:
        return reader.read_all()


def digests(rows: pa.Table, topic: str) -> NDArray[np.int64]:
    """The identity digest (`contracts.identity.event_key`) of each row of events or labels."""
    identities = pc.binary_join_element_wise(topic, rows["user"], rows["event_id"], SEPARATOR).cast(pa.binary())
    unsigned = np.fromiter(map(digest, identities.to_pylist()), np.uint64, rows.num_rows)
    return signed(unsigned)


def time_of(microseconds: int) -> datetime:
    """Microseconds since 1970 as a UTC time."""
    return _EPOCH + timedelta(microseconds=microseconds)


def microseconds_of(time: datetime) -> int:
    """The inverse of `time_of`."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def _bounds(rows: pa.Table) -> tuple[datetime | None, datetime | None]:
    if "at" not in rows.column_names:
        return None, None
    bounds = pc.min_max(rows["at"]).as_py()
    return bounds["min"], bounds["max"]
