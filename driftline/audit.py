"""`driftline verify`: is every record that the topics retain counted exactly once?

It proves `ingest` right or wrong without it: with SQL of its own in one transaction that sees one moment, and
with a consumer of its own (`audit_topic`). What valid means it takes from `contracts`, which defines it; the
duplicate window is the setting. Up to the offsets stored at that moment each retained record must be

- valid and once in the log, with the same content in every column; or
- valid and a repetition: of an earlier accepted record of the same stream with the same identity, of a dead
  letter that came in otherwise, or of an erased user; or
- invalid and once a dead letter;

and each event of the log once in its user's sequence (a relation in both users'), with the same content, and
nothing else there. What a topic no longer retains is counted, and compared with the sequences only.

Identities and strings are compared by 64-bit digests: a false answer has a chance of about n^2 / 10^20.
Memory: about 100 bytes an event of the log, and one segment's rows at a time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
import psycopg
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import make_url

from contracts import topics
from contracts.identity import event_key
from driftline import audit_sequences as entries
from driftline.audit_findings import Finding, Place, Report, TopicReport
from driftline.audit_sequences import Entries, Strings
from driftline.audit_topic import Records, TopicReader, concat, version_digest
from runtime import kafka
from runtime.kafka import KafkaConfig

Ints = NDArray[np.int64]
_NONE: Ints = np.empty(0, np.int64)
_COPY_ROWS = 50_000

_STREAMS = """
    SELECT stream_id, cluster_id, topic_id, topic, partition, life, next_offset, retired,
           coalesce((SELECT min(first_offset) FROM log_segment g WHERE g.stream_id = s.stream_id), next_offset)
    FROM stream_offset s ORDER BY topic, partition, cluster_id, topic_id, life
"""
_SEGMENTS = """
    SELECT first_offset, next_offset, status, read, accepted, duplicates, dead, suppressed, rows
    FROM log_segment WHERE stream_id = %s ORDER BY first_offset, epoch
"""
_LETTERS = "SELECT position FROM dead_letter WHERE stream_id = %s ORDER BY position"
_ITEMS = "SELECT position, item_id, payload::text FROM item_version WHERE stream_id = %s ORDER BY position"
_REPLAYED = "SELECT origin_stream_id || ':' || origin_position, stream_id, position FROM replayed_letter"
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


@dataclass(frozen=True, kw_only=True)
class Audited:
    """A stream to audit."""

    stream_id: int
    cluster_id: str
    topic_id: str
    topic: str
    partition: int
    life: int
    next_offset: int
    retired: bool
    begins: int
    """Where its log begins."""


@dataclass(frozen=True, kw_only=True)
class _Segment:
    first: int
    next: int
    status: str
    counts: tuple[int, int, int, int, int]
    """read, accepted, duplicates, dead, suppressed"""
    rows: pa.Table | None


def audit(postgres_url: str, config: KafkaConfig, *, duplicate_window: int) -> Report:
    """Checks everything. Safe beside running processes: it looks at one moment and writes nothing.

    :param duplicate_window: offsets, as `ingest` is set.
    :raises Trouble: Kafka does not deliver.
    """
    started = time.monotonic()
    report = Report(
        topics={topic: TopicReport(topic=topic) for topic in topics.INPUTS}, duplicate_window=duplicate_window
    )
    with _one_moment(postgres_url) as connection:
        reader = TopicReader(config)
        try:
            Audit(connection, reader, report, kafka.describe(config, list(topics.INPUTS))).run()
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
    report = Report(
        topics={topic: TopicReport(topic=topic) for topic in topics.INPUTS}, duplicate_window=duplicate_window
    )
    with _one_moment(postgres_url) as connection:
        reader = TopicReader(config)
        try:
            run = Audit(connection, reader, report, kafka.describe(config, list(topics.INPUTS)))
            return run.first_unexplained(stream_id, end)
        finally:
            reader.close()


def _one_moment(url: str) -> psycopg.Connection[tuple[Any, ...]]:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = psycopg.connect(plain, application_name="driftline-verify", connect_timeout=5)
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    return connection


class Audit:
    """One audit over one connection."""

    def __init__(
        self,
        connection: psycopg.Connection[tuple[Any, ...]],
        reader: TopicReader,
        report: Report,
        described: Mapping[str, kafka.TopicDescription],
    ) -> None:
        self._connection = connection
        self._reader = reader
        self._report = report
        self._described = described
        self._window = report.duplicate_window
        self._streams = [Audited(**dict(zip(_STREAM_FIELDS, row, strict=True))) for row in self._all(_STREAMS)]
        self._replayed = {origin: (stream, at) for origin, stream, at in self._all(_REPLAYED)}
        self._erased = frozenset(bytes(row[0]) for row in self._all(_ERASED))
        self._key = bytes(self._all(_KEY)[0][0])
        self._brought_in: Counter[str] = Counter()
        self._expected: dict[int, Entries] = {}

    def run(self) -> None:
        """All streams against their topics, then all sequences against the log."""
        for stream in self._streams:
            if stream.topic in self._report.topics:
                StreamAudit(self, stream).run()
        self._never_read()
        self._sequences()

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

    def segments(self, stream: Audited) -> Iterator[_Segment]:
        """Its log, one after the other."""
        with self._connection.cursor(name=f"segments_{stream.stream_id}") as cursor:
            cursor.itersize = 4
            cursor.execute(_SEGMENTS, (stream.stream_id,))
            for first, end, status, *counts, rows in cursor:
                table = None if rows is None else pa.ipc.open_stream(rows).read_all()
                yield _Segment(first=first, next=end, status=status, counts=tuple(counts), rows=table)

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

    def came_in_otherwise(self, origin: str, stream: Audited, offset: int) -> bool:
        """Whether another record brought a dead letter in."""
        by = self._replayed.get(origin)
        return by is not None and by != (stream.stream_id, offset)

    def brings_in(self, origin: str) -> bool:
        """Notes an accepted repetition of a dead letter; False = the letter was brought in already."""
        self._brought_in[origin] += 1
        return self._brought_in[origin] == 1 or origin not in self._replayed

    def _never_read(self) -> None:
        known = {stream.topic for stream in self._streams if not stream.retired}
        for topic in self._report.topics.keys() - known:
            for partition in range(self._described[topic].partitions):
                low, high = self._reader.low_high(topic, partition)
                self._report.topics[topic].not_yet_read += high - low

    # -- sequences --

    def _sequences(self) -> None:
        actual = self._actual()
        known = {stream.stream_id: stream for stream in self._streams}
        for stream_id in sorted(self._expected.keys() | actual.keys()):
            stream = known.get(stream_id)
            if stream is None or stream.topic not in entries.KINDS:
                stream = replace(_NOWHERE, stream_id=stream_id)
            topic = self.topic(stream)
            difference = entries.compare(
                self._expected.pop(stream_id, Entries()), found := actual.pop(stream_id, Entries())
            )
            topic.in_sequences += sum(len(codes) for codes in found.codes)
            for finding, codes in (
                (Finding.NOT_IN_SEQUENCE, difference.missing),
                (Finding.TWICE_IN_SEQUENCE, difference.twice),
                (Finding.EXTRA_IN_SEQUENCE, difference.extra),
                (Finding.WRONG_IN_SEQUENCE, difference.wrong),
            ):
                topic.found(finding, (_place(stream, code >> 3, _SIDES.get(code & 7, "")) for code in codes.tolist()))

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


class StreamAudit:
    """One stream against its topic.

    :param end: audit up to here instead of to the stored offset.
    """

    def __init__(self, audit: Audit, stream: Audited, *, end: int | None = None) -> None:
        self._audit = audit
        self._stream = stream
        self._topic = audit.topic(stream)
        self._compacted = stream.topic == topics.ITEMS  # where a record may be gone though later ones are there
        self._low, self._end = audit.range(stream)
        if end is not None:
            self._end = max(self._low, min(self._end, end))
        self._letters = audit.letters(stream)
        self._accepted: list[tuple[Ints, Ints]] = []
        """(digests, offsets) of what the log holds."""
        self._open: list[tuple[Ints, Ints, pa.Table]] = []
        """(digests, offsets, rows) of valid records that the log does not hold."""
        self._origins: dict[int, str] = {}
        self._versions: list[tuple[int, str, int | None]] = []
        self.unexplained: list[int] = []
        """Offsets at which the topic holds something that was not taken in there."""

    def run(self) -> None:
        """Reads topic and log side by side."""
        self._check_letters_twice()
        ahead = _Ahead(self._audit.records(self._stream, self._low, self._end), self._stream.topic)
        at, segment = self._low if self._low < self._end else None, None
        for segment in self._audit.segments(self._stream):
            if at is not None and at < segment.first:
                self._uncovered(ahead.until(min(segment.first, self._end)))
            self._segment(segment, ahead.until(min(segment.next, self._end)))
            at = max(at or 0, segment.next)
            self._chained(segment)
        if at is not None and at < self._end:
            self._uncovered(ahead.until(self._end))
        self._ends_at(segment)
        self._resolve()
        self._check_letters_extra(ahead)
        if self._compacted:
            self._check_versions()

    # -- the log --

    def _segment(self, segment: _Segment, records: Records) -> None:
        topic, rows = self._topic, segment.rows
        topic.read += len(records.offsets)
        if segment.status == "lost":
            topic.given_up += segment.next - segment.first
        if rows is None:
            rows = records.valid.slice(0, 0)
        at = rows["offset"].to_numpy()
        if len(outside := at[(at < segment.first) | (at >= segment.next)]):
            self._find(Finding.EXTRA, outside, "outside its segment's offsets")
        retained = (at >= self._low) & (at < self._end)
        digests = self._digests(rows, records)
        self._accepted.append((digests, at))
        if self._stream.topic in entries.KINDS and len(at):
            self._audit.expect(self._stream, rows)
        if self._compacted:
            known = dict(zip(records.valid_offsets.tolist(), records.digests.tolist(), strict=True))
            self._versions += [
                (offset, item, known.get(offset))
                for offset, item in zip(at.tolist(), rows["item"].to_pylist(), strict=True)
            ]
        open_before = len(self._open)
        self._match(rows, at, retained, records)
        self._check_counts(segment, records, rows, opened=open_before < len(self._open))

    def _match(self, rows: pa.Table, at: Ints, retained: NDArray[np.bool_], records: Records) -> None:
        topic, valid_at = self._topic, records.valid_offsets
        here = at[retained]
        both, in_log, in_topic = np.intersect1d(here, valid_at, return_indices=True)
        same = _same_rows(
            rows.filter(pa.array(retained)).take(pa.array(in_log)), records.valid.take(pa.array(in_topic))
        )
        self._find(Finding.WRONG, both[~same], "the log says something else", unexplained=True)
        topic.accepted += int(same.sum())
        gone = np.setdiff1d(here, valid_at)
        if self._compacted:
            invalid_yet_accepted = np.intersect1d(gone, records.offsets)
            topic.not_retained += len(gone) - len(invalid_yet_accepted)
            gone = invalid_yet_accepted
        self._find(Finding.EXTRA, gone, "in the log, though the topic holds no valid record there", unexplained=True)
        topic.not_retained += int((~retained).sum())
        absent = ~np.isin(valid_at, both)
        if absent.any():
            self._open.append((records.digests[absent], valid_at[absent], records.valid.filter(pa.array(absent))))
        self._origins |= records.origins
        self._check_invalid(records)

    def _check_invalid(self, records: Records) -> None:
        invalid = records.invalid_offsets
        is_letter = np.isin(invalid, self._letters)
        self._topic.dead += int(is_letter.sum())
        self._find(Finding.LOST, invalid[~is_letter], "an invalid record without its dead letter", unexplained=True)
        wrong = np.intersect1d(records.valid_offsets, self._letters)
        self._find(Finding.EXTRA, wrong, "a dead letter, though the record is valid", unexplained=True)

    def _uncovered(self, records: Records) -> None:
        """Offsets that no segment covers."""
        self._topic.read += len(records.offsets)
        nothing = records.valid.slice(0, 0)
        self._match(nothing, _NONE, np.empty(0, bool), records)

    def _digests(self, rows: pa.Table, records: Records) -> Ints:
        """Identities of log rows: as the topic has them where it does, else computed."""
        if self._compacted:
            return np.zeros(rows.num_rows, np.int64)
        at, valid_at = rows["offset"].to_numpy(), records.valid_offsets
        if len(valid_at) >= len(at):
            index = np.searchsorted(valid_at, at)
            index[index == len(valid_at)] = 0
            if len(at) and (valid_at[index] == at).all():
                # Where the content differs the row is wrong already; its identity no longer matters.
                known: Ints = records.digests[index]
                return known
        pairs = zip(rows["user"].to_pylist(), rows["event_id"].to_pylist(), strict=True)
        return np.fromiter((event_key(self._stream.topic, user, event) for user, event in pairs), np.int64, len(at))

    # -- duplicates, erased users, replayed letters --

    def _resolve(self) -> None:
        digests, at = _joined(self._accepted)
        order = np.lexsort((at, digests))
        digests, at = digests[order], at[order]
        doubled = at[1:][at[1:] == at[:-1]] if self._compacted else self._doubled(digests, at)
        self._find(Finding.TWICE, doubled, "accepted more than once")
        for wanted, offsets, rows in self._open:
            first = np.searchsorted(digests, wanted)
            first[first == len(digests)] = 0
            earlier = (
                (digests[first] == wanted) & (at[first] < offsets) if len(digests) else np.zeros(len(offsets), bool)
            )
            if self._compacted:
                earlier[:] = False
            self._topic.duplicates += int(earlier.sum())
            for index in np.flatnonzero(~earlier).tolist():
                self._excuse(int(offsets[index]), rows.slice(index, 1).to_pylist()[0])
        self._check_origins(set(at.tolist()) if self._origins else set())

    def _doubled(self, digests: Ints, at: Ints) -> Ints:
        again = digests[1:] == digests[:-1]
        near = at[1:] - at[:-1] <= self._audit._window
        self._topic.beyond_window += int((again & ~near).sum())
        doubled: Ints = at[1:][again & near]
        return doubled

    def _excuse(self, offset: int, row: dict[str, Any]) -> None:
        origin = self._origins.get(offset)
        if origin is not None and self._audit.came_in_otherwise(origin, self._stream, offset):
            self._topic.duplicates += 1
        elif self._audit.erases and any(
            self._audit.is_erased(user) for user in (row.get("user"), row.get("other")) if user
        ):
            self._topic.suppressed += 1
        else:
            self._find(Finding.LOST, [offset], "a valid record that the log does not hold", unexplained=True)

    def _check_origins(self, accepted: set[int]) -> None:
        for offset, origin in self._origins.items():
            if offset in accepted and not self._audit.brings_in(origin):
                self._find(Finding.TWICE, [offset], f"dead letter {origin} came in before")

    # -- chain, counts, dead letters, versions --

    def _chained(self, segment: _Segment) -> None:
        before = getattr(self, "_chain_at", segment.first)
        if segment.first != before:
            what = "missing" if segment.first > before else "covered twice"
            self._find(Finding.CHAIN, [min(before, segment.first)], f"offsets {before} to {segment.first} are {what}")
        self._chain_at = segment.next

    def _ends_at(self, last: _Segment | None) -> None:
        stored = self._stream.next_offset
        if last is None:
            if self._low < self._end:
                self._find(Finding.CHAIN, [self._low], f"no segment covers offsets {self._low} to {self._end}")
        elif last.next != stored:
            self._find(Finding.CHAIN, [last.next], f"the log ends at {last.next}, the stored offset is {stored}")

    def _check_counts(self, segment: _Segment, records: Records, rows: pa.Table, *, opened: bool) -> None:
        read, accepted, duplicates, dead, suppressed = segment.counts
        found = [f"accepted {accepted}, its rows are {rows.num_rows}"] if accepted != rows.num_rows else []
        whole = self._low <= segment.first and segment.next <= self._end and not self._compacted
        if whole and read != len(records.offsets):
            found.append(f"read {read}, the topic holds {len(records.offsets)}")
        if whole and dead != len(records.invalid_offsets):
            found.append(f"dead {dead}, the topic holds {len(records.invalid_offsets)} invalid records")
        if whole and (duplicates + suppressed > 0) != opened:
            found.append(f"duplicates {duplicates} and suppressed {suppressed} are not what the topic holds")
        for detail in found:
            self._find(Finding.COUNTS, [segment.first], detail)

    def _check_letters_twice(self) -> None:
        self._find(Finding.TWICE, self._letters[1:][self._letters[1:] == self._letters[:-1]], "a dead letter twice")
        self._letters = np.unique(self._letters)

    def _check_letters_extra(self, ahead: _Ahead) -> None:
        inside = (self._letters >= self._low) & (self._letters < self._end)
        self._topic.not_retained += int((~inside).sum())
        absent = np.setdiff1d(self._letters[inside], ahead.seen())
        if self._compacted:
            self._topic.not_retained += len(absent)
        else:
            self._find(Finding.EXTRA, absent, "a dead letter, though the topic holds no record there", unexplained=True)

    def _check_versions(self) -> None:
        wanted = {offset: (item, digest) for offset, item, digest in self._versions}
        found = Counter[int]()
        for offset, item, digest in self._audit.item_versions(self._stream):
            found[offset] += 1
            self._topic.in_sequences += 1
            known = wanted.get(offset)
            if known is None:
                self._find(Finding.EXTRA_IN_SEQUENCE, [offset], "an item version that the log does not hold")
            elif known[0] != item or (known[1] is not None and known[1] != digest):
                self._find(Finding.WRONG_IN_SEQUENCE, [offset], "an item version says something else")
        self._find(Finding.NOT_IN_SEQUENCE, sorted(wanted.keys() - found.keys()), "no such item version")
        self._find(Finding.TWICE_IN_SEQUENCE, [at for at, n in found.items() if n > 1], "an item version twice")

    def _find(self, finding: Finding, offsets: Any, detail: str, *, unexplained: bool = False) -> None:
        at = [int(offset) for offset in offsets]
        self._topic.found(finding, (_place(self._stream, offset, detail) for offset in at))
        if unexplained:
            self.unexplained += at


@dataclass
class _Ahead:
    """Records as they come, handed out up to an offset."""

    coming: Iterator[Records]
    topic: str
    _left: list[Records] = field(default_factory=list)
    _offsets: list[Ints] = field(default_factory=list)

    def until(self, end: int) -> Records:
        """All below `end` that were not handed out."""
        while not (self._left and self._left[-1].offsets[-1] >= end):
            part = next(self.coming, None)
            if part is None:
                break
            if len(part.offsets):
                self._left.append(part)
                self._offsets.append(part.offsets)
        whole = concat(self._left, self.topic)
        split = int(whole.offsets[-1]) + 1 if len(whole.offsets) else end
        self._left = [rest] if len((rest := whole.between(end, max(end, split))).offsets) else []
        return whole.between(min(int(whole.offsets[0]), end) if len(whole.offsets) else end, end)

    def seen(self) -> Ints:
        """Offsets of everything that came."""
        return np.concatenate(self._offsets) if self._offsets else _NONE


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
)
"""Whose entries belong to no stream of events."""
_SIDES = {3: "actor's side", 4: "counterpart's side"}


def _place(stream: Audited, offset: int, detail: str) -> Place:
    return Place(
        topic=stream.topic, partition=stream.partition, offset=offset, stream_id=stream.stream_id, detail=detail
    )


def _joined(parts: list[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    if not parts:
        return _NONE, _NONE
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _same_rows(log: pa.Table, topic: pa.Table) -> NDArray[np.bool_]:
    """Row by row, whether two tables say the same; a column the topic's records do not have must be null."""
    same = np.ones(log.num_rows, bool)
    for name in log.column_names:
        ours = log[name].combine_chunks()
        if name not in topic.column_names:
            same &= ours.is_null().to_numpy(zero_copy_only=False)
            continue
        theirs = topic[name].combine_chunks()
        if not ours.equals(theirs):
            equal = pa.compute.equal(ours, theirs).fill_null(False)
            both_null = pa.compute.and_(ours.is_null(), theirs.is_null())
            same &= pa.compute.or_(equal, both_null).to_numpy(zero_copy_only=False)
    return same


def _wire_rows(parts: list[bytes]) -> NDArray[np.void]:
    data = b"".join(parts).removesuffix(entries.WIRE_END)
    return np.frombuffer(data, entries.WIRE)
