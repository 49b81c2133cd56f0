"""Topics that remove records before they are read: what `ingest`, `replay`, `simulate` and `verify` say of them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog
from confluent_kafka import TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from contracts import topics
from contracts.codec import encode
from driftline.cli import run
from runtime import kafka, metrics
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit
from storage.log.offsets import Claim, KafkaPartitionId
from streams.ingest import topic_watch
from streams.ingest.topic_watch import TopicWatch
from tests.integration.feeding import event, eventually, ingest, ingest_once, query
from tests.integration.test_ingest_positions import running

DAY_MS = 86_400_000


def alter(config: KafkaConfig, topic: str, **settings: str) -> None:
    entries = [
        ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for name, value in settings.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, config.physical(topic), incremental_configs=entries)
    client = kafka.admin(config)
    for answer in client.incremental_alter_configs([resource]).values():
        answer.result(20)


def delete_before(config: KafkaConfig, topic: str, partition: int, offset: int) -> None:
    client = kafka.admin(config)
    for answer in client.delete_records([TopicPartition(config.physical(topic), partition, offset)]).values():
        answer.result(20)


def put(config: KafkaConfig, count: int, *, at_ms: int | None = None) -> None:
    """Events of ann, in partition 1."""
    producer = kafka.producer(config)
    for n in range(count):
        producer.produce(
            config.physical(topics.USER),
            encode(event(f"e{n}")),
            b"ann",
            partition=1,
            timestamp=at_ms or int(time.time() * 1000),
        )
    assert producer.flush(20) == 0


def claimed(next_offset: int, epoch: int = 2) -> dict[tuple[str, int], Claim]:
    stream = KafkaPartitionId(topic=topics.USER, partition=1, topic_id="t", cluster_id="c")
    claim = Claim(stream_id=1, stream=stream, epoch=epoch, next_offset=next_offset, suppression_version=0)
    return {(topics.USER, 1): claim}


def watched(config: KafkaConfig, next_offset: int, *, later_days: float = 0, epoch: int = 2) -> tuple[str, list[Any]]:
    """(why it is unsafe, what was logged) of a lag that begins there, so many days from now."""
    client = kafka.admin(config)
    watch = TopicWatch(config, client, now_ms=lambda: time.time() * 1000 + later_days * DAY_MS)
    described = kafka.describe(config, list(topics.INPUTS), client=client)
    with structlog.testing.capture_logs() as told:
        why = watch.why_unsafe(claimed(next_offset, epoch), described)
    return why, [line["event"] for line in told]


def danger() -> float | None:
    """What the metric says of user events."""
    return metrics.REGISTRY.get_sample_value("driftline_ingest_topic_danger", {"topic": topics.USER})


# -- ingest --


@pytest.mark.kafka
def test_a_compacted_event_topic_is_noticed_and_ingest_reads_on_unready(
    database: str, kafka_topics: KafkaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_watch, "LOOK_EVERY_S", 0.2)
    alter(kafka_topics, topics.PAYMENT, cleanup_policy="compact,delete")
    put(kafka_topics, 3)
    process = ingest(database, kafka_topics)
    with running(process) as future:
        eventually(lambda: "is compacted" in str(process._health.report()) or future.done())
        assert "set its cleanup.policy to delete" in str(process._health.report())
        assert not process._health.is_ready()
        eventually(lambda: query(database, "SELECT sum(accepted) FROM log_segment")[0][0] == 3)
        alter(kafka_topics, topics.PAYMENT, cleanup_policy="delete")
        eventually(process._health.is_ready)
    future.result(30)


@pytest.mark.kafka
def test_the_topics_as_topics_create_makes_them_are_safe(kafka_topics: KafkaConfig) -> None:
    put(kafka_topics, 3, at_ms=1_300_000_000_000)
    why, told = watched(kafka_topics, 0, later_days=10_000)
    assert (why, told) == ("", ["ingest.topic_settings"])


@pytest.mark.kafka
def test_a_lag_older_than_the_retention_is_not_ready_and_one_older_than_half_of_it_is_said(
    kafka_topics: KafkaConfig,
) -> None:
    alter(kafka_topics, topics.USER, retention_ms=str(10 * DAY_MS))
    put(kafka_topics, 5)
    assert watched(kafka_topics, 2) == ("", ["ingest.topic_settings"])
    assert danger() == 0
    why, told = watched(kafka_topics, 2, later_days=6)
    assert (why, told[1:]) == ("", ["ingest.lag_near_retention"])
    assert danger() == 1
    why, told = watched(kafka_topics, 2, later_days=11)
    assert f"{kafka_topics.physical(topics.USER)}[1]: unread offsets 2 to 5 are older than the 10 days" in why
    assert "retention.ms=864000000" in why
    assert told[1:] == ["ingest.lag_beyond_retention"]
    assert danger() == 2
    assert watched(kafka_topics, 5, later_days=11)[0] == ""  # all is read: nothing can be lost


@pytest.mark.kafka
def test_only_what_lies_before_the_first_young_record_endangers(kafka_topics: KafkaConfig) -> None:
    alter(kafka_topics, topics.USER, retention_ms=str(10 * DAY_MS))
    now_ms = int(time.time() * 1000)
    put(kafka_topics, 3, at_ms=now_ms - 9 * DAY_MS)
    put(kafka_topics, 3, at_ms=now_ms - DAY_MS)
    assert "unread offsets 0 to 3" in watched(kafka_topics, 0, later_days=2)[0]
    assert watched(kafka_topics, 3, later_days=2)[0] == ""


@pytest.mark.kafka
def test_retention_by_size_is_said(kafka_topics: KafkaConfig) -> None:
    alter(kafka_topics, topics.USER, retention_bytes="1000000")
    assert watched(kafka_topics, 0) == ("", ["ingest.topic_settings", "ingest.topic_deletes_by_size"])


@pytest.mark.kafka
def test_items_are_meant_to_be_compacted(database: str, kafka_topics: KafkaConfig) -> None:
    process = ingest(database, kafka_topics)
    with running(process) as future:
        eventually(lambda: process._health.is_ready() or future.done())
    future.result(30)


@pytest.mark.kafka
def test_a_stream_that_begins_above_0_is_said_with_the_number_by_ingest_and_verify(
    database: str, kafka_topics: KafkaConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(kafka_topics, 5)
    delete_before(kafka_topics, topics.USER, 1, 3)
    code, before = verified(database, kafka_topics, monkeypatch, capsys)
    assert before["topics"][topics.USER]["deleted_before"] == {"1": 3}  # nobody has read it yet
    with structlog.testing.capture_logs() as told:
        assert ingest_once(database, kafka_topics).accepted == 2
    said = [line for line in told if line["event"] == "ingest.begins_above_0"]
    assert [(line["topic"], line["partition"], line["offset"]) for line in said] == [(topics.USER, 1, 3)]
    with structlog.testing.capture_logs() as told:
        ingest_once(database, kafka_topics)
    assert not [line for line in told if line["event"] == "ingest.begins_above_0"]  # no news any more
    code, report = verified(database, kafka_topics, monkeypatch, capsys)
    assert (code, report["topics"][topics.USER]["deleted_before"]) == (Exit.DONE, {"1": 3})
    assert run(["verify"]) == Exit.DONE
    shown = capsys.readouterr().out
    assert "events.user: deleted by the topic before anything read it: offsets below [1] 3" in shown
    assert "every record up to the stored offsets that the topics still held" in shown


@pytest.mark.kafka
def test_what_was_deleted_unread_fails_verify(
    database: str, kafka_topics: KafkaConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(kafka_topics, 2)
    ingest_once(database, kafka_topics)
    assert verified(database, kafka_topics, monkeypatch, capsys)[0] == Exit.DONE
    put(kafka_topics, 5)
    delete_before(kafka_topics, topics.USER, 1, 6)
    code, report = verified(database, kafka_topics, monkeypatch, capsys)
    assert code == Exit.FAILED
    assert report["topics"][topics.USER]["places"]["gone"][0]["detail"] == (
        "offsets 2 to 6 were deleted before they were read"
    )


@pytest.mark.kafka
def test_verify_fails_on_compacted_events_and_warns_of_retention(
    database: str, kafka_topics: KafkaConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest_once(database, kafka_topics)
    assert verified(database, kafka_topics, monkeypatch, capsys)[0] == Exit.DONE
    alter(kafka_topics, topics.LABELS, retention_ms="604800000", retention_bytes="1000000")
    code, report = verified(database, kafka_topics, monkeypatch, capsys)
    assert code == Exit.DONE
    assert [text.partition(":")[0] for text in report["topics"][topics.LABELS]["warnings"]] == [
        "retention.ms=604800000",
        "retention.bytes=1000000",
    ]
    alter(kafka_topics, topics.USER, cleanup_policy="compact")
    code, report = verified(database, kafka_topics, monkeypatch, capsys)
    assert code == Exit.FAILED
    assert "cleanup.policy=compact" in report["topics"][topics.USER]["unsafe"][0]
    assert run(["verify"]) == Exit.FAILED
    told = capsys.readouterr()
    assert "unsafe: events.user: cleanup.policy=compact" in told.err
    assert "NOT as promised" in told.out


def verified(
    database: str, config: KafkaConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, Mapping[str, Any]]:
    given(monkeypatch, config, database)
    capsys.readouterr()
    code = run(["verify", "--json"])
    return code, json.loads(capsys.readouterr().out)


def given(monkeypatch: pytest.MonkeyPatch, config: KafkaConfig, database: str = "") -> None:
    monkeypatch.setenv("DRIFTLINE_KAFKA_BOOTSTRAP", config.bootstrap)
    monkeypatch.setenv("DRIFTLINE_TOPIC_PREFIX", config.prefix)
    if database:
        monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", database)


def test_on_a_broker_that_keeps_no_settings_nothing_is_said(tansu_topics: KafkaConfig) -> None:
    assert watched(tansu_topics, 0) == ("", [])


# -- replay and simulate --


@pytest.fixture
def old_events(tmp_path: Path) -> Path:
    """Of March 2011."""
    file = tmp_path / "old.csv"
    file.write_text("user,time\n" + "".join(f"u{n},2011-03-0{n}T00:00:00Z\n" for n in range(1, 6)))
    return file


def ends(config: KafkaConfig) -> int:
    """Records in the topic of user events."""
    client = kafka.admin(config)
    found = kafka.offsets_at(config, {(topics.USER, n): None for n in range(4)}, client=client)
    return sum(at or 0 for at in found.values())


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("settings", "said", "helps"),
    [
        ({"retention_ms": "604800000"}, "(retention.ms=604800000)", "--add-config retention.ms=-1"),
        ({"cleanup_policy": "compact"}, "the topic is compacted", "--add-config cleanup.policy=delete"),
        (
            {"message_timestamp_before_max_ms": "3600000"},
            "takes none older than 3,600 s (message.timestamp.before.max.ms)",
            "message.timestamp.before.max.ms=9223372036854775807",
        ),
        (
            {"message_timestamp_type": "LogAppendTime"},
            "the topic dates records with their arrival",
            "message.timestamp.type=CreateTime",
        ),
    ],
    ids=["retention", "compaction", "before.max", "LogAppendTime"],
)
def test_replay_refuses_before_it_sends_what_a_topic_would_not_keep(
    settings: dict[str, str],
    said: str,
    helps: str,
    old_events: Path,
    kafka_topics: KafkaConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given(monkeypatch, kafka_topics)
    alter(kafka_topics, topics.USER, **settings)
    verb = ["replay", str(old_events), "--user", "user", "--time", "time"]
    assert run(verb) == Exit.USAGE
    told = capsys.readouterr().err
    assert said in told
    assert helps in told
    assert "nothing was sent" in told
    assert ends(kafka_topics) == 0
    if "before" not in said and "older" not in said:
        assert run([*verb, "--despite-topic-settings"]) == Exit.DONE
        assert ends(kafka_topics) == 5


@pytest.mark.kafka
def test_a_topic_with_room_enough_takes_a_replay(
    old_events: Path, kafka_topics: KafkaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, kafka_topics)
    alter(kafka_topics, topics.USER, retention_ms=str(36_500 * DAY_MS))
    assert run(["replay", str(old_events), "--user", "user", "--time", "time"]) == Exit.DONE
    assert ends(kafka_topics) == 5


@pytest.mark.kafka
def test_replay_refuses_for_the_topic_of_its_labels_too(
    old_events: Path, kafka_topics: KafkaConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given(monkeypatch, kafka_topics)
    alter(kafka_topics, topics.LABELS, retention_ms="604800000")
    verb = ["replay", str(old_events), "--user", "user", "--time", "time", "--label", "user"]
    assert run(verb) == Exit.USAGE
    assert kafka_topics.physical(topics.LABELS) in capsys.readouterr().err
    assert ends(kafka_topics) == 0


@pytest.mark.kafka
def test_simulate_refuses_what_a_topic_would_not_keep(
    kafka_topics: KafkaConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given(monkeypatch, kafka_topics)
    alter(kafka_topics, topics.USER, retention_ms="3600000")
    assert run(["simulate", "--users", "2", "--days", "0.1"]) == Exit.USAGE
    assert "--until-now" in capsys.readouterr().err
    assert ends(kafka_topics) == 0
    assert run(["simulate", "--users", "2", "--days", "0.02", "--until-now"]) == Exit.DONE
