"""An owner of streams without Kafka: messages are made here, everything from `StreamBatch` to COMMIT is real."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from confluent_kafka import Message
from sqlalchemy import Connection

from contracts import topics
from contracts.codec import encode
from contracts.origins import origin_header, record_digest
from contracts.records import Record
from storage.dictionary import Dictionary
from storage.engine import mapped_errors, open_engine
from storage.log import offsets
from storage.log.offsets import Advance, Claim, KafkaPartitionId
from storage.privacy import suppression
from streams.ingest.batch_writer import BatchWriter, Part, Written
from streams.ingest.validation import StreamBatch, decoders
from tests.integration.feeding import START_MS, key_of

Place = tuple[str, int]
"""(topic, partition)."""


def message(
    topic: str,
    offset: int,
    record: Record | None = None,
    *,
    key: bytes | None = None,
    value: bytes | None = None,
    at_ms: int = START_MS,
    origins: Sequence[bytes | None] = (),
) -> Message:
    """A message as the consumer gives it.

    :param origins: contents of `driftline-origin` headers.
    """
    if record is not None:
        key, value = key_of(record).encode(), encode(record)
    headers: list[tuple[str, str | bytes | None]] = [(topics.ORIGIN_HEADER, origin) for origin in origins]
    return Message(topic=topic, partition=0, offset=offset, key=key, value=value, headers=headers, timestamp=(1, at_ms))


def stream(topic: str, partition: int = 0) -> KafkaPartitionId:
    """A stream of the one cluster there is."""
    return KafkaPartitionId(topic=topic, partition=partition, topic_id=f"id-{topic}", cluster_id="cluster")


class Owner:
    """Claims streams over a connection of its own and writes batches."""

    def __init__(self, database: str, *places: Place, window: int = 1000) -> None:
        self._engine = open_engine(database, application_name="test-owner", transaction_timeout_s=15)
        self._side = open_engine(database, application_name="test-owner-side", pooled=True)
        self.connection: Connection = self._engine.connect()
        self.vocabulary = Dictionary(self._side)
        self.claims: dict[Place, Claim] = {}
        self.newest_records: dict[str, int | None] = {}
        """What the topic `items` holds now: item -> offset of its newest record, if that is a tombstone."""
        self._window = window
        self._decoders = decoders()
        self.writer = self.claim(*(places or [(topics.USER, 0)]))

    def claim(self, *places: Place) -> BatchWriter:
        """Becomes the owner, as on_assign does."""
        with mapped_errors(), self.connection.begin():
            wanted = [stream(*place) for place in places]
            known = {row.stream for row in offsets.streams(self.connection)}
            offsets.register(self.connection, {each: 0 for each in wanted if each not in known})
            rows = [row for row in offsets.streams(self.connection) if row.stream in wanted]
            claims = offsets.claim(self.connection, rows)
        self.claims = {(claim.stream.topic, claim.stream.partition): claim for claim in claims}
        return BatchWriter(
            self.connection,
            self.vocabulary,
            duplicate_window=self._window,
            look=lambda claim: self.newest_records,
        )

    def part(self, place: Place, messages: Sequence[Message], *, next_offset: int | None = None) -> Part:
        """What a batch takes from a stream: by default up to its last message."""
        claim = self.claims[place]
        intake = StreamBatch(place[0], self._decoders[place[0]], next=claim.next_offset)
        for each in messages:
            intake.take(each)
        move = Advance(claim=claim, first=claim.next_offset, next=next_offset or intake.next)
        return Part(move=move, intake=intake)

    def replay(self, letter: str, topic: str, offset: int, record: Record) -> Message:
        """A message as `dlq replay` has it sent."""
        with self.connection.begin():
            secret = suppression.installation_key(self.connection)
        proof = origin_header(secret, letter, record_digest(topic, key_of(record).encode(), encode(record)))
        return message(topic, offset, record, origins=[proof])

    def write(self, batch: Mapping[Place, Sequence[Message]]) -> list[Written]:
        """One batch; the claims move on once it is committed."""
        return self.write_parts([self.part(place, messages) for place, messages in batch.items()])

    def write_parts(self, parts: Sequence[Part]) -> list[Written]:
        """One batch of ready parts."""
        with mapped_errors():
            written = self.writer.write(parts)
        for part in parts:
            claim = part.move.claim
            moved = Claim(
                stream_id=claim.stream_id,
                stream=claim.stream,
                epoch=claim.epoch,
                next_offset=part.move.next,
                suppression_version=claim.suppression_version,
            )
            self.claims[claim.stream.topic, claim.stream.partition] = moved
        return written

    def write_events(self, *records: Record, topic: str = topics.USER) -> Written:
        """One batch of one stream, one record an offset."""
        at = self.claims[topic, 0].next_offset
        [written] = self.write({(topic, 0): [message(topic, at + n, record) for n, record in enumerate(records)]})
        return written

    def close(self) -> None:
        """Drops the connections."""
        self.connection.invalidate()
        self.connection.close()
        self._side.dispose()


MakeOwner = Callable[..., Owner]
"""(*places, window=...) -> Owner; see the fixture `owner`."""


@contextmanager
def owners(database: str) -> Iterator[MakeOwner]:
    """Makes owners of one database and closes them."""
    with ExitStack() as opened:

        def make(*places: Place, window: int = 1000) -> Owner:
            made = Owner(database, *places, window=window)
            opened.callback(made.close)
            return made

        yield make
