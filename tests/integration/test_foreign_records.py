"""Whatever strangers write (headers, names, keys, times, values): no valid record is lost, and nobody is stopped.

20,000 records of real bytes over a real Kafka, to a running `ingest` and a running `drift`; then `driftline verify`.
One world for all examples: ids are never used twice, and each example is judged by what it added.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count, product
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported, as its documentation says
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from contracts import topics
from contracts.codec import MAX_RECORD_MS, encode
from contracts.origins import origin_header, record_digest
from contracts.records import Item, Label, Payment, Relation, UserEvent
from driftline.cli import run
from driftline.dead_letter_replay import Repeat, send
from runtime import kafka
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit, Stop
from tests.integration.drift.watching import Running
from tests.integration.feeding import eventually, ingest, key_of, query, taken
from tests.raw_records import CODECS, Header, Raw, write_raw

EXAMPLES, RECORDS = int(os.environ.get("FOREIGN_EXAMPLES", "60")), 350
"""How many, and how many records each: 21,000."""
_LAST_MS = MAX_RECORD_MS - 10**9
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WATCHED = (topics.LABELS, topics.PROGRESS, topics.RESULTS)
"""What `drift` reads."""

users = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
names = st.one_of(
    st.binary(max_size=8),
    st.sampled_from(
        [b"driftline-origin", b"driftline-origin\0", b"Driftline-Origin", b"\xff", b"a\xc3", b"traceparent", b""]
    ),
)
contents = st.one_of(
    st.none(),
    st.binary(max_size=30),
    st.sampled_from([b"1:0", b"077:777", b"+1:2", b"1:0:" + b"0" * 64, b"9" * 5_000, b"\xd9\xa1:1", b"1:" + b"9" * 30]),
)
headers = st.lists(st.tuples(names, contents), max_size=4)
usable_times = st.one_of(
    st.integers(0, _LAST_MS),
    st.sampled_from([0, 1, 1_767_225_600_000, 4_102_444_800_000, _LAST_MS]),  # 1970, 2026, 2100, 9999
)
other_times = st.one_of(
    st.integers(-(2**62), -1), st.integers(MAX_RECORD_MS + 1, 2**62), st.sampled_from([-1, 2**62, -(2**62)])
)
garbage = st.one_of(
    st.none(),
    st.binary(max_size=40),
    st.sampled_from([b"{}", b"[]", b"null", b'{"schema":"9.0"}', b"[" * 3_000, b"\xff"]),
)
foreign_keys = st.none() | st.binary(max_size=20).map(lambda key: b"\xfe" + key)


@dataclass(frozen=True)
class Batch:
    """What an example is made of; how the parts meet is drawn from the seed."""

    headers: Sequence[list[Header]]
    users: Sequence[str]
    times: Sequence[int]
    other_times: Sequence[int]
    garbage: Sequence[bytes | None]
    keys: Sequence[bytes | None]
    codec: str
    seed: int


batches = st.builds(
    Batch,
    headers=st.lists(headers, min_size=6, max_size=12),
    users=st.lists(users, min_size=2, max_size=6),
    times=st.lists(usable_times, min_size=2, max_size=6),
    other_times=st.lists(other_times, min_size=1, max_size=3),
    garbage=st.lists(garbage, min_size=2, max_size=5),
    keys=st.lists(foreign_keys, min_size=1, max_size=3),
    codec=st.sampled_from(sorted(CODECS)),
    seed=st.integers(0, 2**32),
)


@dataclass
class Told:
    """What a batch must come to."""

    sent: list[Raw] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    watched: int = 0
    unreadable_names: int = 0
    """Of the watched ones."""
    last: str = ""
    """What the last record comes to; "": of no interest here, or an item's version, which none repeats."""


@dataclass
class World:
    """One broker, one database, an `ingest` and a `drift` that never stop."""

    database: str
    config: KafkaConfig
    drift: Running
    secret: bytes
    fresh: Iterator[int] = field(default_factory=count)
    accepted: set[tuple[str, str, str]] = field(default_factory=set)
    proofs: list[bytes] = field(default_factory=lambda: [b"1:0"])
    """Headers of real replays, for strangers to copy."""
    sent: int = 0
    watched: int = 0
    unreadable_names: int = 0

    def made(self, topic: str, user: str, at_ms: int) -> Any:
        """A valid record whose id nobody has used."""
        at, name = _EPOCH + timedelta(milliseconds=at_ms), f"e{next(self.fresh)}"
        if topic == topics.USER:
            return UserEvent(event_id=name, user_id=user, occurred_at=at, source="s", type="look")
        if topic == topics.PAYMENT:
            return Payment(
                event_id=name, user_id=user, occurred_at=at, source="s", type="buy", amount=5, currency="EUR"
            )
        if topic == topics.RELATIONAL:
            return Relation(
                event_id=name, actor_id=user, relation="r", counterpart_id=f"{user[:10]}!", occurred_at=at, source="s"
            )
        if topic == topics.LABELS:
            return Label(event_id=name, user_id=user, task="fraud", ref_time=at, known_at=at, value=1.0, source="s")
        return Item(item_id=user, source="s", title=name)

    def told(self, batch: Batch) -> Told:
        """Records of a batch, and what they must come to."""
        rng, told = random.Random(batch.seed), Told()
        for _ in range(RECORDS):
            self._one(batch, rng, told)
        return told

    def _one(self, batch: Batch, rng: random.Random, told: Told) -> None:
        kind = rng.choices(["valid", "repeat", "garbage", "time", "key", "watched"], [60, 6, 12, 6, 8, 8])[0]
        if kind == "repeat" and told.sent and told.last in ("accepted", "dead"):
            self._send(told.sent[-1], told, "duplicates" if told.last == "accepted" else "dead")
            return
        topic = rng.choice(_WATCHED[1:] if kind == "watched" else list(topics.INPUTS))
        at_ms = rng.choice(batch.times)
        record = self.made(topic, rng.choice(batch.users), at_ms)
        key: bytes | None = key_of(record).encode() if topic in topics.INPUTS else b"x"
        value: bytes | None = encode(record)
        if kind in ("garbage", "watched"):
            value = rng.choice(batch.garbage)
        if kind == "key":
            key = rng.choice(batch.keys)
            if topic == topics.ITEMS:
                key = key or b"\xfe"  # Kafka takes no record without a key into a compacted topic
        extra = [(b"driftline-origin", rng.choice(self.proofs))] if rng.random() < 0.2 else []
        raw = Raw(
            topic=self.config.physical(topic),
            partition=0 if topic in (topics.ITEMS, topics.PROGRESS) else rng.randrange(4),
            key=key,
            value=value,
            at_ms=rng.choice(batch.other_times) if kind == "time" else at_ms,
            headers=[*rng.choice(batch.headers), *extra],
        )
        valid = kind in ("valid", "repeat") or (topic == topics.ITEMS and kind == "garbage" and value is None)
        if valid and topic != topics.ITEMS:
            self.accepted.add((topic, key_of(record), record.event_id))
        self._send(raw, told, "" if kind == "watched" else "accepted" if valid else "dead")

    def _send(self, raw: Raw, told: Told, becomes: str) -> None:
        told.sent.append(raw)
        told.counts[becomes] += 1
        told.last = "" if becomes == "accepted" and raw.topic == self.config.physical(topics.ITEMS) else becomes
        if self.config.logical(raw.topic) in _WATCHED:
            told.watched += 1
            told.unreadable_names += any(not _is_utf8(name) for name, _ in raw.headers)

    # -- what became of it --

    def counts(self) -> Counter[str]:
        """All of the log."""
        [(accepted, duplicates, dead)] = query(
            self.database,
            "SELECT coalesce(sum(accepted), 0)::int, coalesce(sum(duplicates), 0)::int, coalesce(sum(dead), 0)::int"
            " FROM log_segment",
        )
        return Counter(accepted=accepted, duplicates=duplicates, dead=dead)

    def check(self, batch: Batch) -> None:
        """Sends a batch and waits until all have seen it."""
        before, told = self.counts(), self.told(batch)
        write_raw(self.config.bootstrap, told.sent, codec=batch.codec)
        self.sent += len(told.sent)
        self.watched += told.watched
        self.unreadable_names += told.unreadable_names
        expected = Counter({name: told.counts[name] for name in ("accepted", "duplicates", "dead")})
        eventually(lambda: (self.counts() - before).total() >= expected.total(), within_s=30, why=str(expected))
        assert self.counts() - before == +expected
        self.drift.until(lambda: self.drift.records >= self.watched, within_s=30)

    def replay(self) -> None:
        """A person mends dead letters, twice and each time otherwise: each comes in once."""
        rows = query(
            self.database,
            "SELECT d.stream_id || ':' || position, topic, (extract(epoch FROM record_at) * 1000)::bigint"
            " FROM dead_letter d JOIN stream_offset USING (stream_id)"
            " WHERE topic = ANY(%s) ORDER BY random() LIMIT 5",
            [topics.USER, topics.PAYMENT, topics.RELATIONAL, topics.LABELS],
        )
        replayed = query(self.database, "SELECT origin_stream_id || ':' || origin_position FROM replayed_letter")
        known, before, repeats = {row[0] for row in replayed}, self.counts(), []
        for (letter, topic, record_ms), first in product(rows, (True, False)):
            at_ms = min(max(record_ms, 1), _LAST_MS)
            record = self.made(topic, "mended", at_ms)
            if first and letter not in known:
                self.accepted.add((topic, key_of(record), record.event_id))
            key, value = key_of(record).encode(), encode(record)
            repeats.append(Repeat(id=letter, topic=topic, key=key, value=value, at_ms=at_ms))
            self.proofs.append(origin_header(self.secret, letter, record_digest(topic, key, value)))
        send(repeats, self.config, secret=self.secret)
        self.sent += len(repeats)
        self.watched += sum(repeat.topic in _WATCHED for repeat in repeats)
        new = len({row[0] for row in rows} - known)
        eventually(lambda: (self.counts() - before).total() >= len(repeats), within_s=30)
        assert self.counts() - before == +Counter(accepted=new, duplicates=len(repeats) - new)


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def let_any_time_in(config: KafkaConfig) -> None:
    """As brokers before 3.6 do, and many clusters: no bound on CreateTime, and no file for each jump of it."""
    never = str(2**63 - 1)
    resources = [
        ConfigResource(
            ResourceType.TOPIC,
            config.physical(topic.name),
            incremental_configs=[
                ConfigEntry(name, never, incremental_operation=AlterConfigOpType.SET)
                for name in ("message.timestamp.after.max.ms", "segment.ms")
            ],
        )
        for topic in topics.ALL
    ]
    client = kafka.admin(config)  # kept in a variable: its answers die with it
    for answer in client.incremental_alter_configs(resources).values():
        answer.result(timeout=10)


@contextmanager
def ingesting(database: str, config: KafkaConfig) -> Iterator[None]:
    """An `ingest` of this process, which must not end by itself."""
    stop, ended = Stop(), list[object]()
    process = ingest(database, config, stop=stop)
    thread = threading.Thread(target=lambda: ended.append(process.run()))
    thread.start()
    try:
        yield
        assert thread.is_alive()
    finally:
        stop.set("the test ends")
        thread.join(30)
    assert ended == [process.totals]


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_strangers_records_cost_no_valid_one_and_stop_nobody(
    database: str, kafka_topics: KafkaConfig, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_any_time_in(kafka_topics)
    [(secret,)] = query(database, "SELECT suppression_key FROM installation")
    watching = Running(kafka_topics, tmp_path, free_port)
    world = World(database, kafka_topics, watching, bytes(secret))

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(batches)
    def strangers(batch: Batch) -> None:
        world.check(batch)
        world.replay()

    try:
        with ingesting(database, kafka_topics):
            strangers()
        told = watching.end()
    finally:
        if watching.process.poll() is None:
            watching.kill()
    assert world.sent >= EXAMPLES * RECORDS
    assert taken(database).identities == world.accepted
    assert query(database, "SELECT count(*) FROM dead_letter WHERE reason = '' OR detail = ''") == [(0,)]
    assert (told["records"], told["unreadable_headers"]) == (world.watched, world.unreadable_names)
    assert "drift.again" not in watching.log.read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", database)
    monkeypatch.setenv("DRIFTLINE_KAFKA_BOOTSTRAP", kafka_topics.bootstrap)
    monkeypatch.setenv("DRIFTLINE_TOPIC_PREFIX", kafka_topics.prefix)
    assert run(["verify"]) == Exit.DONE
    print(f"{world.sent:,} records: {world.counts()}; drift {told}")
