"""A user's past as a ranking needs it: the signature table at the time asked, and the newest behaviours.

The stored row of the version that serves, topped up with the few behaviours that came behind its cursor (protocol,
rule 17). A long history is read only where there is no such row, or where it does not stand for what is asked: then
the table is built from the user's sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from sqlalchemy import Connection

from contracts.scoring import UserState
from learners.blocks.signature_table import SignatureTable
from learners.contract.batch import Context
from learners.models.sdim.embedding_version import EmbeddingVersion, SignatureRow, StaleRow
from scoring.heads.request_decoding import Question
from storage.learning import signature_rows
from storage.learning.signature_rows import StoredSignature, TableVersion
from storage.sequences import item_events
from storage.sequences.item_events import BehaviourAsk, Behaviours

_PORTION: Final = 2**18
"""Behaviours asked for in one statement: bounds the memory of many long histories built anew at once."""


@dataclass(frozen=True, kw_only=True)
class Interest:
    """The past of one user."""

    table: SignatureTable
    short: Behaviours
    """The newest `short_n`."""
    state: UserState
    cache_updated: int
    """Behaviours added to the stored row."""

    @property
    def events(self) -> int:
        """Behaviours in the table."""
        return int(self.table.counts[0].sum())

    @property
    def last_at(self) -> int | None:
        """Event time of the newest behaviour, microseconds since 1970; None: there is none."""
        return int(self.short.at[-1]) if len(self.short) else None


def read(
    connection: Connection, *, published: EmbeddingVersion, learner: str, questions: Sequence[Question]
) -> list[Interest]:
    """One interest a question, of all that this transaction sees.

    :param published: the version that serves; rows of others are as if they were not there.
    """
    version = TableVersion(learner=learner, embedding=published.embedding, hash_id=published.hash_id)
    rows = signature_rows.read(connection, version, [ask.user for ask in questions])
    c = published.config
    seen = _behaviours(
        connection,
        [
            BehaviourAsk(user=ask.user, before=ask.before, newest=c.short_n, behind=rows[ask.user].cursor)
            if ask.user in rows
            else BehaviourAsk(user=ask.user, before=ask.before, newest=c.last_n)
            for ask in questions
        ],
    )
    found = [
        _cache_updated(published, ask, rows[ask.user], events) if ask.user in rows else _built(published, events)
        for ask, events in zip(questions, seen, strict=True)
    ]
    stale = [
        BehaviourAsk(user=a.user, before=a.before, newest=c.last_n)
        for a, i in zip(questions, found, strict=True)
        if not i
    ]
    whole = iter(_behaviours(connection, stale))
    return [interest or _built(published, next(whole)) for interest in found]


def context_of(shorts: Sequence[Behaviours]) -> Context:
    """One stack a user, of which a ranking by tables reads nothing but times and items."""
    count = sum(map(len, shorts))
    nothing, zeros = np.full(count, None, np.object_), np.zeros(count, np.int64)
    return Context(
        offsets=np.cumsum([0, *map(len, shorts)], dtype=np.int64),
        at=np.concatenate([short.at for short in shorts]),
        kind=nothing,
        type=nothing,
        item=np.concatenate([short.item for short in shorts]),
        amount=zeros,
        currency=nothing,
        other=nothing,
        role=nothing,
        key=zeros,
    )


def _behaviours(connection: Connection, asks: Sequence[BehaviourAsk]) -> Iterator[Behaviours]:
    """In portions, one in memory at a time."""
    start = 0
    while start < len(asks):
        end, wanted = start + 1, asks[start].newest
        while end < len(asks) and wanted + asks[end].newest <= _PORTION:
            wanted += asks[end].newest
            end += 1
        yield from item_events.read(connection, asks[start:end])
        start = end


def _cache_updated(
    published: EmbeddingVersion, ask: Question, row: StoredSignature, seen: Behaviours
) -> Interest | None:
    """None: the row does not stand for what is asked."""
    c = published.config
    if row.sums.shape != (c.signatures, c.buckets, c.width):
        return None
    stored = SignatureRow(
        user=row.user,
        embedding=published.embedding,
        hash_id=published.hash_id,
        table=SignatureTable(sums=row.sums, counts=row.counts),
        events=row.events,
        last_at=row.last_at,
        oldest=row.oldest,
    )
    later = list(zip(seen.at[seen.behind].tolist(), seen.item[seen.behind].tolist(), strict=True))
    try:
        table = published.moved_on(stored, later, now=ask.before)
    except StaleRow:
        return None
    state: UserState = "cache_updated" if later else "cache_hit"
    return Interest(table=table, short=seen.newest(c.short_n), state=state, cache_updated=len(later))


def _built(published: EmbeddingVersion, seen: Behaviours) -> Interest:
    """From the user's sequence."""
    return Interest(
        table=published.table(seen.item.tolist()),
        short=seen.newest(published.config.short_n),
        state="cache_rebuilt" if len(seen) else "no_history",
        cache_updated=0,
    )
