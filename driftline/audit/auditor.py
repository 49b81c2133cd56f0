"""`driftline verify`: is every record that the topics retain counted exactly once?

It proves `ingest` right or wrong without it: with SQL of its own in one transaction that sees one moment, and
with a consumer of its own (`audit_topic`). What valid means it takes from `contracts`, which defines it; the
duplicate window is the setting. Up to the offsets stored at that moment each retained record must be

- valid and once in the log, with the same content in every column; or
- valid and a repetition: of an earlier accepted record of the same stream with the same identity, of a dead
  letter that came in otherwise, or of an erased user; or
- invalid and once a dead letter;

and each event of the log once in its user's sequence (a relation in both users'), with the same content, and
nothing else there. What a topic no longer retains is counted, and compared with the sequences only; what retention
removed from the log is counted, and what the topic still holds of it serves to recognise repetitions only.

Identities and strings are compared by 64-bit digests: a false answer has a chance of about n^2 / 10^20.
Memory: about 100 bytes an event of the log, and one segment's rows at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
import psycopg
import pyarrow as pa
from numpy.typing import NDArray

from contracts import topics
from driftline.audit import expected_sequences as entries
from driftline.audit.database_reader import one_moment
from driftline.audit.expected_sequences import Entries, Strings
from driftline.audit.findings import AuditReport, Finding, TopicReport
from driftline.audit.settings_check import look_at_beginning, look_at_settings, look_at_unread
from driftline.audit.stream_check import Audited, AuditedSegment, StreamAudit, place
from driftline.audit.topic_reader import Records, TopicReader, version_digest
from runtime import kafka
from runtime.kafka import KafkaConfig

Ints = NDArray[np.int64]
_COPY_ROWS = 50_000

_STREAMS = """
    SELECT stream_id, cluster_id, topic_id, topic, partition, life, next_offset, retired,
           coalesce((SELECT min(first_offset) FROM log_segment g WHERE g.stream_id = s.stream_id), next_offset),
           log_begins
    FROM stream_offset s ORDER BY topic, partition, cluster_id, topic_id, life
"""
_SEGMENTS = """
    SELECT first_offset, next_offset, status, read, accepted, duplicates, dead, suppressed, rows
    FROM log_segment WHERE stream_id = %s ORDER BY first_offset, epoch
"""
_LETTERS = "SELECT position FROM dead_letter WHERE stream_id = %s ORDER BY position"
_ITEMS = "SELECT position, item_id, payload::text FROM item_version WHERE stream_id = %s ORDER BY position"
_REPLAYED = "SELECT origin_stream_id || ':' || origin_position, stream_id, position FROM replayed_letter"
_TOPIC_OF_LETTER = """
    SELECT s.topic FROM dead_letter d JOIN stream_offset s USING (stream_id) WHERE d.stream_id = %s AND d.position = %s
"""
_TRIMMED = "SELECT count(*), coalesce(sum(events), 0)::bigint FROM trimmed_sequence"
_ERASED = "SELECT user_hash FROM suppression"
_KEY = "SELECT suppression_key FROM installation"
_STRINGS = "SELECT id, space, value FROM vocabulary"
_ENTRIES = f"""
    COPY (
        SELECT coalesce(e.stream, -1), coalesce(e.position, -1), coalesce(e.kind, 0::smallint), s.user_id,
               coalesce(e.at, 0), coalesce(e.type, 0), coalesce(e.item, 0), coalesce(e.amount, {entries.NO_AMOUNT}),
               coalesce(e.currency, 0), coalesce(e.other, 0),
               substr(sha256(convert_to(coalesce(e.event_id, ''), 'UTF8')), 1, 8)
        FROM user_segment s
        CROSS JOIN LATERAL unnest(s.stream, s.position, s.kind, s.at, s.type, s.item, s.amount, s.currency, s.other,
                                  s.event_id)
             AS e(stream, position, kind, at, type, item, amount, currency, other, event_id)
    ) TO STDOUT (FORMAT binary)
"""


def audit(postgres_url: str, config: KafkaConfig, *, duplicate_window: int) -> AuditReport:
    """Checks everything. Safe beside running processes: it looks at one moment and writes nothing.

    :param duplicate_window: offsets, as `ingest` is set.
    :raises Trouble: Kafka does not deliver.
    """
    started = time.monotonic()
    report = AuditReport(
        topics={topic: TopicReport(topic=topic) for topic in topics.INPUTS}, duplicate_window=duplicate_window
    )
    with one_moment(postgres_url) as connection:
        reader = TopicReader(config, _secret(connection))
        try:
            described = kafka.describe(config, list(topics.INPUTS))
            look_at_settings(config, described, report.topics)
            Audit(connection, reader, report, described).run()
        finally:
            reader.close()
    report.seconds = time.monotonic() - started
    return report


def first_unexplained(
    postgres_url: str, config: KafkaConfig, stream_id: int, end: int, *, duplicate_window: int
) -> int:
    """The first offset below `end` at which the topic holds another record than was taken in there; or `end`.

    For a topic that lost its end: from there on its records are new.
    """
    report = AuditReport(
        topics={topic: TopicReport(topic=topic) for topic in topics.INPUTS}, duplicate_window=duplicate_window
    )
    with one_moment(postgres_url) as connection:
        reader = TopicReader(config, _secret(connection))
        try:
            run = Audit(connection, reader, report, kafka.describe(config, list(topics.INPUTS)))
            return run.first_unexplained(stream_id, end)
        finally:
            reader.close()


def _secret(connection: psycopg.Connection[tuple[Any, ...]]) -> bytes:
    [(key,)] = connection.execute(_KEY, binary=True).fetchall()
    return bytes(key)


class Audit:
    """One audit over one connection."""

    def __init__(
        self,
        connection: psycopg.Connection[tuple[Any, ...]],
        reader: TopicReader,
        report: AuditReport,
        described: Mapping[str, kafka.TopicDescription],
    ) -> None:
        self._connection = connection
        self._reader = reader
        self._report = report
        self._described = described
        self.window = report.duplicate_window
        """Offsets within which a repetition must be recognised."""
        self._streams = [Audited(**dict(zip(_STREAM_FIELDS, row, strict=True))) for row in self._all(_STREAMS)]
        self._replayed: dict[str, tuple[int, int]] = {
            origin: (stream, at) for origin, stream, at in self._all(_REPLAYED)
        }
        self._topic_of_letter: dict[str, str | None] = {}
        self._erased = frozenset(bytes(row[0]) for row in self._all(_ERASED))
        self._key = _secret(connection)
        self._expected: dict[int, Entries] = {}

    def run(self) -> None:
        """All streams against their topics, then all sequences against the log."""
        for stream in self._streams:
            if stream.topic in self._report.topics:
                StreamAudit(self, stream).run()
                self._beginning(stream)
        self._never_read()
        self._sequences()
        [(self._report.trimmed_users, self._report.trimmed_events)] = self._all(_TRIMMED)

    def first_unexplained(self, stream_id: int, end: int) -> int:
        """See the function of this name."""
        stream = next(stream for stream in self._streams if stream.stream_id == stream_id)
        check = StreamAudit(self, stream, end=end)
        check.run()
        return min(check.unexplained, default=end)

    # -- what a stream's audit asks --

    @property
    def streams(self) -> list[Audited]:
        """All streams there ever were."""
        return self._streams

    def topic(self, stream: Audited) -> TopicReport:
        """Where its findings go."""
        return self._report.topics[stream.topic]

    def range(self, stream: Audited) -> tuple[int, int]:
        """Offsets of the stream that its topic still holds; an empty range where the topic is another today."""
        now = self._described[stream.topic]
        if (now.cluster_id, now.topic_id) != (stream.cluster_id, stream.topic_id) or stream.partition >= now.partitions:
            return 0, 0
        low, high = self._reader.low_high(stream.topic, stream.partition)
        if not stream.retired:
            self._report.topics[stream.topic].not_yet_read += max(0, high - stream.next_offset)
        # A topic that lost its end goes on as another life: from its beginning on, offsets are that one's.
        later = [
            other.begins
            for other in self._streams
            if (other.topic_id, other.partition) == (stream.topic_id, stream.partition) and other.life > stream.life
        ]
        low = max(low, stream.begins) if stream.life > 1 else low
        return low, max(low, min([stream.next_offset, *later]))

    def records(self, stream: Audited, first: int, end: int) -> Iterator[Records]:
        """What the topic holds."""
        return self._reader.read(stream.topic, stream.partition, first, end) if first < end else iter(())

    def segments(self, stream: Audited) -> Iterator[AuditedSegment]:
        """Its log, one after the other."""
        with self._connection.cursor(name=f"segments_{stream.stream_id}") as cursor:
            cursor.itersize = 4
            cursor.execute(_SEGMENTS, (stream.stream_id,))
            for first, end, status, *counts, rows in cursor:
                table = None if rows is None else pa.ipc.open_stream(rows).read_all()
                yield AuditedSegment(first=first, next=end, status=status, counts=tuple(counts), rows=table)

    def letters(self, stream: Audited) -> Ints:
        """Offsets of its dead letters, sorted."""
        return np.array([row[0] for row in self._all(_LETTERS, stream.stream_id)], np.int64)

    def item_versions(self, stream: Audited) -> list[tuple[int, str, int]]:
        """(offset, item, digest of the content)."""
        return [
            (at, item, version_digest(None if text is None else msgspec.json.decode(text)))
            for at, item, text in self._all(_ITEMS, stream.stream_id)
        ]

    def expect(self, stream: Audited, rows: pa.Table) -> None:
        """These rows of the log must stand in sequences."""
        self._expected.setdefault(stream.stream_id, Entries()).add(*entries.expected_entries(stream.topic, rows))

    def is_erased(self, user: str) -> bool:
        """Whether the user's records are no longer accepted."""
        return blake2b(user.encode(), key=self._key, digest_size=32).digest() in self._erased

    @property
    def erases(self) -> bool:
        """Whether anybody was erased."""
        return bool(self._erased)

    def is_letter(self, origin: str, topic: str) -> bool:
        """Whether a dead letter of that id and topic stands in the table."""
        if origin not in self._topic_of_letter:
            found = self._all(_TOPIC_OF_LETTER, *map(int, origin.split(":")))
            self._topic_of_letter[origin] = found[0][0] if found else None
        return self._topic_of_letter[origin] == topic

    def brought_in_by(self, origin: str) -> tuple[int, int] | None:
        """(stream id, offset) of the record that is noted as the one that brought a dead letter in."""
        return self._replayed.get(origin)

    def brought_in(self, stream: Audited) -> dict[int, str]:
        """The same for one stream: offset -> dead letter."""
        return {at: origin for origin, (by, at) in self._replayed.items() if by == stream.stream_id}

    def _beginning(self, stream: Audited) -> None:
        now = self._described[stream.topic]
        if stream.retired or (now.cluster_id, now.topic_id) != (stream.cluster_id, stream.topic_id):
            return
        low, _ = self._reader.low_high(stream.topic, stream.partition)
        gone = look_at_beginning(stream, low, self.topic(stream))
        if gone is not None:
            detail = f"offsets {gone} to {low} were deleted before they were read"
            self.topic(stream).found(Finding.GONE, [place(stream, gone, detail)])

    def _never_read(self) -> None:
        known = {stream.topic for stream in self._streams if not stream.retired}
        for topic in self._report.topics.keys() - known:
            ranges = [self._reader.low_high(topic, n) for n in range(self._described[topic].partitions)]
            self._report.topics[topic].not_yet_read += sum(high - low for low, high in ranges)
            look_at_unread(ranges, self._report.topics[topic])

    # -- sequences --

    def _sequences(self) -> None:
        actual = self._actual()
        known = {stream.stream_id: stream for stream in self._streams}
        for stream_id in sorted(self._expected.keys() | actual.keys()):
            stream = known.get(stream_id)
            if stream is None or stream.topic not in entries.KINDS:
                stream = replace(_NOWHERE, stream_id=stream_id)
            topic = self.topic(stream)
            found, older = actual.pop(stream_id, Entries()).split(stream.kept_from)
            topic.not_in_log += older
            difference = entries.compare(self._expected.pop(stream_id, Entries()), found)
            topic.in_sequences += sum(len(codes) for codes in found.codes)
            for finding, codes in (
                (Finding.NOT_IN_SEQUENCE, difference.missing),
                (Finding.TWICE_IN_SEQUENCE, difference.twice),
                (Finding.EXTRA_IN_SEQUENCE, difference.extra),
                (Finding.WRONG_IN_SEQUENCE, difference.wrong),
            ):
                topic.found(finding, (place(stream, code >> 3, _SIDES.get(code & 7, "")) for code in codes.tolist()))

    def _actual(self) -> dict[int, Entries]:
        """Stream -> what stands in sequences."""
        strings = Strings(self._all(_STRINGS))
        found: dict[int, Entries] = {}
        for wire in self._wire():
            streams = wire["stream"]
            codes, prints = entries.actual_entries(wire, strings)
            for stream_id in np.unique(streams).tolist():
                of = streams == stream_id
                found.setdefault(stream_id, Entries()).add(codes[of], prints[of])
        return found

    def _wire(self) -> Iterator[NDArray[np.void]]:
        with self._connection.cursor() as cursor, cursor.copy(_ENTRIES) as copy:
            parts: list[bytes] = []
            header = entries.WIRE_HEADER
            for data in copy:
                block = bytes(data)
                parts.append(block[header:])
                header = 0
                if len(parts) >= _COPY_ROWS:
                    yield _wire_rows(parts)
                    parts = []
            yield _wire_rows(parts)

    def _all(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._connection.cursor(binary=True) as cursor:
            return cursor.execute(statement.encode(), values or None).fetchall()


_STREAM_FIELDS = (
    "stream_id",
    "cluster_id",
    "topic_id",
    "topic",
    "partition",
    "life",
    "next_offset",
    "retired",
    "begins",
    "kept_from",
)
_NOWHERE = Audited(
    stream_id=-1,
    cluster_id="",
    topic_id="",
    topic=topics.USER,
    partition=-1,
    life=1,
    next_offset=0,
    retired=True,
    begins=0,
    kept_from=0,
)
"""Whose entries belong to no stream of events."""
_SIDES = {3: "actor's side", 4: "counterpart's side"}


def _wire_rows(parts: list[bytes]) -> NDArray[np.void]:
    data = b"".join(parts).removesuffix(entries.WIRE_END)
    return np.frombuffer(data, entries.WIRE)
