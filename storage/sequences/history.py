"""A user's history as columns. It reads as a sequence of events too, each made when it is asked for.

`L` is the number of events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from operator import index
from typing import Any, NamedTuple, overload

import numpy as np

from contracts import topics
from contracts.identity import SEPARATOR, digest, signed
from storage.sequences.array_columns import Ints, Strings, Texts, strings

USER, PAYMENT, RELATION_ACTOR, RELATION_COUNTERPART = 1, 2, 3, 4
"""Values of user_segment.kind."""

KIND_OF_TOPIC = {topics.USER: USER, topics.PAYMENT: PAYMENT, topics.RELATIONAL: RELATION_ACTOR}
"""Topics whose records stand in sequences, and as what in their own user's."""


class SequenceEvent(NamedTuple):
    """An event in a user's sequence. The leading five fields are the sort order of sequences."""

    at: int
    """Event time, microseconds since 1970."""
    event_id: str
    topic: str
    partition: int
    offset: int
    stream_id: int
    kind: int
    type: str
    item: str | None
    amount: int | None
    """Millionths of the currency unit."""
    currency: str | None
    other: str | None
    key: int
    """64-bit digest of the event's identity."""


@dataclass(frozen=True, eq=False)
class History(Sequence[SequenceEvent]):
    """Events of a user in the order of sequences."""

    user: str
    at: Ints
    """[L] event time, microseconds since 1970."""
    event_ids: Strings | Texts
    """[L]"""
    stream: Ints
    """[L]"""
    offset: Ints
    """[L]"""
    kind: Ints
    """[L] USER, PAYMENT, RELATION_ACTOR or RELATION_COUNTERPART."""
    type: Strings
    """[L]"""
    item: Strings
    """[L] or None."""
    amount: Ints
    """[L] millionths of the currency unit; 0 where there is no currency, since money always comes with one."""
    currency: Strings
    """[L] or None."""
    other: Strings
    """[L] counterpart or payee, or None."""
    places: Mapping[int, tuple[str, int]]
    """Stream -> (topic, partition)."""
    known_keys: Ints | None = None
    """[L] `key`, where it need not be computed."""

    @classmethod
    def of(cls, events: Iterable[SequenceEvent], user: str = "") -> History:
        """Events as columns."""
        columns = list(zip(*events, strict=True)) or [()] * len(SequenceEvent._fields)
        at, event_id, topic, partition, offset, stream, kind, type_, item, amount, currency, other, key = columns
        return cls(
            user=user,
            at=np.array(at, np.int64),
            event_ids=strings(event_id),
            stream=np.array(stream, np.int64),
            offset=np.array(offset, np.int64),
            kind=np.array(kind, np.int64),
            type=strings(type_),
            item=strings(item),
            amount=np.array([money or 0 for money in amount], np.int64),
            currency=strings(currency),
            other=strings(other),
            places=dict(zip(stream, zip(topic, partition, strict=True), strict=True)),
            known_keys=np.array(key, np.int64),
        )

    @cached_property
    def event_id(self) -> Strings:
        """[L]"""
        return self.event_ids.strings if isinstance(self.event_ids, Texts) else self.event_ids

    @cached_property
    def key(self) -> Ints:
        """[L] 64-bit digests of the events' identities (`contracts.identity.event_key`)."""
        if self.known_keys is not None:
            return self.known_keys
        heads = {stream: f"{topic}{SEPARATOR}{self.user}{SEPARATOR}" for stream, (topic, _) in self.places.items()}
        identities = [
            heads[stream] + event_id
            for stream, event_id in zip(self.stream.tolist(), self.event_id.tolist(), strict=True)
        ]
        for n in np.flatnonzero(self.kind == RELATION_COUNTERPART).tolist():  # keyed by who acted
            topic, _ = self.places[int(self.stream[n])]
            identities[n] = SEPARATOR.join((topic, self.other[n], self.event_id[n]))
        return signed(np.fromiter((digest(identity.encode()) for identity in identities), np.uint64, len(self)))

    def __len__(self) -> int:
        return len(self.at)

    def __iter__(self) -> Iterator[SequenceEvent]:
        places = [self.places[stream] for stream in self.stream.tolist()]
        currency = self.currency.tolist()
        money = zip(self.amount.tolist(), currency, strict=True)
        columns = (
            self.at.tolist(),
            self.event_id.tolist(),
            [topic for topic, _ in places],
            [partition for _, partition in places],
            self.offset.tolist(),
            self.stream.tolist(),
            self.kind.tolist(),
            self.type.tolist(),
            self.item.tolist(),
            [None if unit is None else amount for amount, unit in money],
            currency,
            self.other.tolist(),
            self.key.tolist(),
        )
        return map(SequenceEvent._make, zip(*columns, strict=True))

    @overload
    def __getitem__(self, chosen: int) -> SequenceEvent: ...
    @overload
    def __getitem__(self, chosen: slice) -> History: ...
    def __getitem__(self, chosen: int | slice) -> SequenceEvent | History:
        if isinstance(chosen, slice):
            values = {field.name: getattr(self, field.name) for field in fields(self)}
            return History(**{name: _part(value, chosen) for name, value in values.items()})
        at = range(len(self))[index(chosen)]
        return next(iter(self[at : at + 1]))


def _part(value: Any, chosen: slice) -> Any:
    return value[chosen] if isinstance(value, np.ndarray | Texts) else value
