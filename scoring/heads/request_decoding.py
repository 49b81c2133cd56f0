"""Requests as a learner reads them: histories side by side, one row a question.

Which kind a request must be, the learner that answers decides (`misfit`).

Two requests are one question when they ask for the same user as of the same time. A stack is never shared
between two times: a learner's view of an event depends on where its history begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np

from contexts.batch_builder import context_of, strings
from contracts.records import MAJOR
from contracts.scoring import MAX_CANDIDATES, ScoreCall, ScoreRequest
from learners.contract.batch import Candidates, Context, Query
from scoring.errors import Invalid
from storage.sequences.user_sequences import HistoryAsk, SequenceEvent

_FOREVER = 2**62
"""Microseconds; later than any event time."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
MAX_REQUEST_BYTES = 256 * 1024
_decoder = msgspec.json.Decoder(ScoreRequest)
_call_decoder = msgspec.json.Decoder(ScoreCall)


@dataclass(frozen=True)
class Question:
    """Who is asked about, as of when."""

    user: str
    at: int | None
    """Event time, microseconds since 1970; None = an instant after the user's newest event."""

    @property
    def before(self) -> int:
        """What lies strictly before it counts; microseconds since 1970."""
        return _FOREVER if self.at is None else self.at

    def ask(self, last_n: int) -> HistoryAsk:
        """The history it needs."""
        return HistoryAsk(user=self.user, before=self.before, last_n=last_n)


def decode(body: bytes) -> ScoreRequest:
    """A request from its JSON.

    :raises Invalid: it is none; says where and what.
    """
    try:
        body.decode()  # msgspec does not look at the names and values of fields that it does not know
        request = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(str(error), where="request body", hint="send a ScoreRequest as JSON") from error
    _check(request)
    return request


def decode_call(value: bytes | None, key: bytes | None) -> ScoreCall:
    """A request from its Kafka record.

    :raises Invalid: it is none; says where and what.
    """
    if value is None or len(value) > MAX_REQUEST_BYTES:
        size = "no value" if value is None else f"{len(value):,} bytes; at most {MAX_REQUEST_BYTES:,}"
        raise Invalid(size, where="record value", hint="send one ScoreCall")
    try:
        value.decode()
        call = _call_decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(str(error), where="record value", hint="send a ScoreCall as JSON") from error
    if call.schema.partition(".")[0] != MAJOR:
        raise Invalid(f"schema {call.schema!r}; this reader knows {MAJOR}.x", where="$.schema", hint="send that one")
    if key != call.user_id.encode():
        raise Invalid("the record's key is not user_id", where="record key", hint="send user_id as the key")
    _check(call)
    return call


def _check(request: ScoreRequest) -> None:
    if "\0" in request.user_id:
        raise Invalid("U+0000 stands in no id", where="$.user_id", hint="correct the id")
    if request.top is not None and request.candidates is None:
        raise Invalid("there are no candidates to name the best of", where="$.top", hint="name candidates, or no top")


def misfit(request: ScoreRequest, learner: str, *, ranks: bool) -> Invalid | None:
    """Why a learner cannot answer a request of this kind; None: it can.

    :param ranks: whether the learner ranks.
    """
    if ranks and request.candidates is None:
        todo = f"name 1 to {MAX_CANDIDATES:,} item ids, or ask a `score` whose learner says what comes next (prompttpp)"
        return Invalid(f"learner {learner!r} ranks candidates, and there are none", where="$.candidates", hint=todo)
    if not ranks and request.candidates is not None:
        todo = "leave them out, or ask a `score` whose learner ranks (`driftline score --learner sdim`)"
        return Invalid(f"learner {learner!r} ranks no candidates", where="$.candidates", hint=todo)
    return None


def question_of(request: ScoreRequest) -> Question:
    """The question behind a request."""
    return Question(request.user_id, None if request.at is None else microseconds(request.at))


def query_of(
    questions: Sequence[Question],
    histories: Sequence[Sequence[SequenceEvent]],
    quantiles: tuple[float, ...],
    candidates: Candidates | None = None,
) -> tuple[Context, Query]:
    """One stack and one row a question, in the order given."""
    lengths = [len(history) for history in histories]
    now = [now_of(question, history) for question, history in zip(questions, histories, strict=True)]
    query = Query(
        stack=np.arange(len(questions), dtype=np.int64),
        visible=np.array(lengths, np.int64),
        now=np.array([at or 0 for at in now], np.int64),
        quantiles=quantiles,
        candidates=candidates,
    )
    return context_of(histories), query


def candidates_of(lists: Sequence[Sequence[str]]) -> Candidates:
    """[B, C] of B lists, the shorter ones padded."""
    shape = (len(lists), max(map(len, lists)))
    item, mask = np.full(shape, None, np.object_), np.zeros(shape, np.bool_)
    for row, names in enumerate(lists):
        item[row, : len(names)], mask[row, : len(names)] = strings(names), True
    return Candidates(item=item, mask=mask, log_q=np.zeros(shape))


def now_of(question: Question, history: Sequence[SequenceEvent]) -> int | None:
    """Event time the question stands at, microseconds; None: nobody said, and nothing is known of the user."""
    if question.at is not None:
        return question.at
    return history[-1].at if history else None


def microseconds(at: datetime) -> int:
    """Microseconds since 1970 of a time with a zone."""
    return (at - _EPOCH) // _MICROSECOND


def time_of(at: int, seconds: float = 0.0) -> datetime | None:
    """The UTC time `seconds` after `at` microseconds since 1970; None where no calendar reaches."""
    try:
        return _EPOCH + timedelta(microseconds=at, seconds=seconds)
    except OverflowError:
        return None
