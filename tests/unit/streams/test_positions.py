"""Rule 3: which contradictions between Postgres and the broker are refused, and what the refusal says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runtime.kafka import TopicDescription
from runtime.lifecycle import Exit, OperatorActionRequired
from storage.log.offsets import Claim, KafkaPartitionId, StreamRow
from streams.ingest import start_positions

TOPIC = TopicDescription(cluster_id="c", topic_id="t1", topic="events.user", partitions=2, full_kafka=True)


def rows(partitions: int = 2) -> list[StreamRow]:
    return [
        StreamRow(stream_id=n, stream=stream, epoch=1, next_offset=50, retired=False)
        for n, stream in enumerate(start_positions.streams(replace(TOPIC, partitions=partitions)))
    ]


def claim(next_offset: int) -> Claim:
    stream = KafkaPartitionId(topic="events.user", partition=0, topic_id="t1", cluster_id="c")
    return Claim(stream_id=1, stream=stream, epoch=1, next_offset=next_offset, suppression_version=0)


def test_the_topic_that_is_known_is_taken() -> None:
    start_positions.check_identity(rows(), TOPIC)
    start_positions.check_identity([], TOPIC)  # seen for the first time


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (replace(TOPIC, cluster_id="d"), "another Kafka cluster answers"),
        (replace(TOPIC, topic_id="t2"), "deleted and created again"),
        (replace(TOPIC, partitions=3), "has 3 partitions; it had 2"),
        (replace(TOPIC, partitions=1), "has 1 partitions; it had 2"),
    ],
)
def test_another_topic_is_refused_with_the_reason_and_the_way_on(found: TopicDescription, says: str) -> None:
    with pytest.raises(OperatorActionRequired, match=says) as refused:
        start_positions.check_identity(rows(), found)
    assert "driftline offsets rebind" in refused.value.hint
    assert refused.value.where == "topic events.user"
    assert refused.value.code is Exit.REFUSED


@pytest.mark.parametrize(("next_offset", "low", "high"), [(10, 10, 10), (10, 0, 10), (10, 10, 20)])
def test_an_offset_inside_the_range_is_taken(next_offset: int, low: int, high: int) -> None:
    start_positions.check_range(claim(next_offset), low, high, trust_high=True)


def test_a_topic_that_lost_its_beginning_is_refused() -> None:
    with pytest.raises(OperatorActionRequired, match="offsets 9 to 10 are gone") as refused:
        start_positions.check_range(claim(9), 10, 20, trust_high=False)
    assert "driftline offsets rebind" in refused.value.hint


def test_a_topic_that_lost_its_end_is_refused_where_ends_can_be_trusted() -> None:
    with pytest.raises(OperatorActionRequired, match="ends at 20, before the stored offset 21"):
        start_positions.check_range(claim(21), 10, 20, trust_high=True)
    start_positions.check_range(claim(21), 10, 20, trust_high=False)  # Tansu reports an end that is too low
