"""How far each stream has been taken in, and who may take it further (protocol, rules 1 to 3).

A stream is (cluster id, topic id, partition). Its row holds the next offset to read and an epoch. To own a
stream is to know its newest epoch: every batch ends with a compare-and-set on both, so a former owner,
however long it slept, can commit nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

Cursor = dict[int, int]
"""stream id -> offset: the next one to read."""


@dataclass(frozen=True, kw_only=True, order=True)
class KafkaPartitionId:
    """A partition of one life of a topic."""

    topic: str
    """Logical name."""
    partition: int
    topic_id: str
    cluster_id: str
    life: int = 1
    """Raised when a topic lost its end (truncation) and its offsets come again for other records."""

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}] (topic id {self.topic_id}, cluster {self.cluster_id})"


@dataclass(frozen=True, kw_only=True)
class StreamRow:
    """A stream as Postgres knows it."""

    stream_id: int
    stream: KafkaPartitionId
    epoch: int
    next_offset: int
    retired: bool


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to take a stream further, until somebody else claims it."""

    stream_id: int
    stream: KafkaPartitionId
    epoch: int
    next_offset: int
    suppression_version: int
    """Whose erasures are known: those of the time of the claim; in an `Advance`, those its batch was judged with."""


@dataclass(frozen=True, kw_only=True)
class Advance:
    """What a batch covers of a claimed stream: offsets [first, next)."""

    claim: Claim
    first: int
    next: int


class Fenced(RuntimeError):
    """Another owner has claimed the stream, or an erasure passed by unseen: the batch must be rolled back."""


_STREAMS = text("""
    SELECT stream_id, cluster_id, topic_id, topic, partition, life, epoch, next_offset, retired
    FROM stream_offset ORDER BY topic, partition, stream_id
""")

_LOG_BEGINS = text("SELECT stream_id, log_begins FROM stream_offset")

_REGISTER = text("""
    INSERT INTO stream_offset (cluster_id, topic_id, topic, partition, life, next_offset, suppression_version)
    VALUES (:cluster_id, :topic_id, :topic, :partition, :life, :next_offset,
            (SELECT coalesce(max(version), 0) FROM suppression))
    ON CONFLICT (cluster_id, topic_id, partition, life) DO NOTHING
""")

# The former owner may be frozen with a row lock in its hands: end its backend first, then wait for nobody. One that
# gave the stream away in order (`release`) holds nothing and goes on with its others.
_END_FORMER_OWNERS = text("""
    SELECT a.pid, pg_terminate_backend(a.pid)
    FROM stream_offset s
    JOIN pg_stat_activity a ON a.pid = s.owner_pid AND a.backend_start = s.owner_started
    WHERE s.stream_id = ANY(:ids) AND a.pid <> pg_backend_pid()
      AND EXISTS (
        SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'advisory' AND l.objsubid = 2
          AND l.classid = :space AND l.objid = s.stream_id AND l.database = a.datid
      )
""")

# Its session's own mark, gone with it: a pooler gives the backend of a client that is gone to the next one.
_MARK = text("SELECT pg_advisory_lock_shared(:space, id) FROM unnest(CAST(:ids AS int[])) AS streams(id)")
_OWNED = 0x64726F77
"""First key of the advisory locks of owners; the second is the stream's id. Shared: it keeps nobody waiting."""

_CLAIM = text("""
    UPDATE stream_offset s
    SET epoch = s.epoch + 1, owner_pid = pg_backend_pid(),
        owner_started = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())
    WHERE s.stream_id = :id
    RETURNING s.epoch, s.next_offset, s.suppression_version
""")

_ADVANCE = text("""
    UPDATE stream_offset SET next_offset = :next
    WHERE stream_id = :id AND epoch = :epoch AND next_offset = :first AND suppression_version = :suppression
""")

# The epoch is compared: a release that comes late must not clear a successor's claim.
_RELEASE = text("""
    UPDATE stream_offset SET owner_pid = NULL, owner_started = NULL WHERE stream_id = :id AND epoch = :epoch
""")

_WITHIN = text("SELECT set_config('lock_timeout', :ms, true), set_config('statement_timeout', :ms, true)")

_EPOCHS = text("SELECT stream_id, epoch FROM stream_offset WHERE stream_id = ANY(:ids)")

_RETIRE = text("UPDATE stream_offset SET retired = true, epoch = epoch + 1 WHERE stream_id = ANY(:ids)")

_SET_OFFSET = text("""
    UPDATE stream_offset SET next_offset = :next, epoch = epoch + 1
    WHERE stream_id = :id AND next_offset = :first
    RETURNING epoch
""")

_LOST = text("""
    INSERT INTO log_segment (stream_id, first_offset, epoch, next_offset, status,
                             read, accepted, duplicates, dead, suppressed, unknown_fields)
    VALUES (:id, :first, :epoch, :next, 'lost', 0, 0, 0, 0, 0, 0)
""")


def streams(connection: Connection) -> list[StreamRow]:
    """Every stream ever seen, sorted by topic and partition."""
    return [
        StreamRow(
            stream_id=row.stream_id,
            stream=KafkaPartitionId(
                cluster_id=row.cluster_id,
                topic_id=row.topic_id,
                topic=row.topic,
                partition=row.partition,
                life=row.life,
            ),
            epoch=row.epoch,
            next_offset=row.next_offset,
            retired=row.retired,
        )
        for row in connection.execute(_STREAMS)
    ]


def watermark(connection: Connection) -> Cursor:
    """The watermark cursor: all streams as this transaction sees them."""
    return {row.stream_id: row.next_offset for row in streams(connection)}


def log_begins(connection: Connection) -> Cursor:
    """The offset below which retention removed each stream's log."""
    return {row.stream_id: row.log_begins for row in connection.execute(_LOG_BEGINS)}


def register(connection: Connection, first_offsets: Mapping[KafkaPartitionId, int]) -> None:
    """Makes rows for streams never seen; known ones stay as they are."""
    for stream, offset in sorted(first_offsets.items()):
        values = {
            "cluster_id": stream.cluster_id,
            "topic_id": stream.topic_id,
            "topic": stream.topic,
            "partition": stream.partition,
            "life": stream.life,
            "next_offset": offset,
        }
        connection.execute(_REGISTER, values)


def claim(
    connection: Connection, rows: Iterable[StreamRow], *, ended: Callable[[int], None] | None = None
) -> list[Claim]:
    """Makes this connection's backend the owner of registered streams, ending the sessions of those who hold one.

    Must be called only while the consumer group assigns the partitions to this process: a zombie that
    claims by itself would fence the rightful owner.

    :param ended: is told how many sessions were ended, if any were.
    """
    wanted = sorted(rows, key=lambda row: row.stream_id)
    ids = [row.stream_id for row in wanted]
    former = {row.pid for row in connection.execute(_END_FORMER_OWNERS, {"space": _OWNED, "ids": ids})}
    if former and ended is not None:
        ended(len(former))
    connection.execute(_MARK, {"space": _OWNED, "ids": ids})
    claims = []
    for row in wanted:
        epoch, next_offset, suppression = connection.execute(_CLAIM, {"id": row.stream_id}).one()
        claims.append(
            Claim(
                stream_id=row.stream_id,
                stream=row.stream,
                epoch=epoch,
                next_offset=next_offset,
                suppression_version=suppression,
            )
        )
    return claims


def release(connection: Connection, claims: Iterable[Claim], *, within_s: float) -> None:
    """Says of claimed streams that this backend holds them no longer: whoever claims them next need not end it.

    Must be called only once no batch of theirs is under way: it might hold the rows' locks. What somebody else has
    claimed meanwhile stays theirs.

    :param within_s: seconds after which Postgres gives up: each lock, each statement.
    """
    connection.execute(_WITHIN, {"ms": str(int(within_s * 1000))})
    held = sorted(claims, key=lambda claim: claim.stream_id)
    connection.execute(_RELEASE, [{"id": claim.stream_id, "epoch": claim.epoch} for claim in held])


def advance(connection: Connection, moves: Sequence[Advance]) -> None:
    """Moves the offsets of a batch: its last statement before COMMIT.

    :raises Fenced: a stream has another owner, another offset or another suppression version.
    """
    for move in sorted(moves, key=lambda move: move.claim.stream_id):
        values = {
            "id": move.claim.stream_id,
            "epoch": move.claim.epoch,
            "first": move.first,
            "next": move.next,
            "suppression": move.claim.suppression_version,
        }
        if connection.execute(_ADVANCE, values).rowcount != 1:
            raise Fenced(
                f"{move.claim.stream}: offset {move.first} and epoch {move.claim.epoch} are no longer current; "
                "another owner went on from there, or an erasure passed by unseen"
            )


def outdated(connection: Connection, claims: Sequence[Claim]) -> list[Claim]:
    """Those of the claims that somebody has claimed since."""
    now = {row.stream_id: row.epoch for row in connection.execute(_EPOCHS, {"ids": [c.stream_id for c in claims]})}
    return [claim for claim in claims if now.get(claim.stream_id) != claim.epoch]


def retire(connection: Connection, rows: Iterable[StreamRow]) -> None:
    """Marks streams as finished: their topic was replaced, nothing more comes. Fences their owners."""
    connection.execute(_RETIRE, {"ids": [row.stream_id for row in rows]})


def give_up(connection: Connection, row: StreamRow, next_offset: int) -> None:
    """Goes on at a later `next_offset`, leaving a segment marked `lost` over the gap. Fences the owner.

    :raises Fenced: the stream moved meanwhile.
    """
    if next_offset <= row.next_offset:
        raise ValueError(f"{row.stream}: {next_offset} does not lie after {row.next_offset}; retire it instead")
    moved = connection.execute(
        _SET_OFFSET, {"id": row.stream_id, "first": row.next_offset, "next": next_offset}
    ).one_or_none()
    if moved is None:
        raise Fenced(f"{row.stream} moved while it was being adopted; run it again")
    connection.execute(
        _LOST, {"id": row.stream_id, "first": row.next_offset, "next": next_offset, "epoch": moved.epoch}
    )
