"""Any order of batches, crashes, hand-overs and zombies against a list in memory."""

from __future__ import annotations

import pytest
from confluent_kafka import Message
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy.exc import IntegrityError

from contracts import topics
from contracts.records import Label, Payment, Relation, UserEvent
from storage.engine import Unavailable
from storage.offsets import Fenced
from tests.integration.feeding import Identity, Taken, event, identity, label, query, relation, taken
from tests.integration.owning import Owner, Place, message

PLACES: list[Place] = [(topics.USER, 0), (topics.USER, 1), (topics.RELATIONAL, 0), (topics.LABELS, 0)]
Sent = UserEvent | Payment | Relation | Label | None
places = st.sampled_from(PLACES)


def record(place: Place, number: int, user: str) -> Sent:
    name = f"e{number}"
    if place[0] == topics.RELATIONAL:
        return relation(name, user, "cid", number)
    if place[0] == topics.LABELS:
        return label(name, user, number)
    return event(name, user if place[1] else f"{user} of partition 0", number)


class Machine(RuleBasedStateMachine):
    """Two processes share the places; the world is what was sent to each."""

    database: str

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[Place, list[Sent]] = {place: [] for place in PLACES}
        self.done: dict[Place, int] = dict.fromkeys(PLACES, 0)
        self.owners: dict[str, Owner] = {}
        self.mine: dict[str, list[Place]] = {"one": [], "two": []}
        self.zombies: list[Owner] = []

    @initialize()
    def empty(self) -> None:
        query(self.database, "TRUNCATE stream_offset, user_segment, log_segment, dead_letter, replayed_letter")
        self.hand_over(PLACES[:2])

    @rule(place=places, numbers=st.lists(st.integers(0, 15), min_size=1, max_size=6), user=st.sampled_from("ab"))
    def send(self, place: Place, numbers: list[int], user: str) -> None:
        """Numbers come again, so many of them are duplicates; 13 is malformed."""
        self.sent[place] += [None if number == 13 else record(place, number, user) for number in numbers]

    @rule(
        who=st.sampled_from(["one", "two"]),
        most=st.integers(1, 6),
        chosen=st.sets(places, min_size=1),
        fail=st.booleans(),
    )
    def batch(self, who: str, most: int, chosen: set[Place], fail: bool) -> None:
        owner = self.owners[who]
        takes = {place: self.sent[place][self.done[place] :][:most] for place in chosen if place in self.mine[who]}
        parts = {place: self.messages(place, records) for place, records in takes.items() if records}
        if not parts:
            return
        if fail:
            query(self.database, "UPDATE stream_offset SET suppression_version = suppression_version + 1")
            with pytest.raises(Fenced):
                owner.write(parts)
            query(self.database, "UPDATE stream_offset SET suppression_version = suppression_version - 1")
            self.restart(who)
            return
        owner.write(parts)
        for place, messages in parts.items():
            self.done[place] += len(messages)

    @rule(who=st.sampled_from(["one", "two"]))
    def restart(self, who: str) -> None:
        self.owners.pop(who).close()
        self.start(who)

    @rule(firsts=st.lists(places, unique=True))
    def hand_over(self, firsts: list[Place]) -> None:
        """A rebalance; the processes of before live on as zombies that know nothing of it."""
        self.zombies += self.owners.values()
        self.mine = {"one": firsts, "two": [place for place in PLACES if place not in firsts]}
        for who in self.mine:
            self.start(who)

    @rule(data=st.data())
    def zombie(self, data: st.DataObject) -> None:
        """A process of before finishes the batch it had in hand."""
        if not self.zombies:
            return
        owner = data.draw(st.sampled_from(self.zombies))
        for place, claim in list(owner.claims.items()):
            rest = self.sent.get(place, [])[claim.next_offset :]
            if rest:
                with pytest.raises((Fenced, Unavailable, IntegrityError)):
                    owner.write({place: self.messages(place, rest, claim.next_offset)})

    @invariant()
    def what_stands_in_postgres_is_what_was_taken_once(self) -> None:
        if not self.owners:
            return
        found: Taken = taken(self.database)
        wanted: set[Identity] = {
            identity(each) for place in PLACES for each in self.sent[place][: self.done[place]] if each is not None
        }
        assert found.identities == wanted
        assert found.totals["read"] == sum(self.done.values())
        assert found.next_offsets.items() >= {p: n for p, n in self.done.items() if n}.items()

    def teardown(self) -> None:
        for owner in [*self.owners.values(), *self.zombies]:
            owner.close()

    def start(self, who: str) -> None:
        self.owners[who] = Owner(self.database, *(self.mine[who] or [(topics.ITEMS, 0)]))

    def messages(self, place: Place, records: list[Sent], first: int | None = None) -> list[Message]:
        at = self.done[place] if first is None else first
        return [message(place[0], at + n, each, key=b"x", value=b"[") for n, each in enumerate(records)]


def test_any_order_of_batches_crashes_and_zombies_takes_each_event_once(database: str) -> None:
    Machine.database = database
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=8, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
