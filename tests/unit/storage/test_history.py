"""A history reads as columns and as events, and says the same both ways."""

from __future__ import annotations

import pytest

from contexts.batch_builder import context_of
from contracts import topics
from contracts.identity import event_key
from storage.sequences.history import PAYMENT, RELATION_ACTOR, RELATION_COUNTERPART, USER, History, SequenceEvent


def event(at: int, topic: str, kind: int, *, other: str | None = None, paid: int | None = None) -> SequenceEvent:
    """An event in ann's sequence, from partition 1 of a stream of its own for each topic."""
    event_id, actor = f"e{at}", other if kind == RELATION_COUNTERPART else "ann"
    assert actor is not None
    return SequenceEvent(
        at=at, event_id=event_id, topic=topic, partition=1, offset=at * 2, stream_id=list(topics.EVENTS).index(topic),
        kind=kind, type=f"type-{at % 2}", item=None if paid is not None else f"item-{at}", amount=paid,
        currency=None if paid is None else "EUR", other=other, key=event_key(topic, actor, event_id),
    )  # fmt: skip


EVENTS = [
    event(1, topics.USER, USER),
    event(2, topics.PAYMENT, PAYMENT, paid=0, other="shop"),
    event(2, topics.PAYMENT, PAYMENT, paid=-7),
    event(3, topics.RELATIONAL, RELATION_ACTOR, other="bob"),
    event(4, topics.RELATIONAL, RELATION_COUNTERPART, other="bob"),
]


def as_read() -> History:
    """As it comes out of Postgres: without keys."""
    made = History.of(EVENTS, user="ann")
    names = ("user", "at", "event_ids", "stream", "offset", "kind", "type", "item", "amount", "currency", "other")
    return History(**{name: getattr(made, name) for name in names}, places=made.places)


def test_the_events_that_went_in_come_out_with_the_keys_that_producers_would_compute() -> None:
    assert list(as_read()) == EVENTS
    assert [type(value) for value in next(iter(as_read()))] == [type(value) for value in EVENTS[0]]


@pytest.mark.parametrize("chosen", [slice(1, 3), slice(-2, None), slice(5, 9), slice(None, None, 2)])
def test_a_part_of_a_history_is_a_history(chosen: slice) -> None:
    part = as_read()[chosen]
    assert (len(part), list(part)) == (len(EVENTS[chosen]), EVENTS[chosen])


def test_an_event_is_found_by_its_place_from_either_end() -> None:
    history = as_read()
    assert [history[n] for n in range(-5, 5)] == EVENTS + EVENTS
    for outside in (5, -6):
        with pytest.raises(IndexError):
            history[outside]


def test_a_learner_is_shown_the_same_of_columns_and_of_events() -> None:
    stacks = [as_read(), as_read()[:0], as_read()[2:]]
    for mixed in ([list(stack) for stack in stacks], [stacks[0], [], list(stacks[2])]):
        found, expected = context_of(stacks), context_of(mixed)
        for name, column in vars(expected).items():
            assert getattr(found, name).dtype == column.dtype
            assert getattr(found, name).tolist() == column.tolist(), name


def test_of_no_history_a_learner_is_shown_nothing() -> None:
    assert (len(context_of([])), len(context_of([History.of([])]))) == (0, 1)
