"""Rows to records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from contracts import topics
from contracts.codec import encode
from contracts.records import Item, Label, Payment, Relation, UserEvent
from driftline.simulate.behaviour import MESSAGE_KIND
from driftline.simulate.catalogue import title
from driftline.simulate.faults import MALFORMED, malformed
from driftline.simulate.planned_rows import BROKEN, EVENT, GONE, ITEM, LABEL, REPEATED, Rows
from driftline.simulate.scenario import BUY, MESSAGE, SOURCE, TYPES, Scenario, time
from driftline.simulate.world import SHELVES
from runtime.produce import Outgoing


class _Row(NamedTuple):
    sent_us: int
    what: int
    number: int
    user: int
    at_us: int
    kind: int
    item: int
    cents: int
    party: int
    risk: int
    fraud: bool


def user_id(user: int) -> str:
    """Id of a user."""
    return f"sim:user-{user}"


def item_id(item: int) -> str:
    """Id of an item."""
    return f"sim:item-{item}"


def merchant_id(merchant: int) -> str:
    """Id of a merchant."""
    return f"sim:merchant-{merchant}"


class Encoder:
    """Rows of one scenario to records."""

    def __init__(self, scenario: Scenario) -> None:
        self._prefix, self._places = f"sim-{scenario.tag}-", scenario.items
        self._users = [user_id(user) for user in range(scenario.users)]
        self._keys = [user.encode() for user in self._users]
        self._how: dict[int, Callable[[_Row], Outgoing]] = {
            ITEM: self._item,
            GONE: lambda row: Outgoing(topics.ITEMS, item_id(row.number).encode(), None, row.sent_us // 1000),
            EVENT: self._event,
            REPEATED: self._event,
            LABEL: self._label,
            BROKEN: self._broken,
        }

    def records(self, rows: Rows) -> Iterator[Outgoing]:
        """The records, in the order of the rows."""
        how = self._how
        return (how[row.what](row) for row in map(_Row._make, rows.tolist()))

    def event_id(self, number: int) -> str:
        """Id of an event."""
        return f"{self._prefix}{number}"

    def _event(self, row: _Row) -> Outgoing:
        user, key, at_ms = self._users[row.user], self._keys[row.user], row.sent_us // 1000
        event_id, occurred_at = f"{self._prefix}{row.number}", time(row.at_us)
        if row.kind == BUY:
            payment = Payment(
                event_id=event_id,
                user_id=user,
                occurred_at=occurred_at,
                source=SOURCE,
                type="buy",
                amount=row.cents * 10_000,
                currency="EUR",
                payee_id=merchant_id(row.party),
                item_id=item_id(row.item),
            )
            return Outgoing(topics.PAYMENT, key, encode(payment), at_ms)
        if row.kind == MESSAGE_KIND:
            relation = Relation(
                event_id=event_id,
                actor_id=user,
                relation=MESSAGE,
                counterpart_id=self._users[row.party],
                occurred_at=occurred_at,
                source=SOURCE,
            )
            return Outgoing(topics.RELATIONAL, key, encode(relation), at_ms)
        event = UserEvent(
            event_id=event_id,
            user_id=user,
            occurred_at=occurred_at,
            source=SOURCE,
            type=TYPES[row.kind],
            item_id=item_id(row.item),
        )
        return Outgoing(topics.USER, key, encode(event), at_ms)

    def _label(self, row: _Row) -> Outgoing:
        label = Label(
            event_id=f"{self._prefix}{row.number}-fraud",
            user_id=self._users[row.user],
            task="fraud",
            subject_event_id=self.event_id(row.number),
            ref_time=time(row.at_us),
            known_at=time(row.sent_us),
            value=float(row.fraud),
            source=SOURCE,
        )
        return Outgoing(topics.LABELS, self._keys[row.user], encode(label), row.sent_us // 1000)

    def _item(self, row: _Row) -> Outgoing:
        shelf = row.number % self._places % SHELVES
        item = Item(
            item_id=item_id(row.number),
            source=SOURCE,
            title=title(row.number, self._places),
            text=f"Item {row.number}, on shelf {shelf}",
            attributes={"shelf": str(shelf)},
        )
        return Outgoing(topics.ITEMS, item.item_id.encode(), encode(item), row.sent_us // 1000)

    def _broken(self, row: _Row) -> Outgoing:
        event_id = f"{self._prefix}broken-{row.number}"
        topic, key, value = malformed(MALFORMED[row.kind], event_id, self._users[row.user], time(row.at_us))
        return Outgoing(topic, key, value, row.sent_us // 1000)
