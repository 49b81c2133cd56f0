"""What `offsets rebind` plans, case by case, without Kafka or Postgres."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from driftline.rebind import Act, Rebinding, plan
from runtime.kafka import TopicDescription
from runtime.lifecycle import OperatorActionRequired
from storage.log.offsets import KafkaPartitionId, StreamRow

TOPIC = "events.user"


def described(*, cluster: str = "c", topic_id: str = "t", partitions: int = 1, full: bool = True) -> TopicDescription:
    return TopicDescription(cluster_id=cluster, topic_id=topic_id, topic=TOPIC, partitions=partitions, full_kafka=full)


def row(
    next_offset: int, *, partition: int = 0, topic_id: str = "t", retired: bool = False, stream_id: int = 1
) -> StreamRow:
    stream = KafkaPartitionId(topic=TOPIC, partition=partition, topic_id=topic_id, cluster_id="c")
    return StreamRow(stream_id=stream_id, stream=stream, epoch=1, next_offset=next_offset, retired=retired)


def planned(
    rows: list[StreamRow],
    now: TopicDescription,
    ranges: Mapping[int, tuple[int, int]],
    *,
    first_new: int | None = None,
    undrained: bool = False,
) -> list[tuple[Act, int, int]]:
    """(act, partition, offset) of each change."""

    def find(_: StreamRow, end: int) -> int:
        assert first_new is not None, "the records need not be compared"
        return first_new

    changes: list[Rebinding] = plan(
        rows, {TOPIC: now}, lambda _, partition: ranges[partition], find, undrained=undrained
    )
    return [(change.act, change.stream.partition, change.offset) for change in changes]


def test_a_topic_as_it_was_needs_nothing() -> None:
    assert planned([row(5)], described(), {0: (0, 9)}) == []


def test_a_topic_never_read_is_left_to_ingest() -> None:
    assert planned([], described(), {0: (0, 9)}) == []


def test_a_recreated_topic_retires_its_old_stream_and_starts_at_the_first_offset() -> None:
    changes = planned([row(5)], described(topic_id="other"), {0: (2, 9)})
    assert changes == [(Act.RETIRE, 0, 5), (Act.REGISTER, 0, 2)]


def test_another_broker_does_the_same() -> None:
    changes = planned([row(5)], described(cluster="other"), {0: (0, 0)})
    assert changes == [(Act.RETIRE, 0, 5), (Act.REGISTER, 0, 0)]


def test_a_topic_that_is_back_goes_on_where_it_stopped() -> None:
    rows = [row(5, retired=True), row(3, topic_id="other", stream_id=2)]
    assert planned(rows, described(), {0: (0, 9)}) == [(Act.RETIRE, 0, 3), (Act.REVIVE, 0, 5)]


def test_records_gone_before_they_were_read_are_given_up() -> None:
    assert planned([row(5)], described(), {0: (7, 9)}) == [(Act.GIVE_UP, 0, 7)]


def test_a_topic_that_lost_its_end_starts_again_where_its_records_are_others() -> None:
    assert planned([row(5)], described(), {0: (0, 4)}, first_new=3) == [(Act.RETIRE, 0, 5), (Act.REGISTER, 0, 3)]


def test_an_end_that_cannot_be_trusted_is_no_lost_end() -> None:
    assert planned([row(5)], described(full=False), {0: (0, 4)}) == []


def test_new_partitions_are_adopted_once_the_old_ones_are_drained() -> None:
    now = described(partitions=2)
    assert planned([row(9)], now, {0: (0, 9), 1: (0, 3)}) == [(Act.REGISTER, 1, 0)]
    with pytest.raises(OperatorActionRequired, match="unread"):
        planned([row(8)], now, {0: (0, 9), 1: (0, 3)})
    assert planned([row(8)], now, {0: (0, 9), 1: (0, 3)}, undrained=True) == [(Act.REGISTER, 1, 0)]


def test_partitions_never_become_fewer() -> None:
    with pytest.raises(OperatorActionRequired, match="right cluster"):
        planned([row(9), row(9, partition=1)], described(), {0: (0, 9)})
