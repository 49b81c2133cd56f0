"""The rows of a step with the histories they may see, as a learner's batch.

The history of a row is what lies below the step's start cursor, plus earlier rows of the step, restricted
to event times strictly before its own. The rule is the only input: what happens to be cached here, or how
the log was cut into segments, changes nothing (`tests/unit/streams/test_histories.py` compares with a plain
reading of the rule).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection

from contexts.batch_builder import context_of, strings
from learners.contract.batch import Batch, Bools, Origin, Query, Target, TargetKind
from storage.log.offsets import Cursor
from storage.sequences import user_sequences
from storage.sequences.user_sequences import HistoryAsk, SequenceEvent
from streams.train.merge import LogRow

_FOREVER = 2**62


@dataclass
class _Recent:
    """A user's newest events below the cursor."""

    events: list[SequenceEvent]
    """Sorted."""
    complete: bool
    """There are no older ones."""


@dataclass(frozen=True)
class _View:
    """What one row sees: the first `visible` events of `stack`."""

    stack: list[SequenceEvent]
    visible: int
    timed: bool
    """It is the first of its instant, and not the user's first event, among those that histories are made of."""


@dataclass(frozen=True, kw_only=True)
class SubjectView:
    """An event to be looked at again, as it was handled."""

    user: str
    key: int
    """Digest of the event's identity."""
    stream_id: int
    offset: int
    at: int
    """Its event time, microseconds since 1970."""
    before: int
    """Its history ends before this event time."""
    seen: Cursor
    """What came before the event in the order of the merge."""


class StepBatches:
    """Builds batches, step by step in journal order; remembers recent users' histories between steps."""

    def __init__(
        self, *, last_n: int, resolution_us: int, items_only: bool = False, cached_users: int = 50_000
    ) -> None:
        """
        :param last_n: events a history holds before its row (rows sharing a stack may see a few more).
        :param resolution_us: width of the event clock's tick, microseconds.
        :param items_only: histories are made of events that carry an item; to a row, the others never happened.
        """
        self._last_n = last_n
        self._items_only = items_only
        self._resolution_us = resolution_us
        self._cached_users = cached_users
        self._recent: OrderedDict[str, _Recent] = OrderedDict()

    def batch(self, connection: Connection, rows: Sequence[LogRow], cursor: Cursor) -> Batch:
        """The step's rows as a batch. Each step is built once, in order.

        :param cursor: the step's start cursor.
        """
        self._load(connection, {row.user for row in rows}, cursor)
        brought = _events_by_user(rows)
        inside = {user: [(n, event) for n, event in events if self._counts(event)] for user, events in brought.items()}
        views: list[_View | None] = [None] * len(rows)
        newest = np.zeros(len(rows), np.bool_)
        for user in dict.fromkeys(row.user for row in rows):
            numbers = [n for n, row in enumerate(rows) if row.user == user]
            newest[numbers] = self._newest(user, numbers, rows, inside[user])
            times = [event.at for _, event in brought[user]]
            ordered = times == sorted(times)
            shared = self._shared(connection, user, numbers, rows, inside[user], cursor) if ordered else None
            for n in numbers:
                views[n] = shared[n] if shared else self._alone(connection, user, n, rows[n], inside[user], cursor)
        self._remember(inside)
        return self._as_batch(rows, [view for view in views if view is not None], newest)

    def as_of(
        self, connection: Connection, asks: Sequence[SubjectView], cursor: Cursor
    ) -> list[tuple[SequenceEvent, list[SequenceEvent]] | None]:
        """Each event, with the history it had when it was handled; None: the event is not there (erased).

        :param cursor: where the step ends whose rows `batch` built last.
        """
        self._load(connection, {ask.user for ask in asks}, cursor)
        found: list[tuple[SequenceEvent, list[SequenceEvent]] | None] = []
        for ask in asks:
            event = self._event(connection, ask)
            found.append(None if event is None else (event, self._history(connection, ask)))
        return found

    def _event(self, connection: Connection, ask: SubjectView) -> SequenceEvent | None:
        events = self._recent[ask.user].events
        for event in events[bisect_left(events, (ask.at,)) : bisect_left(events, (ask.at + 1,))]:
            if event.key == ask.key:
                return event
        wanted, here = 4, {ask.stream_id: ask.offset + 1}
        while True:  # it is the last of its stream; others may share its time
            [stored] = self._read(connection, [HistoryAsk(user=ask.user, before=ask.at + 1, last_n=wanted)], here)
            for event in stored:
                if event.key == ask.key:
                    return event
            if len(stored) < wanted or stored[0].at < ask.at:
                return None
            wanted *= 4

    def _history(self, connection: Connection, ask: SubjectView) -> list[SequenceEvent]:
        """At most `last_n` events."""
        recent = self._recent[ask.user]
        before = recent.events[: bisect_left(recent.events, (ask.before,))]
        visible = [event for event in before if event.offset < ask.seen.get(event.stream_id, 0)]
        if recent.complete or len(visible) >= self._last_n:
            return visible[-self._last_n :]
        [stored] = self._read(connection, [HistoryAsk(user=ask.user, before=ask.before, last_n=self._last_n)], ask.seen)
        return list(stored)

    def forget(self) -> None:
        """Lets go what is remembered between steps: histories are read from Postgres again."""
        self._recent.clear()

    def _counts(self, event: SequenceEvent) -> bool:
        """Whether the event stands in histories."""
        return event.item is not None or not self._items_only

    def _read(self, connection: Connection, asks: Sequence[HistoryAsk], cursor: Cursor) -> list[list[SequenceEvent]]:
        return user_sequences.histories(connection, asks, cursor, items_only=self._items_only)

    def _newest(
        self, user: str, numbers: list[int], rows: Sequence[LogRow], inside: list[tuple[int, SequenceEvent]]
    ) -> list[bool]:
        """Of each of a user's rows, whether it lies behind all that its history could be made of."""
        below = self._recent[user].events
        latest = below[-1].at if below else None
        found = []
        for n in numbers:
            before = [event.at for number, event in inside if number < n]
            found.append(all(at < rows[n].event.at for at in before) and (latest is None or latest < rows[n].event.at))
        return found

    def _load(self, connection: Connection, users: set[str], cursor: Cursor) -> None:
        for user in users & self._recent.keys():
            self._recent.move_to_end(user)
        missing = sorted(users - self._recent.keys())
        if missing:
            wanted = 4 * self._last_n
            asks = [HistoryAsk(user=user, before=_FOREVER, last_n=wanted) for user in missing]
            found = self._read(connection, asks, cursor)
            for user, events in zip(missing, found, strict=True):
                self._recent[user] = _Recent(events, complete=len(events) < wanted)

    def _remember(self, inside: dict[str, list[tuple[int, SequenceEvent]]]) -> None:
        """The step's rows lie below the next step's cursor."""
        for user, events in inside.items():
            recent = self._recent.get(user)
            if recent is None:
                continue  # a counterpart nobody asked for: read when asked for
            for _, event in events:
                if recent.complete or event > recent.events[0]:  # else it lies before what is held without a gap
                    insort(recent.events, event)
            if len(recent.events) > 8 * self._last_n:
                del recent.events[: -4 * self._last_n]
                recent.complete = False
        while len(self._recent) > self._cached_users:
            self._recent.popitem(last=False)

    def _shared(
        self,
        connection: Connection,
        user: str,
        numbers: list[int],
        rows: Sequence[LogRow],
        inside: list[tuple[int, SequenceEvent]],
        cursor: Cursor,
    ) -> dict[int, _View] | None:
        """One stack for all rows of a user, of whom the step brings the events in order of time; None: too long."""
        first, last = rows[numbers[0]].event.at, rows[numbers[-1]].event.at
        most = 2 * self._last_n + len(inside)
        below = self._below(connection, user, first, last, most, cursor)
        start = max(0, bisect_left(below, (first,)) - self._last_n)
        stack = below[start : bisect_left(below, (last,))]
        for _, event in inside:
            if event.at < last:
                insort(stack, event)
        if len(stack) > most:
            return None  # rows far apart in time: sharing would make each pay for all between
        views = {}
        for n in numbers:
            at = rows[n].event.at
            visible = bisect_left(stack, (at,))
            seen = any(event.at == at for number, event in inside if number < n) or _holds(below, at)
            views[n] = _View(stack, visible, timed=bool(visible) and not seen)
        return views

    def _below(
        self, connection: Connection, user: str, first: int, last: int, most: int, cursor: Cursor
    ) -> list[SequenceEvent]:
        """Of a user's events below the cursor, what a stack from `first` to `last` is made of.

        Whether it comes from memory or from Postgres, the same stack comes of it, or the same refusal: if
        more than `most` events would be in it, more than `most` are before `last` here.
        """
        recent = self._recent[user]
        if recent.complete or bisect_left(recent.events, (first,)) >= self._last_n:
            return recent.events
        asks = [
            HistoryAsk(user=user, before=last, last_n=most + 1),
            HistoryAsk(user=user, before=last + 1, last_n=1),  # whether something happened at `last` itself
        ]
        before, newest = self._read(connection, asks, cursor)
        return before + [event for event in newest if event.at == last]

    def _alone(
        self,
        connection: Connection,
        user: str,
        number: int,
        row: LogRow,
        inside: list[tuple[int, SequenceEvent]],
        cursor: Cursor,
    ) -> _View:
        """A stack of the row's own, read as of its time."""
        at = row.event.at
        asks = [
            HistoryAsk(user=user, before=at, last_n=self._last_n),
            HistoryAsk(user=user, before=at + 1, last_n=1),
        ]
        stack, newest = self._read(connection, asks, cursor)
        earlier = [event for n, event in inside if n < number]
        for event in earlier:
            if event.at < at:
                insort(stack, event)
        stack = stack[-self._last_n :]
        seen = _holds(newest, at) or any(event.at == at for event in earlier)
        return _View(stack, len(stack), timed=bool(stack) and not seen)

    def _as_batch(self, rows: Sequence[LogRow], views: list[_View], newest: Bools) -> Batch:
        stacks: dict[int, tuple[int, list[SequenceEvent]]] = {}
        for view in views:
            stacks.setdefault(id(view.stack), (len(stacks), view.stack))
        return Batch(
            context=context_of([stack for _, stack in stacks.values()]),
            query=Query(
                stack=np.array([stacks[id(view.stack)][0] for view in views], np.int64),
                visible=np.array([view.visible for view in views], np.int64),
                # Silence is known only up to the last event seen: the row's own time is the target.
                now=np.array([v.stack[v.visible - 1].at if v.visible else 0 for v in views], np.int64),
                user=strings([row.user for row in rows]),
            ),
            target=Target(
                kind=TargetKind.EVENT,
                at=np.array([row.event.at for row in rows], np.int64),
                type=strings([row.event.type for row in rows]),
                resolution=np.full(len(rows), self._resolution_us, np.int64),
                timed=np.array([view.timed for view in views], np.bool_),
                weight=np.ones(len(rows)),
                item=strings([row.event.item for row in rows]),
            ),
            origin=Origin(key=np.array([row.event.key for row in rows], np.int64), newest=newest),
        )


def _events_by_user(rows: Sequence[LogRow]) -> dict[str, list[tuple[int, SequenceEvent]]]:
    """User -> (row number, event as it stands in the user's sequence), both users of a relation."""
    found: dict[str, list[tuple[int, SequenceEvent]]] = {}
    for number, row in enumerate(rows):
        found.setdefault(row.user, []).append((number, row.event))
        if row.event.kind == user_sequences.RELATION_ACTOR and row.event.other is not None:
            mirrored = row.event._replace(kind=user_sequences.RELATION_COUNTERPART, other=row.user)
            found.setdefault(row.event.other, []).append((number, mirrored))
    return found


def _holds(events: Sequence[SequenceEvent], at: int) -> bool:
    index = bisect_left(events, (at,))
    return index < len(events) and events[index].at == at
