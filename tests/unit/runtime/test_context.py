"""What a learner is shown of a history, in training and in scoring alike."""

from __future__ import annotations

from contexts.batch_builder import context_of
from storage.sequences.user_sequences import PAYMENT, RELATION_ACTOR, RELATION_COUNTERPART, USER, SequenceEvent

BARE = SequenceEvent(
    at=1_000_000, event_id="e", topic="events.user", partition=0, offset=3, stream_id=1, kind=USER, type="click",
    item="book", amount=None, currency=None, other=None, key=7,
)  # fmt: skip
PAID = BARE._replace(kind=PAYMENT, type="card", item=None, amount=5_000_000, currency="EUR", other="shop")
FOLLOWED = BARE._replace(kind=RELATION_COUNTERPART, type="follow", item=None, other="bob")


def test_stacks_stand_side_by_side_and_an_empty_one_has_its_place() -> None:
    context = context_of([[BARE, PAID], [], [FOLLOWED]])
    assert context.offsets.tolist() == [0, 2, 2, 3]
    assert context.type.tolist() == ["click", "card", "follow"]
    assert context.kind.tolist() == ["user", "payment", "relation"]


def test_what_an_event_lacks_is_none_and_its_amount_zero() -> None:
    context = context_of([[BARE, PAID]])
    assert context.amount.tolist() == [0, 5_000_000]
    assert context.currency.tolist() == [None, "EUR"]
    assert context.item.tolist() == ["book", None]
    assert context.other.tolist() == [None, "shop"]


def test_who_acted_is_told() -> None:
    context = context_of([[BARE, FOLLOWED._replace(kind=RELATION_ACTOR), FOLLOWED]])
    assert context.role.tolist() == ["actor", "actor", "counterpart"]
