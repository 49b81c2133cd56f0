"""A slot in the group belongs to one living session: that is what makes two members of one name impossible."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import Connection

from storage.engine import open_engine
from storage.log import group_slots

Connect = Callable[[], Connection]


@pytest.fixture
def connect(database: str) -> Iterator[Connect]:
    """Sessions of their own."""
    engine = open_engine(database, application_name="test-slots")
    with ExitStack() as opened:
        yield lambda: opened.enter_context(engine.connect())


def number(connection: Connection, *, group: str = "group", prefer: int = 0) -> int:
    with connection.begin():
        return group_slots.take(connection, group, prefer=prefer).number


def test_each_session_takes_the_lowest_free_slot_and_frees_it_with_its_end(connect: Connect) -> None:
    first, second, third = connect(), connect(), connect()
    assert [number(each) for each in (first, second, third)] == [0, 1, 2]
    second.invalidate()
    assert [number(connect()), number(connect())] == [1, 3]


def test_who_comes_back_takes_its_former_slot_if_it_is_free(connect: Connect) -> None:
    assert number(connect(), prefer=2) == 2
    assert number(connect(), prefer=2) == 0


def test_a_slot_outlives_a_transaction_that_rolls_back(connect: Connect) -> None:
    first = connect()
    first.begin()
    group_slots.take(first, "group")
    first.rollback()
    assert number(connect()) == 1


def test_groups_do_not_share_slots_and_ids_name_the_database(connect: Connect) -> None:
    first, second = connect(), connect()
    assert [number(first, group="one"), number(second, group="two")] == [0, 0]
    with first.begin():
        one, two = (group_slots.take(first, name).name for name in ("three", "four"))
    assert one == two
    assert one.startswith("driftline-")
    assert len(one.split("-")) == 4


def test_topics_that_grew_or_were_made_again_give_a_slot_another_id(connect: Connect) -> None:
    """Kafka gives who comes back under an id what it had, and added partitions would belong to nobody."""
    first = connect()
    with first.begin():
        slot = group_slots.take(first, "group")
    before = slot.instance_id([("user-id", 4), ("label-id", 3)])
    assert before == slot.instance_id([("label-id", 3), ("user-id", 4)])
    assert before.startswith(f"{slot.name}-")
    others = {
        slot.instance_id(topics) for topics in ([("user-id", 6), ("label-id", 3)], [("new-id", 4), ("label-id", 3)])
    }
    assert len({before, *others}) == 3
