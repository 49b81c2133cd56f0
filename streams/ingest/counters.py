"""What `ingest` counts: totals of a run, and its metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime import metrics
from storage.log.event_log import Counts
from storage.log.offsets import Claim
from streams.ingest.batch_writer import Written
from streams.ingest.validation import StreamBatch


@dataclass
class IngestTotals:
    """What a run did."""

    read: int = 0
    accepted: int = 0
    duplicates: int = 0
    dead: int = 0
    suppressed: int = 0
    ignored_origins: int = 0
    """Records whose `driftline-origin` header proved nothing: judged as if it were not there."""
    unreadable_headers: int = 0
    """Valid records whose headers the client cannot give: judged without them."""
    batches: int = 0
    first_at: float | None = None
    """Unix seconds when the first record was there."""
    last_at: float | None = None
    """Unix seconds of the last commit."""

    def add(self, counts: Counts) -> None:
        """Adds what became of one segment's records."""
        self.read += counts.read
        self.accepted += counts.accepted
        self.duplicates += counts.duplicates
        self.dead += counts.dead
        self.suppressed += counts.suppressed


def count_written(
    written: Sequence[Written], intakes: Mapping[tuple[str, int], StreamBatch], totals: IngestTotals
) -> None:
    """After the commit of a batch: what became of its records."""
    totals.batches += 1
    totals.last_at = time.time()
    metrics.batches.inc(1, "committed")
    for part in written:
        totals.add(part.counts)
        topic, counts = part.claim.stream.topic, part.counts
        metrics.records_read.inc(counts.read, topic)
        metrics.records_accepted.inc(counts.accepted, topic)
        metrics.duplicates.inc(counts.duplicates, topic)
        metrics.suppressed.inc(counts.suppressed, topic)
        metrics.unknown_fields.inc(counts.unknown_fields, topic)
        metrics.ignored_origins.inc(part.ignored_origins, topic)
        totals.ignored_origins += part.ignored_origins
        metrics.far_records.inc(len(part.far), topic)
    for intake in intakes.values():
        metrics.read_bytes.inc(intake.value_bytes, intake.topic)
        metrics.unreadable_headers.inc(intake.unreadable_headers, intake.topic)
        totals.unreadable_headers += intake.unreadable_headers
        for refusal in intake.refused:
            metrics.dead_letters.inc(1, intake.topic, refusal.reason)


def show_position(claim: Claim, *, lag: int, newest_us: int | None, filter_entries: int) -> None:
    """After the commit of a batch: where one of its streams stands.

    :param lag: records the broker holds beyond it.
    :param newest_us: its newest record time that is not far ahead of the others, microseconds; None = the batch had
        no record.
    """
    topic, partition = claim.stream.topic, str(claim.stream.partition)
    metrics.filter_entries.set(filter_entries, topic, partition)
    metrics.ingest_lag.set(max(0, lag), topic, partition)
    if newest_us is not None:
        metrics.event_delay.set(max(0.0, time.time() - newest_us / 1e6), topic, partition)
