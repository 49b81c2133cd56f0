"""The topics in which `drift` keeps its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from contracts.topics import Topic
from runtime import kafka
from runtime.kafka import KafkaConfig, TopicDescription
from runtime.lifecycle import OperatorActionRequired


def prepared(config: KafkaConfig, group: str, sources: Sequence[str]) -> Mapping[str, TopicDescription]:
    """What the sources are, once each has a changelog of as many partitions: Faust keeps what came of one
    partition of the source in the same one of the changelog, and so in order.

    Made here and not by Faust, so that they get the brokers' default number of replicas.

    :raises TopicMissing, BrokerAway, BrokerRefused: as `kafka.describe`.
    :raises Refused: a changelog has another number of partitions than its source.
    """
    found = kafka.describe(config, sources)
    wanted = {
        f"{group}-{name}-changelog": Topic(
            name=f"{group}-{name}-changelog",
            partitions=source.partitions,
            config={"cleanup.policy": "compact"},
        )
        for name, source in found.items()
    }
    made = kafka.create_topics(config, list(wanted.values()))
    for name, differences in made.different.items():
        if "partitions" in differences:
            asked, there = differences["partitions"]
            raise OperatorActionRequired(
                f"{config.physical(name)} has {there} partitions, and its source has {asked}",
                where=f"Kafka at {config.bootstrap}",
                hint="set another DRIFTLINE_DRIFT__GROUP: it reads all from the start, into a state of its own",
            )
    return found
