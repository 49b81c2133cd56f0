"""One stream's log, dead letters and item versions against what its topic holds, offset by offset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from contracts import topics
from contracts.identity import event_key
from driftline.audit import expected_sequences as entries
from driftline.audit.findings import Finding, FindingPlace, TopicReport
from driftline.audit.topic_reader import Records, concat

Ints = NDArray[np.int64]
_NONE: Ints = np.empty(0, np.int64)


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
    kept_from: int
    """Retention removed the log below."""


@dataclass(frozen=True, kw_only=True)
class AuditedSegment:
    first: int
    next: int
    status: str
    counts: tuple[int, int, int, int, int]
    """read, accepted, duplicates, dead, suppressed"""
    rows: pa.Table | None


class Evidence(Protocol):
    """What a stream's audit asks of the database, of the topic and of the other streams' audits."""

    window: int

    def topic(self, stream: Audited) -> TopicReport: ...
    def range(self, stream: Audited) -> tuple[int, int]: ...
    def records(self, stream: Audited, first: int, end: int) -> Iterator[Records]: ...
    def segments(self, stream: Audited) -> Iterator[AuditedSegment]: ...
    def letters(self, stream: Audited) -> Ints: ...
    def item_versions(self, stream: Audited) -> list[tuple[int, str, int]]: ...
    def expect(self, stream: Audited, rows: pa.Table) -> None: ...
    def is_erased(self, user: str) -> bool: ...
    @property
    def erases(self) -> bool: ...
    def is_letter(self, origin: str, topic: str) -> bool: ...
    def brought_in_by(self, origin: str) -> tuple[int, int] | None: ...
    def brought_in(self, stream: Audited) -> dict[int, str]: ...


class StreamAudit:
    """One stream against its topic.

    :param end: audit up to here instead of to the stored offset.
    """

    def __init__(self, audit: Evidence, stream: Audited, *, end: int | None = None) -> None:
        self._audit = audit
        self._stream = stream
        self._topic = audit.topic(stream)
        self._compacted = stream.topic == topics.ITEMS  # where a record may be gone though later ones are there
        self._low, self._end = audit.range(stream)
        self._topic_low = self._low
        if end is not None:
            self._end = max(self._low, min(self._end, end))
        self._letters = audit.letters(stream)
        self._accepted: list[tuple[Ints, Ints]] = []
        """(digests, offsets) of what the log holds."""
        self._before: list[tuple[Ints, Ints]] = []
        """The same of what the topic holds and retention removed."""
        self._open: list[tuple[Ints, Ints, pa.Table]] = []
        """(digests, offsets, rows) of valid records that the log does not hold."""
        self._origins: dict[int, str] = {}
        """Offset of a valid record -> the dead letter that it proves to repeat."""
        self._brought_in = audit.brought_in(stream)
        """Offset -> the dead letter that is noted as brought in by the record there."""
        self._versions: list[tuple[int, str, int | None]] = []
        self._chain_at: int | None = None
        self.unexplained: list[int] = []
        """Offsets at which the topic holds something that was not taken in there."""

    def run(self) -> None:
        """Reads topic and log side by side."""
        self._check_letters_twice()
        ahead = _Ahead(self._audit.records(self._stream, self._low, self._end), self._stream.topic)
        self._trimmed(ahead)
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

    def _trimmed(self, ahead: _Ahead) -> None:
        """Passes over what retention removed; its identities are known, so repetitions of them are no news."""
        kept_from = min(self._stream.kept_from, self._end)
        if kept_from <= self._low:
            return
        records = ahead.until(kept_from)
        self._topic.read += len(records.offsets)
        self._topic.trimmed += len(records.offsets)
        self._before.append((records.digests, records.valid_offsets))
        self._low = kept_from

    def _segment(self, segment: AuditedSegment, records: Records) -> None:
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
        self._take_headers(records)
        self._check_invalid(records)

    def _take_headers(self, records: Records) -> None:
        headers = records.headers
        for offset, origin in headers.origins.items():
            if self._audit.is_letter(origin, self._stream.topic):
                self._origins[offset] = origin
            else:
                self._topic.ignored_origins += 1
        self._topic.ignored_origins += len(headers.unproven)
        self._topic.unreadable_headers += len(headers.unreadable)

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
        digests, at = _by_identity(self._accepted)
        doubled = at[1:][at[1:] == at[:-1]] if self._compacted else self._doubled(digests, at)
        self._find(Finding.TWICE, doubled, "accepted more than once")
        digests, at = _by_identity(self._accepted + self._before)
        for wanted, offsets, rows in self._open:
            first = np.searchsorted(digests, wanted)
            first[first == len(digests)] = 0
            earlier = (
                (digests[first] == wanted) & (at[first] < offsets) if len(digests) else np.zeros(len(offsets), bool)
            )
            if self._compacted:
                earlier[:] = False
            self._topic.duplicates += int(earlier.sum())
            self._brought_nothing_in(offsets[earlier].tolist())
            for index in np.flatnonzero(~earlier).tolist():
                self._excuse(int(offsets[index]), rows.slice(index, 1).to_pylist()[0])
        self._check_origins()

    def _doubled(self, digests: Ints, at: Ints) -> Ints:
        again = digests[1:] == digests[:-1]
        near = at[1:] - at[:-1] <= self._audit.window
        self._topic.beyond_window += int((again & ~near).sum())
        doubled: Ints = at[1:][again & near]
        return doubled

    def _excuse(self, offset: int, row: dict[str, Any]) -> None:
        here, origin = (self._stream.stream_id, offset), self._origins.get(offset)
        if origin is not None and self._audit.brought_in_by(origin) not in (None, here):
            self._topic.duplicates += 1
            self._brought_nothing_in([offset])
        elif self._audit.erases and any(
            self._audit.is_erased(user) for user in (row.get("user"), row.get("other")) if user
        ):
            self._topic.suppressed += 1
        elif self._may_repeat_what_is_gone(offset):
            self._topic.unproven += 1
        else:
            self._find(Finding.LOST, [offset], "a valid record that the log does not hold", unexplained=True)

    def _may_repeat_what_is_gone(self, offset: int) -> bool:
        """Whether it may repeat a record within the window that neither log nor topic holds any more."""
        gone_below = min(self._stream.kept_from, self._topic_low)
        return bool(self._stream.kept_from) and offset - self._audit.window < gone_below

    def _check_origins(self) -> None:
        """An accepted replay is the one that brought its dead letter in. (Items are versions: none repeats another.)"""
        if not self._origins or self._compacted:
            return
        accepted = set(_joined(self._accepted)[1].tolist())
        for offset, origin in self._origins.items():
            by = self._audit.brought_in_by(origin)
            if offset in accepted and by != (self._stream.stream_id, offset):
                said = "is not noted as come in" if by is None else "came in by another record"
                self._find(Finding.TWICE, [offset], f"accepted, though dead letter {origin} {said}")

    def _brought_nothing_in(self, duplicates: list[int]) -> None:
        for offset in duplicates:
            if (origin := self._brought_in.get(offset)) is not None:
                self._find(Finding.EXTRA, [offset], f"a duplicate is noted as what brought dead letter {origin} in")

    # -- chain, counts, dead letters, versions --

    def _chained(self, segment: AuditedSegment) -> None:
        before = segment.first if self._chain_at is None else self._chain_at
        if segment.first != before:
            what = "missing" if segment.first > before else "covered twice"
            self._find(Finding.CHAIN, [min(before, segment.first)], f"offsets {before} to {segment.first} are {what}")
        self._chain_at = segment.next

    def _ends_at(self, last: AuditedSegment | None) -> None:
        stored = self._stream.next_offset
        if last is None:
            if self._low < self._end:
                self._find(Finding.CHAIN, [self._low], f"no segment covers offsets {self._low} to {self._end}")
        elif last.next != stored:
            self._find(Finding.CHAIN, [last.next], f"the log ends at {last.next}, the stored offset is {stored}")

    def _check_counts(self, segment: AuditedSegment, records: Records, rows: pa.Table, *, opened: bool) -> None:
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
            if offset < self._stream.kept_from:
                self._topic.not_in_log += 1
                continue
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
        self._topic.found(finding, (place(self._stream, offset, detail) for offset in at))
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


def place(stream: Audited, offset: int, detail: str) -> FindingPlace:
    """Where something was found in a stream."""
    return FindingPlace(
        topic=stream.topic, partition=stream.partition, offset=offset, stream_id=stream.stream_id, detail=detail
    )


def _joined(parts: list[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    if not parts:
        return _NONE, _NONE
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _by_identity(parts: list[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    digests, at = _joined(parts)
    order = np.lexsort((at, digests))
    return digests[order], at[order]


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
            equal = pc.equal(ours, theirs).fill_null(False)
            both_null = pc.and_(ours.is_null(), theirs.is_null())
            same &= pc.or_(equal, both_null).to_numpy(zero_copy_only=False)
    return same
