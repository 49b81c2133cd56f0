"""Requests become questions, and questions what a learner reads."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from contracts.scoring import ScoreRequest
from scoring.errors import Invalid
from scoring.heads.request_decoding import (
    Question,
    candidates_of,
    decode,
    decode_call,
    microseconds,
    misfit,
    query_of,
    question_of,
    time_of,
)
from storage.sequences.user_sequences import PAYMENT, USER, SequenceEvent

SECOND = 1_000_000


def event(at_s: int, *, kind: int = USER, name: str = "click") -> SequenceEvent:
    paid = kind == PAYMENT
    return SequenceEvent(
        at=at_s * SECOND,
        event_id=f"{at_s}",
        topic="events.user",
        partition=0,
        offset=at_s,
        stream_id=1,
        kind=kind,
        type=name,
        item="book" if kind == USER else None,
        amount=5_000_000 if paid else None,
        currency="EUR" if paid else None,
        other=None if kind == USER else "someone",
        key=at_s * 7,
    )


def test_without_a_time_a_question_stands_at_the_newest_event() -> None:
    _, query = query_of([Question("ann", None)], [[event(1), event(5)]], (0.5,))
    assert (query.now.tolist(), query.visible.tolist()) == ([5 * SECOND], [2])


def test_with_a_time_the_user_is_taken_to_have_been_silent_until_then() -> None:
    question = Question("ann", 9 * SECOND)
    _, query = query_of([question], [[event(1), event(5)]], ())
    assert query.now.tolist() == [9 * SECOND]
    assert question.ask(32).before == 9 * SECOND


def test_users_without_a_past_are_rows_like_others() -> None:
    context, query = query_of([Question("nobody", None), Question("ann", None)], [[], [event(1)]], ())
    assert context.offsets.tolist() == [0, 0, 1]
    assert query.visible.tolist() == [0, 1]


def test_one_instant_written_in_two_zones_is_one_question() -> None:
    asked = [
        decode(json.dumps({"user_id": "ann", "at": at}).encode())
        for at in ("2026-01-01T01:00:00+01:00", "2026-01-01T00:00:00Z")
    ]
    assert question_of(asked[0]) == question_of(asked[1])


def test_an_id_with_a_zero_character_is_refused_before_it_reaches_postgres() -> None:
    with pytest.raises(Invalid, match=r"U\+0000"):
        decode(b'{"user_id": "a\\u0000"}')


def test_top_without_candidates_is_refused() -> None:
    with pytest.raises(Invalid, match=r"no candidates") as refused:
        decode(b'{"user_id": "ann", "top": 3}')
    assert refused.value.where == "$.top"


def test_a_learner_is_asked_its_own_kind_of_question_only() -> None:
    plain, ranking = ScoreRequest(user_id="ann"), ScoreRequest(user_id="ann", candidates=("a",))
    assert misfit(plain, "prompttpp", ranks=False) is None
    assert misfit(ranking, "sdim", ranks=True) is None
    for request, learner, ranks in ((ranking, "prompttpp", False), (plain, "sdim", True)):
        refused = misfit(request, learner, ranks=ranks)
        assert refused is not None
        assert (refused.where, learner in refused.what) == ("$.candidates", True)


def test_shorter_lists_of_candidates_are_padded() -> None:
    found = candidates_of([["a", "b", "c"], ["d"]])
    assert found.item.tolist() == [["a", "b", "c"], ["d", None, None]]
    assert found.mask.tolist() == [[True, True, True], [True, False, False]]


@pytest.mark.parametrize("at", [datetime.min, datetime(1969, 12, 31, 23, 59, 59, 999999), datetime.max])
def test_times_keep_their_microseconds(at: datetime) -> None:
    at = at.replace(tzinfo=UTC)
    assert time_of(microseconds(at)) == at


def test_a_time_that_no_calendar_reaches_is_none() -> None:
    assert time_of(0, 1e18) is None


@pytest.mark.parametrize(
    "body", [b'{"user_id":"ann","\xffat":"2026-01-01T00:00:00Z"}', b'{"user_id":"ann","x":["\xed\xa0\x80"]}']
)
def test_a_request_that_is_no_utf8_is_refused_even_where_nothing_is_read(body: bytes) -> None:
    with pytest.raises(Invalid, match="utf-8"):
        decode(body)
    with pytest.raises(Invalid, match="utf-8"):
        decode_call(body, b"ann")
