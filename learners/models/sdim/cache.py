"""Signature tables of the users seen last, kept beside a learner for whoever writes them to the serving cache.

Derived, never decisive: no weight and no prediction depends on them, they are in no state, and a reader that
finds none rebuilds the table from the user's sequence.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

from learners.blocks.signature_table import SignatureTable
from learners.contract.batch import Batch, Context, TargetKind
from learners.models.sdim.embedding_version import EmbeddingVersion, SignatureRow


@dataclass(kw_only=True)
class _Window:
    """A user's newest behaviours, and their table while it is of the version in use."""

    at: array[int] = field(default_factory=lambda: array("q"))
    """Microseconds, not decreasing."""
    items: list[str] = field(default_factory=list)
    table: SignatureTable | None = None
    embedding: str = ""
    taken_away: int = 0
    """Behaviours that left the table since it was built: each leaves a rounding error behind."""


class UserTables:
    """Windows of up to `users` users, the one touched longest ago leaving first."""

    def __init__(self, users: int, *, last_n: int, reserve: int) -> None:
        self._capacity, self._last_n, self._reserve = users, last_n, reserve
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        self.touched: frozenset[str] = frozenset()
        """Users whose sequence the newest step made longer."""

    def learn(self, batch: Batch, published: EmbeddingVersion) -> None:
        """Takes a step's rows in their order. A user not held starts from a row that is their newest."""
        self.touched = frozenset()
        user, item = batch.query.user, batch.target.item
        if not self._capacity or user is None or item is None or batch.target.kind is TargetKind.TICK:
            return
        rows = [row for row in range(len(batch)) if item[row] is not None]
        for row in rows:
            window = self._windows.get(user[row])
            if window is None and batch.origin.newest is not None and batch.origin.newest[row]:
                window = self._windows[user[row]] = self._of(
                    batch.context, batch.query.stack[row], batch.query.visible[row]
                )
            if window is not None:
                self._append(window, int(batch.target.at[row]), item[row], published)
                self._windows.move_to_end(user[row])
        self.touched = frozenset(user[row] for row in rows)
        self._let_go()

    def missing(self, users: Iterable[str]) -> list[str]:
        """Those of whom no window is held: `take` their sequences, or leave them to the readers."""
        return sorted(user for user in users if user not in self._windows)

    def take(self, users: Sequence[str], sequences: Context) -> None:
        """Starts windows anew: stack n holds the newest behaviours of user n at the end of the newest step."""
        for stack, user in enumerate(users):
            length = sequences.offsets[stack + 1] - sequences.offsets[stack]
            self._windows[user] = self._of(sequences, stack, length)
            self._windows.move_to_end(user)
        self._let_go()

    def forget(self, users: Container[str]) -> None:
        """Lets these users' windows go."""
        for user in [user for user in self._windows if user in users]:
            del self._windows[user]
        self.touched = frozenset(user for user in self.touched if user not in users)

    def rows(self, users: Iterable[str], published: EmbeddingVersion) -> list[SignatureRow]:
        """Rows of the users that are held and have behaviours, sorted by user; tables are built where they must be.

        A row stands for the end of the newest step that touched its user, or of the `take`.
        """
        held = sorted(user for user in set(users) if user in self._windows and self._windows[user].items)
        return [self._row(user, self._windows[user], published) for user in held]

    def _row(self, user: str, window: _Window, published: EmbeddingVersion) -> SignatureRow:
        table = self._current(window, published)
        return SignatureRow(
            user=user,
            embedding=published.embedding,
            hash_id=published.hash_id,
            table=table.copy(),
            events=len(window.items),
            last_at=window.at[-1],
            oldest=tuple(zip(window.at[: self._reserve], window.items[: self._reserve], strict=True)),
        )

    def _of(self, context: Context, stack: int, visible: int) -> _Window:
        start, window = int(context.offsets[stack]), _Window()
        events = range(start, start + int(visible))
        behaviours = [event for event in events if context.item[event] is not None][-self._last_n :]
        window.at.extend(int(context.at[event]) for event in behaviours)
        window.items.extend(sys.intern(context.item[event]) for event in behaviours)
        return window

    def _append(self, window: _Window, at: int, item: str, published: EmbeddingVersion) -> None:
        place = bisect_right(window.at, at)
        if place == 0 and len(window.items) == self._last_n:
            return  # a late row, older than all of a full window
        window.at.insert(place, at)
        window.items.insert(place, sys.intern(item))
        gone = [window.items.pop(0)] if len(window.items) > self._last_n else []
        del window.at[: len(gone)]
        window.taken_away += len(gone)
        if window.table is None or window.embedding != published.embedding or window.taken_away > self._last_n:
            window.table = None
            return
        window.table.add(*published.parts([item]))
        window.table.take_away(*published.parts(gone))

    def _current(self, window: _Window, published: EmbeddingVersion) -> SignatureTable:
        if window.table is None or window.embedding != published.embedding:
            window.table, window.embedding = published.table(window.items), published.embedding
            window.taken_away = 0
        return window.table

    def _let_go(self) -> None:
        while len(self._windows) > self._capacity:
            self._windows.popitem(last=False)
