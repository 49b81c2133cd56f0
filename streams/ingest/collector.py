"""The messages of the next batch, stream by stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from confluent_kafka import Consumer, Message

from runtime.kafka import KafkaConfig
from runtime.lifecycle import Stop, Transient
from runtime.settings import IngestSettings
from storage.log.offsets import Claim
from streams.ingest.validation import StreamBatch, decoders

LONGEST_BATCH_S = 1.0
IDLE_S = 0.2
"""How long one look for records waits when none come."""
_CHUNK_RECORDS = 2000
_CHUNK_BYTES = 8 * 2**20

TopicPlace = tuple[str, int]
"""Physical topic and partition."""


class Rejoin(Transient):
    """Memory and Postgres may disagree: leave the group, forget everything, join again."""


class Collector:
    """Fills intakes from a consumer."""

    def __init__(self, consumer: Consumer, config: KafkaConfig, settings: IngestSettings, stop: Stop) -> None:
        self._consumer = consumer
        self._config = config
        self._settings = settings
        self._stop = stop
        self._decoders = decoders()
        self._chunk = 1000
        self.intakes: dict[TopicPlace, StreamBatch] = {}
        """What has been collected and not yet handed over."""
        self.first_at: float | None = None
        """Unix seconds when the first record was there."""

    def collect(self, claims: Mapping[TopicPlace, Claim], check: Callable[[], None]) -> int:
        """Takes messages until a batch is full, or what was there is taken and `linger_s` has passed.

        While the broker has more, waiting costs nothing and larger batches cost less: then only
        `LONGEST_BATCH_S` ends it.

        :param claims: streams whose messages count; a callback of the group may change it under way.
        :param check: raises what went wrong in a callback.
        :returns: how many messages were taken.
        :raises Rejoin, Disorder: the consumer and memory do not fit together any more.
        """
        records = size = 0
        started = time.monotonic()
        caught_up = True
        while records < self._settings.batch_records and size < self._settings.batch_bytes:
            age_s = time.monotonic() - started
            if records and age_s >= (self._settings.linger_s if caught_up else LONGEST_BATCH_S):
                break
            wait_s = max(0.0, self._settings.linger_s - age_s) if records else IDLE_S
            wanted = min(self._chunk, self._settings.batch_records - records)
            messages = self._consumer.consume(wanted, wait_s)
            check()
            caught_up = len(messages) < wanted
            if not messages:
                if not records:
                    break
                continue
            if not records:
                started = time.monotonic()
                self.first_at = self.first_at or time.time()
            taken = self._take(messages, claims)
            records += len(messages)
            size += taken
            # Small chunks for large records: a chunk is in memory before its size is known.
            self._chunk = max(1, min(_CHUNK_RECORDS, _CHUNK_BYTES // (taken // len(messages) + 1)))
            if self._stop.is_set():
                break
        return records

    def intake(self, place: TopicPlace, claim: Claim) -> StreamBatch:
        """What was collected of a stream; a new one, if nothing was."""
        if place not in self.intakes:
            topic = claim.stream.topic
            self.intakes[place] = StreamBatch(topic, self._decoders[topic], next=claim.next_offset)
        return self.intakes[place]

    def hand_over(self) -> dict[TopicPlace, StreamBatch]:
        """All that was collected; it is the caller's from here on."""
        collected, self.intakes = self.intakes, {}
        return collected

    def _take(self, messages: Sequence[Message], claims: Mapping[TopicPlace, Claim]) -> int:
        groups: dict[TopicPlace, list[Message]] = {}
        for message in messages:
            place = (message.topic() or "", message.partition() or 0)
            if (error := message.error()) is not None:
                raise Rejoin(f"Kafka: {error.str()}", where=f"{place[0]}[{place[1]}]")
            group = groups.get(place)
            if group is None:
                group = groups[place] = []
            group.append(message)
        for place, group in groups.items():
            if place in claims:  # else fetched before a rebalance took the partition away
                self.intake(place, claims[place]).take(*group)
        return sum(map(len, messages))
