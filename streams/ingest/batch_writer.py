"""What one batch of `ingest` writes, in one transaction: log, sequences, items, dead letters, offsets.

`BatchWriter` also decides what is accepted, since that needs what earlier batches wrote: duplicates are
known from the filter and confirmed by rows, suppressed users from their table (protocol, rules 5 and 10).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import structlog
from numpy.typing import NDArray
from sqlalchemy import Connection

from contracts.clocks import ROWS, far, newest_good
from contracts.codec import MAX_RECORD_MS
from contracts.records import Item, Label
from runtime.failpoints import failpoint
from storage import items
from storage.dictionary import Dictionary, Space
from storage.log import dead_letters, event_log, offsets
from storage.log.offsets import Advance, Claim
from storage.privacy import suppression
from storage.privacy.suppression import Suppression
from storage.sequences import user_sequences
from streams.ingest.deduplication import DuplicateFilter, repeats
from streams.ingest.missed_tombstones import Look, MissedTombstones
from streams.ingest.replay_proofs import Believed, Replays
from streams.ingest.validation import StreamBatch

_log = structlog.get_logger(__name__)
_NONE: NDArray[np.int64] = np.empty(0, np.int64)
_REBUILD_OFFSETS, _REBUILD_SEGMENTS = 250_000, 2_000
"""What a rebuild of a duplicate filter reads at a time, at most."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a batch takes from one stream."""

    move: Advance
    intake: StreamBatch
    """Empty where a range of offsets held no record."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What became of one part."""

    claim: Claim
    counts: event_log.Counts
    digests: NDArray[np.int64]
    """Identities of the accepted records ..."""
    offsets: NDArray[np.int64]
    """... and their offsets."""
    ignored_origins: int = 0
    """Records whose origin header was not believed: judged as if it were not there."""
    times: NDArray[np.int64]
    """Record times of all accepted records, microseconds."""
    far: tuple[int, ...]
    """Offsets of those that lie far ahead of their stream."""


class BatchWriter:
    """Writes batches over one connection; its memory lives as long as the claims it was made for."""

    def __init__(
        self,
        connection: Connection,
        vocabulary: Dictionary,
        *,
        duplicate_window: int,
        look: Look,
    ) -> None:
        self._connection = connection
        self._vocabulary = vocabulary
        self._suppressed = suppression.NOBODY
        self._window = duplicate_window
        self._filters: dict[int, DuplicateFilter] = {}
        self._last: dict[int, NDArray[np.int64]] = {}
        """Stream -> record times of its last 33 rows in the log, microseconds."""
        self._vanished = MissedTombstones(look)
        self._replays = Replays(connection)
        self._told: set[tuple[str, str]] = set()
        """(topic, what of its headers was told): with each claim once."""

    def write(self, parts: Iterable[Part]) -> list[Written]:
        """One batch, one transaction, judged with whoever is erased by then. Memory learns of it after the commit only.

        :raises Fenced, Unavailable: nothing of it counts, or the outcome is unknown: drop this writer.
        """
        parts = list(parts)
        for part in parts:
            # In short transactions of their own: a million identities a stream would outlast the batch's timeout.
            if part.intake.decoder.record is Item:
                self._vanished.look(self._connection, part.move, part.intake)
            else:
                self._remember(part.move.claim)
            self._remember_times(part.move.claim)
        with self._connection.begin():
            suppression.share(self._connection)
            self._meet_erased(suppression.current(self._connection, self._suppressed))
            written = self._write_rows(parts)
            failpoint("ingest.after_rows")
            offsets.advance(self._connection, [_judged(part.move, self._suppressed) for part in parts])
            failpoint("ingest.before_commit")
        for outcome in written:
            stream_id = outcome.claim.stream_id
            self._last[stream_id] = np.concatenate([self._last[stream_id], outcome.times])[-ROWS:]
            if len(outcome.digests):
                self._filters[outcome.claim.stream_id].extend(outcome.digests, outcome.offsets)
        return written

    def _meet_erased(self, suppressed: Suppression) -> None:
        """None of their rows is taken from now on, so their names do not come back into memory."""
        if suppressed.version != self._suppressed.version:
            self._vocabulary.forget_people()
        self._suppressed = suppressed

    def filter_entries(self, claim: Claim) -> int:
        """How many identities are held for a stream."""
        return len(self._filters.get(claim.stream_id, ()))

    def newest_us(self, claim: Claim, newest_ms: int) -> int:
        """The newest record time of a stream that is not far ahead of its last rows, microseconds.

        :param newest_ms: of the last record of the batch, which need not have been accepted.
        """
        newest = newest_good(np.append(self._last.get(claim.stream_id, _NONE), newest_ms * 1000))
        return newest_ms * 1000 if newest is None else newest

    def _write_rows(self, parts: list[Part]) -> list[Written]:
        written, segments, events = [], [], []
        for part in parts:
            outcome, rows = self._accept(part.intake, part.move.claim)
            versions = _versions(part, rows)
            if part.intake.decoder.record is Item and (ended := self._vanished.ended(part.move, part.intake, rows)):
                versions, rows = [*versions, *ended], _with_ended(rows, ended)
                outcome = replace(outcome, counts=replace(outcome.counts, accepted=rows.num_rows))
            outcome = self._timed(outcome, rows)
            written.append(outcome)
            segments.append(_segment(part, outcome, rows))
            if part.intake.topic in user_sequences.KIND_OF_TOPIC:
                events.append(_events(part, rows))
            items.append(self._connection, versions)
            dead_letters.append(self._connection, _letters(part, self._suppressed))
        user_sequences.append(self._connection, events, self._vocabulary)
        event_log.append(self._connection, segments)
        return written

    # -- what is accepted --

    def _accept(self, intake: StreamBatch, claim: Claim) -> tuple[Written, pa.Table]:
        """The rows that count: not those of suppressed users, and no duplicates."""
        rows, digests = intake.rows(), _NONE
        suppressed = duplicates = 0
        believed = self._replays.believed(intake.topic, intake.origins)
        self._tell_of_headers(intake, believed)
        if intake.decoder.record is not Item:
            rows = _where(rows, ~self._suppressed_rows(rows))
            suppressed = intake.read - len(intake.refused) - rows.num_rows
            digests = event_log.digests(rows, intake.topic)
            duplicate = self._duplicates(intake, rows, digests, claim, believed)
            duplicates = int(duplicate.sum())
            rows, digests = _where(rows, ~duplicate), digests[~duplicate]
        counts = event_log.Counts(
            read=intake.read,
            accepted=rows.num_rows,
            duplicates=duplicates,
            dead=len(intake.refused),
            suppressed=suppressed,
            unknown_fields=intake.unknown_fields,
        )
        at = rows["offset"].to_numpy()
        ignored = len(intake.origins) - len(believed)
        written = Written(
            claim=claim, counts=counts, digests=digests, offsets=at, ignored_origins=ignored, times=_NONE, far=()
        )
        return written, rows

    def _timed(self, outcome: Written, rows: pa.Table) -> Written:
        """With the record times of what was accepted."""
        times = rows["record_at"].cast(pa.int64()).to_numpy()
        ahead = np.flatnonzero(far(self._last.get(outcome.claim.stream_id, _NONE), times))
        return replace(outcome, times=times, far=tuple(rows["offset"].to_numpy()[ahead].tolist()))

    def _suppressed_rows(self, rows: pa.Table) -> NDArray[np.bool_]:
        erased = self._suppressed
        if not erased.hashes:
            return np.zeros(rows.num_rows, bool)
        others = rows["other"].to_pylist() if "other" in rows.column_names else [None] * rows.num_rows
        pairs = zip(rows["user"].to_pylist(), others, strict=True)
        return np.array([user in erased or (other is not None and other in erased) for user, other in pairs], bool)

    def _duplicates(
        self, intake: StreamBatch, rows: pa.Table, digests: NDArray[np.int64], claim: Claim, believed: Believed
    ) -> NDArray[np.bool_]:
        duplicate = np.zeros(len(digests), bool)
        suspects = self._filters[claim.stream_id].suspects(digests)
        hits = np.flatnonzero(suspects >= 0).tolist()
        if hits:
            suspicions = {i: (*_identity(rows, i), int(suspects[i])) for i in hits}
            confirm = self._confirm_labels if intake.decoder.record is Label else self._confirm_events
            duplicate[confirm(suspicions, claim)] = True
        if believed:
            self._replays.drop_known(believed, rows, digests, claim, duplicate)
        # Repeats inside the batch: of records that passed, since one that was dropped brought nothing in.
        passed = np.flatnonzero(~duplicate)
        first = repeats(digests[passed])
        for n in np.flatnonzero(first != np.arange(len(first))).tolist():
            index, earlier = int(passed[n]), int(passed[first[n]])
            duplicate[index] = _identity(rows, earlier) == _identity(rows, index)
        return duplicate

    def _confirm_events(self, suspicions: dict[int, tuple[str, str, int]], claim: Claim) -> list[int]:
        """Those suspicions (index -> key, event id, offset) whose row stands in the user's sequence."""
        users = self._vocabulary.known(Space.USER, [key for key, _, _ in suspicions.values()])
        candidates = {
            index: (users[key], claim.stream_id, offset, event_id)
            for index, (key, event_id, offset) in suspicions.items()
            if key in users
        }
        return sorted(user_sequences.confirmed(self._connection, candidates))

    def _confirm_labels(self, suspicions: dict[int, tuple[str, str, int]], claim: Claim) -> list[int]:
        """The same for labels, which stand in no sequence: by the rows of the log."""
        known = {
            row["offset"]: (row["user"], row["event_id"])
            for table in event_log.covering(self._connection, claim.stream_id, [at for _, _, at in suspicions.values()])
            for row in table.select(["offset", "user", "event_id"]).to_pylist()
        }
        return [i for i, (key, event_id, at) in suspicions.items() if known.get(at) == (key, event_id)]

    def _tell_of_headers(self, intake: StreamBatch, believed: Believed) -> None:
        """What was not believed or not readable, the first time it is met; the metrics count all of it."""
        ignored = len(intake.origins) - len(believed)
        for what, count in (("ignored_origins", ignored), ("unreadable_headers", intake.unreadable_headers)):
            if count and (intake.topic, what) not in self._told:
                self._told.add((intake.topic, what))
                _log.warning(f"ingest.{what}", topic=intake.topic, records=count)

    def _remember_times(self, claim: Claim) -> None:
        """Reads the stream's last record times from the log, once a claim."""
        if claim.stream_id not in self._last:
            with self._connection.begin():
                last = event_log.last_times(self._connection, claim.stream_id, "record_at")
            self._last[claim.stream_id] = np.array(last, np.int64)

    def _remember(self, claim: Claim) -> None:
        """Rebuilds the stream's duplicate filter from the log, once a claim."""
        if claim.stream_id in self._filters:
            return
        made = DuplicateFilter(self._window)
        with self._connection.begin():
            first = event_log.start(self._connection, claim.stream_id)
        start = claim.next_offset if first is None else first
        at, limit = max(claim.next_offset - self._window, start), 8
        while at < claim.next_offset:
            with self._connection.begin():
                segments = list(
                    event_log.read(self._connection, claim.stream_id, at, limit=limit, fields=event_log.IDENTITY)
                )
            if not segments:
                raise event_log.BrokenChain(f"stream {claim.stream_id}: no log segment covers offset {at}")
            at = segments[-1].next
            tables = [segment.rows for segment in segments if segment.rows is not None]
            if tables:
                rows = pa.concat_tables(tables)
                made.extend(event_log.digests(rows, claim.stream.topic), rows["offset"].to_numpy())
            # A quiet stream has many small segments: what counts then is how many are read at a time.
            limit = _segments_at_a_time(segments)
        self._filters[claim.stream_id] = made


def _segments_at_a_time(before: Sequence[event_log.Segment]) -> int:
    """So many of their size that they hold some `_REBUILD_OFFSETS` together."""
    offsets = before[-1].next - before[0].first
    return max(1, min(_REBUILD_SEGMENTS, _REBUILD_OFFSETS * len(before) // max(offsets, 1)))


def _judged(move: Advance, suppressed: Suppression) -> Advance:
    return replace(move, claim=replace(move.claim, suppression_version=suppressed.version))


def _where(rows: pa.Table, chosen: NDArray[np.bool_]) -> pa.Table:
    return rows if chosen.all() else rows.filter(pa.array(chosen)).combine_chunks()


def _identity(rows: pa.Table, index: int) -> tuple[str, str]:
    """Key and event id of a row."""
    return rows["user"][index].as_py(), rows["event_id"][index].as_py()


def _segment(part: Part, outcome: Written, rows: pa.Table) -> event_log.NewSegment:
    return event_log.NewSegment(
        claim=part.move.claim,
        first=part.move.first,
        next=part.move.next,
        counts=outcome.counts,
        rows=rows,
        far=outcome.far,
    )


def _events(part: Part, rows: pa.Table) -> user_sequences.NewEvents:
    return user_sequences.NewEvents(
        claim=part.move.claim,
        first_offset=part.move.first,
        topic_kind=user_sequences.KIND_OF_TOPIC[part.intake.topic],
        rows=rows,
    )


def _letters(part: Part, suppressed: Suppression) -> list[dead_letters.NewLetter]:
    letters = [
        dead_letters.NewLetter(
            claim=part.move.claim,
            offset=refusal.offset,
            record_at=event_log.time_of(min(max(refusal.record_ms, 0), MAX_RECORD_MS) * 1000),
            kept=refusal.kept,
            reason=refusal.reason,
            detail=refusal.detail,
        )
        for refusal in part.intake.refused
    ]
    return [dead_letters.emptied(letter) if letter.names(suppressed) else letter for letter in letters]


def _versions(part: Part, rows: pa.Table) -> list[items.NewVersion]:
    if part.intake.decoder.record is not Item:
        return []
    return [
        items.NewVersion(
            claim=part.move.claim,
            offset=offset,
            item_id=version.item_id,
            record_at=record_at,
            payload=None if version.item is None else _payload(version.item),
        )
        for offset, record_at, version in zip(
            rows["offset"].to_pylist(), rows["record_at"].to_pylist(), part.intake.versions, strict=True
        )
    ]


def _with_ended(rows: pa.Table, ended: list[items.NewVersion]) -> pa.Table:
    """Rows of `items` with deletions at offsets that hold no record any more."""
    columns = {
        "offset": [version.offset for version in ended],
        "record_at": [version.record_at for version in ended],
        "item": [version.item_id for version in ended],
    }
    return pa.concat_tables([rows, pa.table(columns, schema=rows.schema)]).sort_by("offset").combine_chunks()


def _payload(item: Item) -> dict[str, object]:
    return {"title": item.title, "text": item.text, "attributes": item.attributes, "source": item.source}
