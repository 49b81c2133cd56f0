"""What to do when Kafka is no longer what Postgres remembers (protocol, rules 2 and 3).

`ingest` refuses to go on then, since guessing would lose or double records silently. Here a person decides,
and the decision leaves its trace: a gap becomes a log segment marked `lost`, a replaced topic retired streams.

- **The topic was created again, or another broker answers**: its old streams are retired, the new ones start at
  the first offset there is. What the old topic held and was not read is gone. A topic or broker that was
  there before is taken up where it was left.
- **The topic no longer holds the next records** (retention): the stream goes on at the first offset there is.
- **The topic lost its end** (the stored offset lies beyond it): offsets will come again for other records. The
  stream is retired and its next life starts at the first offset whose record is not the one that was read
  there: the retained records are compared with the log, the dead letters and the known identities. So what was
  read is not read again, and what was written since then is not skipped.
- **The topic grew**: keys move between partitions, so all old ones must have been read to their ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from sqlalchemy import Connection

from runtime.kafka import TopicDescription
from runtime.lifecycle import OperatorActionRequired
from storage import overview
from storage.log import offsets
from storage.log.offsets import KafkaPartitionId, StreamRow
from streams.ingest.start_positions import Range, streams


class Act(StrEnum):
    """What is done with a stream."""

    RETIRE = "retire"
    """It is finished: nothing more comes."""
    REGISTER = "start"
    """It is new, and starts at `offset`."""
    REVIVE = "resume"
    """It was retired, and goes on where it stopped."""
    GIVE_UP = "give up"
    """It goes on at `offset`; the gap is marked lost."""


@dataclass(frozen=True, kw_only=True)
class Rebinding:
    """One thing to do, and why."""

    act: Act
    stream: KafkaPartitionId
    row: StreamRow | None
    """None for a stream that is new."""
    offset: int
    """Where it goes on, or (retired) where it ended."""
    why: str


FirstNew = Callable[[StreamRow, int], int]
"""(stream that lost its end, its end now) -> the first offset whose record was not read."""


def plan(
    rows: Sequence[StreamRow],
    described: Mapping[str, TopicDescription],
    range_of: Range,
    first_new: FirstNew,
    *,
    undrained: bool = False,
) -> list[Rebinding]:
    """What must be done so that `ingest` can go on; [] = nothing.

    :param undrained: adopt new partitions though old ones hold unread records.
    :raises Refused: it must not be done, and why.
    """
    changes: list[Rebinding] = []
    for topic, now in sorted(described.items()):
        known = [row for row in rows if row.stream.topic == topic]
        current = [row for row in known if not row.retired]
        if not current:
            continue  # never read: `ingest` starts it
        stream = current[0].stream
        if (stream.cluster_id, stream.topic_id) != (now.cluster_id, now.topic_id):
            changes += _replaced(current, known, now, range_of)
            continue
        for row in current:
            changes += _moved(row, now, range_of, first_new)
        if now.partitions != len(current):
            changes += _grown(current, now, range_of, undrained=undrained)
    return changes


def apply(connection: Connection, changes: Sequence[Rebinding]) -> None:
    """Does it, in the caller's transaction. Owners of the streams are fenced.

    :raises Fenced: a stream moved meanwhile.
    """
    offsets.retire(connection, [change.row for change in changes if change.act is Act.RETIRE and change.row])
    overview.revive(connection, [change.row for change in changes if change.act is Act.REVIVE and change.row])
    for change in changes:
        if change.act is Act.GIVE_UP and change.row is not None:
            offsets.give_up(connection, change.row, change.offset)
    offsets.register(connection, {c.stream: c.offset for c in changes if c.act is Act.REGISTER})


def _replaced(
    current: Sequence[StreamRow], known: Sequence[StreamRow], now: TopicDescription, range_of: Range
) -> list[Rebinding]:
    old = current[0].stream
    why = (
        f"another broker answers: cluster {now.cluster_id}, it was {old.cluster_id}"
        if old.cluster_id != now.cluster_id
        else f"the topic was created again: its id is {now.topic_id}, it was {old.topic_id}"
    )
    changes = [
        Rebinding(act=Act.RETIRE, stream=row.stream, row=row, offset=row.next_offset, why=why) for row in current
    ]
    before = {row.stream.partition: row for row in known if _same_topic(row.stream, now)}  # the newest life stays
    for stream in streams(now):
        row = before.get(stream.partition)
        if row is not None:
            changes.append(
                Rebinding(act=Act.REVIVE, stream=row.stream, row=row, offset=row.next_offset, why="it was read before")
            )
        else:
            low, high = range_of(now.topic, stream.partition)
            told = f"{high - low:,} records are there" if high > low else "nothing is there yet"
            changes.append(Rebinding(act=Act.REGISTER, stream=stream, row=None, offset=low, why=told))
    return changes


def _moved(row: StreamRow, now: TopicDescription, range_of: Range, first_new: FirstNew) -> list[Rebinding]:
    if row.stream.partition >= now.partitions:
        return []
    low, high = range_of(now.topic, row.stream.partition)
    if row.next_offset < low:
        why = f"offsets {row.next_offset} to {low} are gone from the topic, unread"
        return [Rebinding(act=Act.GIVE_UP, stream=row.stream, row=row, offset=low, why=why)]
    if row.next_offset <= high or not now.trusts_high_watermark:
        return []
    start = first_new(row, high)
    again = replace(row.stream, life=row.stream.life + 1)
    return [
        Rebinding(
            act=Act.RETIRE,
            stream=row.stream,
            row=row,
            offset=row.next_offset,
            why=f"the topic ends at {high}: it lost its end",
        ),
        Rebinding(
            act=Act.REGISTER,
            stream=again,
            row=None,
            offset=start,
            why=f"below {start} the topic holds what was read; {high - start:,} records from there on are new",
        ),
    ]


def _grown(current: Sequence[StreamRow], now: TopicDescription, range_of: Range, *, undrained: bool) -> list[Rebinding]:
    where = f"topic {now.topic}"
    if now.partitions < len(current):
        raise OperatorActionRequired(
            f"the topic has {now.partitions} partitions; it had {len(current)}",
            where=where,
            hint="Kafka never takes partitions away: is this the right cluster?",
        )
    unread = {row.stream.partition: range_of(now.topic, row.stream.partition)[1] - row.next_offset for row in current}
    if (left := sum(max(0, n) for n in unread.values())) and not undrained:
        raise OperatorActionRequired(
            f"the topic grew from {len(current)} to {now.partitions} partitions while {left:,} offsets of the old ones "
            "are unread",
            where=where,
            hint="if none of these records was sent again since the growth (its repetition may lie in another "
            "partition, where it would not be recognised), `driftline offsets rebind --undrained`",
        )
    return [
        Rebinding(
            act=Act.REGISTER,
            stream=stream,
            row=None,
            offset=range_of(now.topic, stream.partition)[0],
            why=f"the topic grew from {len(current)} to {now.partitions} partitions",
        )
        for stream in streams(now)[len(current) :]
    ]


def _same_topic(stream: KafkaPartitionId, topic: TopicDescription) -> bool:
    return (stream.cluster_id, stream.topic_id) == (topic.cluster_id, topic.topic_id)
