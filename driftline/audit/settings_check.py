"""What the topics let go before anybody read it: the audit's own look at their settings and at where they begin.

An offset that a topic deleted leaves nothing to compare. So `verify` says how many there are, and which settings let
more of them come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from contracts import topics
from driftline.audit.findings import TopicReport
from driftline.audit.stream_check import Audited
from runtime import kafka
from runtime.kafka import BrokerRefused, KafkaConfig, TopicDescription


def look_at_settings(
    config: KafkaConfig, described: Mapping[str, TopicDescription], report: Mapping[str, TopicReport]
) -> None:
    """Into each topic's report: `unsafe` and `warnings`.

    :raises BrokerAway: nobody answers.
    """
    names = [name for name, topic in described.items() if topic.full_kafka and name in report]
    try:
        found = kafka.topic_configs(config, names)
    except BrokerRefused as error:
        for name in names:
            report[name].warnings.append(f"its settings could not be looked at: {error.what}")
        return
    for name, values in found.items():
        policy, age, size = (values.get(key) or "" for key in ("cleanup.policy", "retention.ms", "retention.bytes"))
        if "compact" in policy and name != topics.ITEMS:
            report[name].unsafe.append(
                f"cleanup.policy={policy}: compaction removes events, read or not, and leaves no trace; "
                "set cleanup.policy=delete"
            )
        if "delete" in policy and age and int(age) >= 0:
            report[name].warnings.append(f"retention.ms={age}: older records go, read or not; set retention.ms=-1")
        if "delete" in policy and size and int(size) >= 0:
            report[name].warnings.append(f"retention.bytes={size}: what is beyond goes, read or not; set -1")


def look_at_beginning(stream: Audited, low: int, report: TopicReport) -> int | None:
    """Where a stream that was read begins, and what was deleted under its reader.

    :param low: the first offset that its topic still holds.
    :returns: the stored offset, if the topic deleted what comes after it: unread, and nothing says what it was.
    """
    if stream.life == 1 and not stream.kept_from and stream.begins > 0:
        report.deleted_before[stream.partition] = stream.begins
    return stream.next_offset if stream.next_offset < low else None


def look_at_unread(partitions: Sequence[tuple[int, int]], report: TopicReport) -> None:
    """Of a topic that nobody has read yet: (first offset, the one after the last) of each partition."""
    for partition, (low, _) in enumerate(partitions):
        if low > 0:
            report.deleted_before[partition] = low
