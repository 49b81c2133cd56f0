"""Which offsets a process may go on from, and when it must not (protocol, rules 2 and 3).

Postgres holds the offsets; the broker says which topic stands under a name today and which offsets it still
has. Where the two contradict each other, going on would lose or double records silently, so it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from sqlalchemy import Connection

from runtime.kafka import TopicDescription
from runtime.lifecycle import OperatorActionRequired
from storage.log import offsets
from storage.log.offsets import Claim, KafkaPartitionId, StreamRow

Range = Callable[[str, int], tuple[int, int]]
"""(logical topic, partition) -> (first offset still there, the one after the last)."""

ADOPT = "if that is what you want, `driftline offsets rebind` (see `driftline offsets show` first)"


def claim(
    connection: Connection,
    partitions: Iterable[tuple[str, int]],
    described: Mapping[str, TopicDescription],
    range_of: Range,
    *,
    ended: Callable[[int], None] | None = None,
) -> list[Claim]:
    """Claims assigned partitions (logical topic, number) in the caller's transaction.

    A topic name never seen gets rows for all its partitions at their low watermarks.

    :param ended: see `offsets.claim`.
    :raises Refused: topic or offsets are not the ones Postgres knows.
    """
    wanted = sorted(partitions)
    known = offsets.streams(connection)
    for topic in sorted({topic for topic, _ in wanted}):
        current = [row for row in known if row.stream.topic == topic and not row.retired]
        if not current:
            offsets.register(connection, {s: range_of(topic, s.partition)[0] for s in streams(described[topic])})
        else:
            check_identity(current, described[topic])
    rows = {(row.stream.topic, row.stream.partition): row for row in offsets.streams(connection) if not row.retired}
    claims = offsets.claim(connection, [rows[partition] for partition in wanted], ended=ended)
    for held in claims:
        topic, partition = held.stream.topic, held.stream.partition
        check_range(held, *range_of(topic, partition), trust_high=described[topic].trusts_high_watermark)
    return claims


def streams(topic: TopicDescription) -> list[KafkaPartitionId]:
    """The streams a topic has now."""
    return [
        KafkaPartitionId(cluster_id=topic.cluster_id, topic_id=topic.topic_id, topic=topic.topic, partition=partition)
        for partition in range(topic.partitions)
    ]


def check_identity(current: Sequence[StreamRow], topic: TopicDescription) -> None:
    """:raises Refused: another broker, another topic under the same name, or another partition count."""
    if not current:  # never seen: nothing it could contradict
        return
    stream = current[0].stream
    where = f"topic {topic.topic}"
    if stream.cluster_id != topic.cluster_id:
        raise OperatorActionRequired(
            f"another Kafka cluster answers ({topic.cluster_id}); the offsets in Postgres are of {stream.cluster_id}",
            where=where,
            hint=f"correct DRIFTLINE_KAFKA_BOOTSTRAP; or, {ADOPT}",
        )
    if stream.topic_id != topic.topic_id:
        raise OperatorActionRequired(
            f"the topic was deleted and created again: its id is {topic.topic_id}, it was {stream.topic_id}",
            where=where,
            hint=f"what the old topic held and Driftline had not read is gone; {ADOPT}",
        )
    if len(current) != topic.partitions:
        raise OperatorActionRequired(
            f"the topic has {topic.partitions} partitions; it had {len(current)}",
            where=where,
            hint="keys move between partitions, so stop the producers, let `driftline ingest --once` of the version "
            f"before drain the old ones if it can, then, {ADOPT}",
        )


def check_range(held: Claim, low: int, high: int, *, trust_high: bool) -> None:
    """:raises Refused: the stored offset lies outside what the broker has."""
    where = str(held.stream)
    if held.next_offset < low:
        raise OperatorActionRequired(
            f"offsets {held.next_offset} to {low} are gone from the topic before Driftline read them",
            where=where,
            hint=f"restore them if you can (retention.ms too short?); or go on without them: {ADOPT}",
        )
    if trust_high and held.next_offset > high:
        raise OperatorActionRequired(
            f"the topic ends at {high}, before the stored offset {held.next_offset}: it lost its end",
            where=where,
            hint=f"its offsets will come again for other records; {ADOPT}",
        )
