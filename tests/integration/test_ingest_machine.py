"""Any order of batches, crashes, hand-overs and zombies against lists in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from confluent_kafka import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError

from contracts import topics
from contracts.records import Label, Payment, Relation, UserEvent
from storage.engine import Unavailable
from storage.log.offsets import Fenced
from tests.integration.feeding import event, identity, label, query, relation, taken
from tests.integration.owning import Owner, Place, message

PLACES: list[Place] = [(topics.USER, 0), (topics.USER, 1), (topics.RELATIONAL, 0), (topics.LABELS, 0)]
NAMES = ("one", "two")
Sent = UserEvent | Payment | Relation | Label | None


def record(place: Place, number: int, user: str) -> Sent:
    """Few numbers, so that most records repeat an earlier one; 5 is malformed."""
    if number == 5:
        return None
    name = f"e{number}"
    if place[0] == topics.RELATIONAL:
        return relation(name, user, "cid", number)
    if place[0] == topics.LABELS:
        return label(name, user, number)
    return event(name, f"{user} of partition {place[1]}", number)


@dataclass
class World:
    """Two processes share the places; `sent` is what the topics hold."""

    database: str
    sent: dict[Place, list[Sent]] = field(default_factory=lambda: {place: [] for place in PLACES})
    done: dict[Place, int] = field(default_factory=lambda: dict.fromkeys(PLACES, 0))
    owners: dict[str, Owner] = field(default_factory=dict)
    mine: dict[str, list[Place]] = field(default_factory=dict)
    zombies: list[Owner] = field(default_factory=list)

    def send(self, records: list[tuple[Place, int, str]]) -> None:
        for place, number, user in records:
            self.sent[place].append(record(place, number, user))

    def batch(self, who: str, most: int) -> None:
        takes = {place: self.sent[place][self.done[place] :][:most] for place in self.mine[who]}
        parts = {place: self.messages(place, records, self.done[place]) for place, records in takes.items() if records}
        if parts:
            self.owners[who].write(parts)
        for place, messages in parts.items():
            self.done[place] += len(messages)

    def failing_batch(self, who: str, most: int) -> None:
        """It is rolled back at its last statement; the process starts anew."""
        query(self.database, "UPDATE stream_offset SET suppression_version = suppression_version + 1")
        if any(self.done[place] < len(self.sent[place]) for place in self.mine[who]):
            with pytest.raises(Fenced):
                self.batch(who, most)
        query(self.database, "UPDATE stream_offset SET suppression_version = suppression_version - 1")
        self.restart(who)

    def restart(self, who: str) -> None:
        self.owners.pop(who).close()
        self.start(who)

    def hand_over(self, firsts: set[Place]) -> None:
        """A rebalance; the processes of before live on as zombies that know nothing of it."""
        for zombie in self.zombies:
            zombie.close()
        self.zombies = list(self.owners.values())
        self.mine = {"one": sorted(firsts), "two": [place for place in PLACES if place not in firsts]}
        for who in NAMES:
            self.start(who)

    def zombie(self) -> None:
        """The processes of before finish what they had in hand."""
        for owner in self.zombies:
            for place, claim in list(owner.claims.items()):
                rest = self.sent.get(place, [])[claim.next_offset :]
                if rest:
                    with pytest.raises((Fenced, Unavailable, IntegrityError)):
                        owner.write({place: self.messages(place, rest, claim.next_offset)})

    def check(self) -> None:
        """What stands in Postgres is what was taken, once."""
        found = taken(self.database)
        records = [each for place in PLACES for each in self.sent[place][: self.done[place]]]
        assert found.identities == {identity(each) for each in records if each is not None}
        assert found.totals["read"] == len(records)
        assert found.totals["dead"] == records.count(None)

    def close(self) -> None:
        for owner in [*self.owners.values(), *self.zombies]:
            owner.close()

    def start(self, who: str) -> None:
        self.owners[who] = Owner(self.database, *(self.mine[who] or [(topics.ITEMS, 0)]))

    def messages(self, place: Place, records: list[Sent], first: int) -> list[Message]:
        return [message(place[0], first + n, each, key=b"x", value=b"[") for n, each in enumerate(records)]


names, sizes = st.sampled_from(NAMES), st.integers(1, 6)
sends = st.lists(st.tuples(st.sampled_from(PLACES), st.integers(0, 5), st.sampled_from("ab")), min_size=1, max_size=8)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), sends),
        st.tuples(st.just("send"), sends),
        st.tuples(st.just("batch"), names, sizes),
        st.tuples(st.just("batch"), names, sizes),
        st.tuples(st.just("failing_batch"), names, sizes),
        st.tuples(st.just("restart"), names),
        st.tuples(st.just("hand_over"), st.sets(st.sampled_from(PLACES))),
        st.tuples(st.just("zombie")),
    ),
    min_size=25,
    max_size=40,
)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps)
def test_any_order_of_batches_crashes_and_zombies_takes_each_event_once(
    database: str, done: list[tuple[object, ...]]
) -> None:
    query(database, "TRUNCATE stream_offset, user_segment, log_segment, dead_letter, replayed_letter")
    world = World(database)
    try:
        world.hand_over(set(PLACES[:2]))
        for name, *arguments in [*done, ("batch", "one", 999), ("batch", "two", 999)]:
            getattr(world, str(name))(*arguments)
            if name != "send":
                world.check()
        assert all(world.done[place] == len(world.sent[place]) for place in PLACES)
    finally:
        world.close()
