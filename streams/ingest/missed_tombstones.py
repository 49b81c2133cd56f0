"""Items that were deleted while nobody read on (protocol, rule 9).

A compacted topic keeps a tombstone for `delete.retention.ms` after it compacted it for the first time, and then
forgets it. Who reads on later meets a gap in the offsets, nothing more, and would take the item for alive. So at the
first gap after a claim the whole topic is read once: an item that is alive here and has no record there was deleted,
and its tombstone stood at one of the offsets that are missing from there on. It is ended at such an offset, in the
transaction of the batch that covers it. Neither the broker's settings nor a clock decide anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from time import monotonic

import pyarrow as pa
import structlog
from confluent_kafka import TopicPartition
from sqlalchemy import Connection

from runtime import kafka
from runtime.kafka import KafkaConfig
from storage import items
from storage.items import NewVersion
from storage.log.offsets import Advance, Claim
from streams.ingest.collector import Rejoin
from streams.ingest.validation import StreamBatch

Look = Callable[[Claim], Mapping[str, int | None]]
"""Items of which a stream's topic holds a record now -> offset of the newest, if that is a tombstone; else None."""

SILENCE_S = 30.0
"""How long the broker may give nothing before its end is reached."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Missed:
    """What a look showed, and is not yet written. Times are those of the items' newest versions."""

    gone: dict[str, datetime]
    """Items alive here without a record there."""
    tombstones: dict[int, tuple[str, datetime]]
    """Offset -> item: there still, but perhaps no more when they would be read."""


class MissedTombstones:
    """Ends items whose tombstones are gone; its memory lives as long as the claims."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._missed: dict[int, _Missed] = {}

    def look(self, connection: Connection, move: Advance, intake: StreamBatch) -> None:
        """Reads the topic, if this is the claim's first batch with a gap: ahead of the batch's transaction."""
        claim = move.claim
        if claim.stream_id in self._missed or move.next - move.first == intake.read:
            return
        with connection.begin():
            alive = items.alive(connection, claim.stream_id)
        there = self._look(claim) if alive else {}
        tombstones = ((offset, item) for item, offset in there.items() if offset is not None and item in alive)
        self._missed[claim.stream_id] = missed = _Missed(
            gone={item: at for item, at in alive.items() if item not in there},
            tombstones={offset: (item, alive[item]) for offset, item in tombstones if offset >= move.first},
        )
        if missed.gone:
            _log.warning("ingest.items_vanished", stream=str(claim.stream), items=len(missed.gone))

    def ended(self, move: Advance, intake: StreamBatch, rows: pa.Table) -> list[NewVersion]:
        """Deletions at offsets of this batch where the topic holds no record any more, in the order of offsets."""
        missed = self._missed.get(move.claim.stream_id)
        if missed is None or not (missed.gone or missed.tombstones):
            return []
        for item in rows["item"].to_pylist():
            missed.gone.pop(item, None)  # it lives again
        read = {*rows["offset"].to_pylist(), *(refusal.offset for refusal in intake.refused)}
        passed = [offset for offset in missed.tombstones if offset < move.next]
        ended = {offset: missed.tombstones.pop(offset) for offset in passed}
        ended = {offset: version for offset, version in ended.items() if offset not in read}
        free = (offset for offset in range(move.first, move.next) if offset not in read and offset not in ended)
        for offset, item in zip(free, list(missed.gone), strict=False):
            ended[offset] = item, missed.gone.pop(item)
        return [
            NewVersion(claim=move.claim, offset=offset, item_id=item, record_at=at, payload=None)
            for offset, (item, at) in sorted(ended.items())
        ]


def newest_records(config: KafkaConfig, claim: Claim, *, group: str) -> dict[str, int | None]:
    """A `Look`: reads a partition from its start to the end it has now.

    :param group: for the broker's access rules; nothing is joined or committed.
    :raises Rejoin: Kafka gave an error, or nothing for `SILENCE_S`.
    """
    place = TopicPartition(config.physical(claim.stream.topic), claim.stream.partition)
    reader = kafka.consumer(config, group=group)
    try:
        low, high = kafka.low_high(reader, place.topic, place.partition)
        place.offset = low
        reader.assign([place])
        found: dict[str, int | None] = {}
        heard_at, at = monotonic(), low
        while at < high:
            messages = reader.consume(2000, 0.5)
            for message in messages:
                if (error := message.error()) is not None:
                    raise Rejoin(f"Kafka: {error.str()}", where=str(claim.stream))
                try:
                    item = (message.key() or b"").decode()
                except UnicodeDecodeError:
                    continue  # of no item: replaced characters could spell another's id
                found[item] = message.offset() if message.value() is None else None
            at = max(at, reader.position([place])[0].offset)
            if messages:
                heard_at = monotonic()
            elif monotonic() - heard_at > SILENCE_S:
                raise Rejoin(f"nothing came for {SILENCE_S:.0f} s at offset {at} of {high}", where=str(claim.stream))
        return found
    finally:
        reader.close()
