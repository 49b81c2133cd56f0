"""What `drift` finds of its topics, and what `train` tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts import topics
from contracts.topics import Topic
from runtime import kafka
from runtime.kafka import KafkaConfig, TopicMissing
from runtime.lifecycle import OperatorActionRequired
from streams.drift.changelogs import prepared
from tests.integration.learning import schools

SOURCES = (topics.PROGRESS, topics.LABELS)


def test_each_source_has_a_changelog_of_as_many_partitions(tansu_topics: KafkaConfig) -> None:
    for _ in range(2):  # the second time they are there
        found = prepared(tansu_topics, "group", SOURCES)
        assert {name: source.partitions for name, source in found.items()} == {topics.PROGRESS: 1, topics.LABELS: 4}
    changelogs = kafka.describe(tansu_topics, [f"group-{name}-changelog" for name in SOURCES])
    assert [changelog.partitions for changelog in changelogs.values()] == [1, 4]


def test_a_changelog_of_other_partitions_is_refused_with_the_way_on(tansu_topics: KafkaConfig) -> None:
    name = f"group-{topics.LABELS}-changelog"
    kafka.create_topics(tansu_topics, [Topic(name=name, partitions=2, config={})])
    with pytest.raises(OperatorActionRequired, match="has 2 partitions, and its source has 4") as caught:
        prepared(tansu_topics, "group", SOURCES)
    assert "DRIFTLINE_DRIFT__GROUP" in str(caught.value)


def test_a_source_that_is_not_there_is_refused(tansu: str) -> None:
    with pytest.raises(TopicMissing, match="topics create"):
        prepared(KafkaConfig(tansu, prefix="none-here."), "group", SOURCES)


def test_train_tells_types_and_confidence_of_each_step(
    database: str, tansu_topics: KafkaConfig, tmp_path: Path
) -> None:
    with schools(database, tansu_topics, tmp_path) as school:
        school.write(40, types=4)
        school.train(step_rows=8)
        steps = school.progress(at_least=5)
    assert [step.rows for step in steps] == [8] * 5
    for step in steps:
        assert sum(step.types.values()) == step.rows
        assert set(step.types) == {f"type-{n}" for n in range(4)}
        assert step.confidence is not None
        assert step.confidence.rows == step.losses["learner"]["error"].rows
        assert 0 < step.confidence.sum <= step.confidence.rows
    assert steps[0].schema == "1.2"
