"""The topics: what each carries and how it must be configured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from contracts.records import Item, Label, Payment, Record, Relation, UserEvent

USER = "events.user"
PAYMENT = "events.payment"
RELATIONAL = "events.relational"
ITEMS = "items"
LABELS = "labels"
PROGRESS = "learning.progress"
REQUESTS = "scores.requests"
RESULTS = "scores.results"
ALARMS = "drift.alarms"
DEAD_LETTERS = "events.dlq"

ORIGIN_HEADER = "driftline-origin"
"""Header of a replayed dead letter: which one it repeats, and the proof (`contracts/origins.py`)."""

# A record's time orders the merge of partitions, so a producer whose clock runs ahead must be refused by
# the broker; an hour leaves room for honest skew. Records of years ago are history replayed: without
# retention.ms=-1 the broker deletes them within seconds.
_EVENTS = MappingProxyType(
    {
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "message.timestamp.type": "CreateTime",
        "message.timestamp.after.max.ms": "3600000",
    }
)
# A question is worth nothing a week later.
_QUESTIONS = MappingProxyType({**_EVENTS, "retention.ms": "604800000"})
_COMPACTED = MappingProxyType({**_EVENTS, "cleanup.policy": "compact"})


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A topic and its configuration."""

    name: str
    partitions: int
    config: Mapping[str, str]


INPUTS: Mapping[str, type[Record]] = MappingProxyType(
    {USER: UserEvent, PAYMENT: Payment, RELATIONAL: Relation, ITEMS: Item, LABELS: Label}
)
"""What `ingest` reads. Logical names: on a shared cluster a prefix stands before them (`runtime/kafka.py`)."""

EVENTS = (USER, PAYMENT, RELATIONAL)
"""The topics whose records stand in users' sequences."""

ALL: tuple[Topic, ...] = (
    Topic(name=USER, partitions=4, config=_EVENTS),
    Topic(name=PAYMENT, partitions=4, config=_EVENTS),
    Topic(name=RELATIONAL, partitions=4, config=_EVENTS),
    Topic(name=ITEMS, partitions=1, config=_COMPACTED),
    Topic(name=LABELS, partitions=4, config=_EVENTS),
    Topic(name=PROGRESS, partitions=1, config=_EVENTS),
    Topic(name=REQUESTS, partitions=4, config=_QUESTIONS),
    Topic(name=RESULTS, partitions=4, config=_EVENTS),
    Topic(name=ALARMS, partitions=1, config=_EVENTS),
    Topic(name=DEAD_LETTERS, partitions=1, config=_EVENTS),
)
