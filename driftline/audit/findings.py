"""What an audit says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

SHOWN = 5
"""Places named of each kind of finding and topic."""


class Finding(StrEnum):
    """What can be wrong. Each makes `driftline verify` fail."""

    LOST = "lost"
    """A valid record is not in the log, though nothing excuses that; or an invalid one is no dead letter."""
    TWICE = "twice"
    """A record counted more than once in the log or among the dead letters."""
    EXTRA = "extra"
    """The log or the dead letters hold what the topic does not."""
    WRONG = "wrong"
    """The log holds other content than the record."""
    GONE = "gone"
    """The topic deleted records that were not read."""
    CHAIN = "chain"
    """Log segments do not follow each other, or do not end at the stored offset."""
    COUNTS = "counts"
    """A log segment's counts are not what was found."""
    NOT_IN_SEQUENCE = "not_in_sequence"
    """An accepted event is missing from a sequence it belongs to."""
    TWICE_IN_SEQUENCE = "twice_in_sequence"
    EXTRA_IN_SEQUENCE = "extra_in_sequence"
    """A sequence, or the versions of an item, hold what the log does not."""
    WRONG_IN_SEQUENCE = "wrong_in_sequence"
    """A sequence holds other content than the log, or belongs to another user."""


@dataclass(frozen=True, kw_only=True)
class FindingPlace:
    """Where something was found."""

    topic: str
    partition: int
    offset: int
    stream_id: int
    detail: str = ""


@dataclass(kw_only=True)
class TopicReport:
    """What was found of one topic."""

    topic: str
    read: int = 0
    """Records the audit read from the topic itself."""
    accepted: int = 0
    """Of these, once in the log with the same content."""
    dead: int = 0
    """Invalid, and a dead letter."""
    duplicates: int = 0
    """Repeat an earlier accepted one."""
    suppressed: int = 0
    """Of erased users."""
    ignored_origins: int = 0
    """Valid, with a `driftline-origin` header that proves no replay of a dead letter: looked at without it."""
    unreadable_headers: int = 0
    """Valid, with a header name that is not UTF-8: looked at without their headers."""
    beyond_window: int = 0
    """Accepted again, more than the duplicate window of offsets later: as documented."""
    not_retained: int = 0
    """In the log or among the dead letters, but no longer in the topic: checked against the sequences only."""
    unproven: int = 0
    """Not in the log, perhaps as repetitions of records that neither log (retention) nor topic holds any more."""
    trimmed: int = 0
    """Records the topic holds of what retention removed from the log: not compared."""
    not_in_log: int = 0
    """Entries of sequences (of `items`: versions) whose log rows retention removed: not compared."""
    given_up: int = 0
    """Offsets that `offsets rebind` gave up as lost."""
    not_yet_read: int = 0
    """Offsets that the topic holds beyond the stored ones: `ingest` has not come to them. (Tansu may tell too few.)"""
    deleted_before: dict[int, int] = field(default_factory=dict)
    """Partition -> offsets that the topic had deleted when Driftline first read it (or has, where nobody did yet)."""
    unsafe: list[str] = field(default_factory=list)
    """Settings of the topic under which nothing can be proven; they too make `driftline verify` fail."""
    warnings: list[str] = field(default_factory=list)
    """Settings under which records may go unread."""
    in_sequences: int = 0
    """Entries of users' sequences (of `items`: versions) that were compared with the log."""
    findings: dict[Finding, int] = field(default_factory=lambda: dict.fromkeys(Finding, 0))
    places: dict[Finding, list[FindingPlace]] = field(default_factory=dict)

    def found(self, finding: Finding, places: Iterable[FindingPlace]) -> None:
        """Counts findings, and keeps the first places."""
        for place in places:
            self.findings[finding] += 1
            kept = self.places.setdefault(finding, [])
            if len(kept) < SHOWN:
                kept.append(place)


@dataclass(kw_only=True)
class AuditReport:
    """What an audit found."""

    topics: dict[str, TopicReport]
    seconds: float = 0.0
    duplicate_window: int = 0
    trimmed_users: int = 0
    """Users of whose sequences retention removed events, after it had removed their log rows: not compared .."""
    trimmed_events: int = 0
    """.. and how many."""

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not any(any(topic.findings.values()) or topic.unsafe for topic in self.topics.values())

    @property
    def whole(self) -> bool:
        """Nothing was deleted before it was read, as far as can be seen."""
        return not any(topic.deleted_before for topic in self.topics.values())

    @property
    def read(self) -> int:
        """Records read from all topics."""
        return sum(topic.read for topic in self.topics.values())
