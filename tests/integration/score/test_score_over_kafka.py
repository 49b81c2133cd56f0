"""`scores.requests` -> `scores.results`: every request gets its answer, whoever is killed meanwhile."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg
import pytest
from confluent_kafka import TopicPartition

from contracts import topics
from contracts.codec import encode
from contracts.scoring import RankingResult, ScoreCall, ScoreFailure, ScoreResult
from runtime import kafka as kafka_clients
from runtime.kafka import KafkaConfig
from tests.integration.feeding import Sender
from tests.integration.score.serving import score_process

if TYPE_CHECKING:
    from tests.integration.score.conftest import Serve, World

Result = ScoreResult | RankingResult | ScoreFailure
CLOCKED = ("staleness_seconds", "watermark")


def call(sender: Sender, user: str, **more: Any) -> None:
    sender.put(topics.REQUESTS, user.encode(), encode(ScoreCall(user_id=user, **more)))


# The topics stand first among a test's arguments, so that they are deleted last: librdkafka crashes in
# a consumer whose topic is deleted under it on Tansu (seen; confluentinc/librdkafka#5280 looks like it).


class Inbox:
    """Reads `scores.results` from its start, and goes on."""

    def __init__(self, config: KafkaConfig) -> None:
        self.found: list[Result] = []
        self.keys: list[bytes | str | None] = []
        self._consumer = kafka_clients.consumer(config, group=f"{config.prefix}look")
        name, partitions = config.physical(topics.RESULTS), kafka_clients.describe(config, [topics.RESULTS])
        self._consumer.assign([TopicPartition(name, n, 0) for n in range(partitions[topics.RESULTS].partitions)])

    def close(self) -> None:
        self._consumer.close()

    def look(self, seconds: float = 1.0) -> list[Result]:
        """All there is, once nothing more has come for so long."""
        while messages := self._consumer.consume(1000, seconds):
            good = [message for message in messages if message.error() is None]
            self.keys += [message.key() for message in good]
            self.found += [_decoder.decode(message.value() or b"") for message in good]
        return self.found

    def until(self, count: int, *, seconds: float = 30) -> list[Result]:
        """As `look`, once there are so many."""
        end = time.monotonic() + seconds
        while len(self.look()) < count:
            assert time.monotonic() < end, f"{len(self.found)} of {count} within {seconds} s"
        return self.found


_decoder: Any = msgspec.json.Decoder(Result)


def prediction(result: Any) -> dict[str, Any]:
    """Without what moves by itself."""
    return {name: value for name, value in msgspec.to_builtins(result).items() if name not in CLOCKED}


MakeInbox = Callable[[KafkaConfig], Inbox]


@pytest.fixture
def inbox_of() -> Iterator[MakeInbox]:
    """Call it with a broker's config: an inbox, closed after the test."""
    with ExitStack() as open_ones:

        def make(config: KafkaConfig) -> Inbox:
            inbox = Inbox(config)
            open_ones.callback(inbox.close)
            return inbox

        yield make


@pytest.fixture
def sender(topics: KafkaConfig) -> Sender:
    return Sender(topics)


def test_a_request_on_kafka_is_answered_as_over_http(
    topics: KafkaConfig, serve: Serve, sender: Sender, people: list[str], inbox_of: MakeInbox
) -> None:
    running = serve(kafka=topics, group=f"{topics.prefix}score")
    call(sender, people[5], request_id="q-1", quantiles=(0.25, 0.75))
    (found,) = (inbox := inbox_of(topics)).until(1)
    over_http = running.ask(people[5], request_id="q-1", quantiles=[0.25, 0.75])
    told = {name: value for name, value in prediction(found).items() if name not in ("schema", "outcome")}
    assert told == {name: value for name, value in over_http.items() if name not in CLOCKED}
    assert inbox.keys == [people[5].encode()]


def test_what_cannot_be_read_is_refused_by_a_record_and_the_stream_goes_on(
    tansu_topics: KafkaConfig, serve: Serve, people: list[str], inbox_of: MakeInbox
) -> None:
    sender = Sender(tansu_topics)
    bad: list[tuple[bytes | None, bytes | None]] = [
        (b"ann", None),
        (b"ann", b"{"),
        (b"ann", b'{"user_id": "\xff"}'),
        (b"ann", b'{"user_id": "ann", "schema": "2.0"}'),
        (b"bob", b'{"user_id": "ann"}'),
        (None, b'{"user_id": "ann"}'),
        (b"ann", b'{"user_id": "ann", "quantiles": [7]}'),
        (b"ann", b'{"user_id": "' + b"a" * 300_000 + b'"}'),
        (b"ann", b"[" * 60_000),
    ]
    for key, value in bad:
        sender.put(topics.REQUESTS, key, value, partition=0)
    sender.put(topics.REQUESTS, b"ann", b'{"user_id": "ann", "candidates": ["a"]}', partition=0)  # PromptTPP ranks none
    sender.put(topics.REQUESTS, b"ann", b'{"user_id": "ann", "of_a_later_minor_version": 1}', partition=0)
    serve(kafka=tansu_topics, group=f"{tansu_topics.prefix}score")
    found = inbox_of(tansu_topics).until(len(bad) + 2)
    refused = [one for one in found if isinstance(one, ScoreFailure)]
    assert {one.reason for one in refused} == {"invalid"}
    topic_id = kafka_clients.describe(tansu_topics, [topics.REQUESTS])[topics.REQUESTS].topic_id
    answered = [one.request_id for one in found if isinstance(one, ScoreResult)]
    assert answered == [f"{topic_id}/0/{len(bad) + 1}"]
    assert {one.request_id for one in refused} == {f"{topic_id}/0/{n}" for n in range(len(bad) + 1)}


def test_a_request_whose_deadline_has_passed_is_answered_as_expired(
    tansu_topics: KafkaConfig, serve: Serve, world: World, people: list[str], inbox_of: MakeInbox
) -> None:
    sender = Sender(tansu_topics)
    call(sender, people[0], request_id="late", deadline=datetime(2026, 1, 1, tzinfo=UTC))
    call(sender, people[0], request_id="in time", deadline=datetime(9999, 1, 1, tzinfo=UTC))
    serve(kafka=tansu_topics, group=f"{tansu_topics.prefix}score")
    found = {one.request_id: one for one in inbox_of(tansu_topics).until(2)}
    late, answered = found["late"], found["in time"]
    assert isinstance(late, ScoreFailure)
    assert late.reason == "expired"
    assert isinstance(answered, ScoreResult)


def test_requests_wait_for_the_first_snapshot_and_beyond_a_full_queue(
    tansu_topics: KafkaConfig, serve: Serve, world: World, inbox_of: MakeInbox
) -> None:
    sender = Sender(tansu_topics)
    for n in range(40):
        call(sender, f"user-{n}", request_id=f"q-{n}")
    running = serve(ready=False, kafka=tansu_topics, group=f"{tansu_topics.prefix}score", max_queue=3, batch_size=2)
    running.until(lambda: "no live snapshot" in running.client.get("/readyz").text)
    inbox = inbox_of(tansu_topics)
    assert inbox.look(3.0) == []
    world.publish(1)
    found = inbox.until(40)
    assert Counter(one.request_id for one in found) == Counter(f"q-{n}" for n in range(40))
    assert {type(one) for one in found} == {ScoreResult}


def test_killed_between_answers_and_position_nothing_is_lost_and_repeated_ids_are_equal(
    topics: KafkaConfig, world: World, sender: Sender, people: list[str], tmp_path: Path, inbox_of: MakeInbox
) -> None:
    for n, user in enumerate(people[:20]):
        call(sender, user, request_id=f"q-{n}" if n % 2 else None)
    with score_process(world, topics, tmp_path / "first.log", failpoint="score.after_answers") as killed:
        assert killed.wait(90) == -signal.SIGKILL
    inbox = inbox_of(topics)
    first = list(inbox.look())
    assert first
    call(sender, people[30], request_id="after the kill")
    with score_process(world, topics, tmp_path / "second.log"):
        found = list(inbox.until(len(first) + 21, seconds=90))
    ids = Counter(one.request_id for one in found)
    assert len(ids) == 21
    assert {one.request_id for one in first} == {name for name, times in ids.items() if times == 2}
    again = {one.request_id: prediction(one) for one in found[::-1]}
    assert all(prediction(one) == again[one.request_id] for one in first)
    with score_process(world, topics, tmp_path / "third.log"):
        call(sender, people[31], request_id="once")
        last = inbox.until(len(found) + 1, seconds=90)
    assert Counter(one.request_id for one in last) == ids + Counter(["once"])


def test_while_kafka_is_away_http_answers(serve: Serve, people: list[str]) -> None:
    running = serve(kafka=KafkaConfig("127.0.0.1:1"))
    assert running.ask(people[0])["user_id"] == people[0]
    running.until(lambda: "driftline_score_kafka_up 0.0" in running.client.get("/metrics").text)
    assert running.ready()


def test_postgres_away_is_waited_for(
    tansu_topics: KafkaConfig, serve: Serve, world: World, people: list[str], inbox_of: MakeInbox
) -> None:
    sender = Sender(tansu_topics)
    serve(kafka=tansu_topics, group=f"{tansu_topics.prefix}score")
    inbox = inbox_of(tansu_topics)
    with psycopg.connect(world.url) as locker:
        locker.execute("LOCK TABLE user_segment IN ACCESS EXCLUSIVE MODE")
        call(sender, people[0], request_id="q")
        time.sleep(6.0)  # beyond the transaction's time limit: the engine gives up and tries again
        assert inbox.look() == []
        locker.rollback()
    (found,) = inbox.until(1)
    assert isinstance(found, ScoreResult)
