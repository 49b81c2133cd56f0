"""A topic's settings that decide how long its records stay, and at which times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

FOR_EVER = -1


@dataclass(frozen=True, kw_only=True)
class TopicSettings:
    """As the broker has them; what it does not name is without bound."""

    compacts: bool
    """Of records with one key only the newest is sure to stay."""
    deletes: bool
    """Records go by age and size."""
    retention_ms: int
    """Milliseconds of record time; negative = for ever."""
    retention_bytes: int
    """Of one partition; negative = any size."""
    by_arrival: bool
    """LogAppendTime: a record's time is when it arrived, whatever its producer says."""
    ahead_ms: int | None
    """Records whose time lies further ahead of the broker's clock are refused; None = no bound."""
    behind_ms: int | None
    """The same for the past."""

    @classmethod
    def of(cls, found: Mapping[str, str | None]) -> TopicSettings:
        """From what `kafka.topic_configs` gives."""
        policy = {part.strip() for part in (found.get("cleanup.policy") or "delete").split(",")}
        either = found.get("message.timestamp.difference.max.ms")  # brokers before 3.6
        return cls(
            compacts="compact" in policy,
            deletes="delete" in policy,
            retention_ms=int(found.get("retention.ms") or FOR_EVER),
            retention_bytes=int(found.get("retention.bytes") or FOR_EVER),
            by_arrival=found.get("message.timestamp.type") == "LogAppendTime",
            ahead_ms=_bound(found.get("message.timestamp.after.max.ms") or either),
            behind_ms=_bound(found.get("message.timestamp.before.max.ms") or either),
        )

    @property
    def keeps_ms(self) -> int | None:
        """Milliseconds after which a record may go, read or not; None = never."""
        return self.retention_ms if self.deletes and self.retention_ms >= 0 else None


_UNBOUNDED = 2**62
"""Kafka's "no bound" is the largest long."""


def _bound(text: str | None) -> int | None:
    return None if text is None or int(text) >= _UNBOUNDED else int(text)


def span(ms: float) -> str:
    """For a person: "7 days", "90 s"."""
    seconds = timedelta(milliseconds=ms).total_seconds()
    for unit, name in ((86_400, "days"), (3_600, "hours")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.0f} {name}"
    return f"{seconds:,.0f} s"
