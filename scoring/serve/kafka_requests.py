"""The way in over Kafka: `scores.requests` -> the engine's queue -> `scores.results`.

A batch is taken, each request of it settled (answered, or refused for good), the answers acknowledged, and only then
the position moved (`runtime/request_reply.py`). What the process itself lacks (a place in the queue, a
model, Postgres) is waited for: on Kafka nobody is told to come again. A request that nobody waits for so long names a
deadline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Literal

import msgspec
import structlog

from contracts import topics
from contracts.codec import encode
from contracts.scoring import Answer, RankingAnswer, RankingResult, ScoreAnswer, ScoreCall, ScoreFailure, ScoreResult
from runtime import metrics
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Stop, Transient, attempts
from runtime.request_reply import Exchange, Incoming
from runtime.settings import ScoreSettings
from scoring.errors import Expired, Failed, Invalid, NotReady, Overloaded, Refusal, Stopping
from scoring.heads.request_decoding import decode_call
from scoring.serve.request_queue import Submit

_TAKE_S, _LOOK_S, _STAY_S = 0.2, 0.05, 5.0
_AGAIN_S = 0.25
"""Seconds after which a request that met a full queue or an absent model is put in again."""

_log = structlog.get_logger(__name__)


class _Ending(Exception):
    """The process ends with requests in hand: their position has not moved."""


@dataclass
class _Call:
    incoming: Incoming
    id: str
    call: ScoreCall | None
    reply: Answer | Refusal | None = None
    again_at: float = 0.0
    """time.monotonic() of the next try; inf: it is in the engine's hands."""


Done = SimpleQueue[tuple[_Call, Answer | Refusal]]


class Requests:
    """A thread that answers Kafka's requests until it is closed."""

    def __init__(self, *, kafka: KafkaConfig, settings: ScoreSettings, submit: Submit) -> None:
        self.failure: BaseException | None = None
        """Why the thread ended by itself: `TopicMissing`, say."""
        self._kafka, self._settings, self._submit = kafka, settings, submit
        self._stop = Stop()
        self._give_up_at = float("inf")
        self._thread = threading.Thread(target=self._run, name="requests", daemon=True)

    def start(self) -> None:
        """Answers from now on."""
        metrics.score_kafka_up.set(0)
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self, timeout_s: float) -> None:
        """Takes no more, has `timeout_s` to settle what it has in hand, and leaves the group."""
        self._give_up_at = time.monotonic() + timeout_s
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s + 1.0)

    def _run(self) -> None:
        try:
            for attempt in attempts(self._stop):
                try:
                    self._stay()
                except Transient as error:
                    metrics.score_kafka_up.set(0)
                    _log.warning("score.kafka_away", attempt=attempt, error=error)
        except BaseException as error:
            self.failure = error

    def _stay(self) -> None:
        """One stay in the group.

        :raises BrokerAway, TopicMissing, BrokerRefused: see `Exchange`.
        """
        exchange = Exchange(
            self._kafka,
            requests=topics.REQUESTS,
            answers=topics.RESULTS,
            group=self._settings.group,
            session_timeout_s=self._settings.session_timeout_s,
            passage="score.after_answers",
        )
        try:
            metrics.score_kafka_up.set(1)
            while not self._stop.is_set():
                if taken := exchange.take(self._settings.kafka_requests, _TAKE_S):
                    with metrics.score_kafka_seconds.time():
                        self._batch(exchange, taken)
        except _Ending:
            _log.info("score.requests_left", reason="the process ends; they are read again")
        finally:
            exchange.close()

    def _batch(self, exchange: Exchange, taken: Sequence[Incoming]) -> None:
        calls = [_read(incoming, exchange.id_of(incoming)) for incoming in taken]
        self._settle(calls, exchange.stay)
        for call in calls:
            exchange.answer(call.incoming.key, encode(_record(call)))
        exchange.settle(taken)
        for call in calls:
            metrics.score_requests.inc(1, _outcome(call), "kafka")

    def _settle(self, calls: Sequence[_Call], stay: Callable[[], None]) -> None:
        """Has each call answered or refused for good."""
        done: Done = SimpleQueue()
        stayed_at = time.monotonic()
        while any(call.reply is None for call in calls):
            now = time.monotonic()
            if now > self._give_up_at:
                raise _Ending
            if now - stayed_at > _STAY_S:
                stay()
                stayed_at = now
            self._put_in([call for call in calls if call.reply is None and call.again_at <= now], done)
            _collect(done)

    def _put_in(self, calls: Sequence[_Call], done: Done) -> None:
        for call in calls:
            assert call.call is not None, "an unreadable one is refused already"
            call.again_at = float("inf")
            try:
                self._submit(call.call, partial(_tell, done, call))
            except Stopping:
                raise _Ending from None
            except Overloaded:
                call.again_at = time.monotonic() + _AGAIN_S
                return


def _tell(done: Done, call: _Call, reply: Answer | Refusal) -> None:
    done.put((call, reply))


def _collect(done: Done) -> None:
    """Takes the replies that are there; waits a little for the first."""
    wait = True
    while wait or not done.empty():
        try:
            call, reply = done.get(timeout=_LOOK_S)
        except Empty:
            return
        wait = False
        if isinstance(reply, NotReady | Overloaded):
            call.again_at = time.monotonic() + _AGAIN_S
        else:
            call.reply = reply


def _read(incoming: Incoming, place: str) -> _Call:
    try:
        call = decode_call(incoming.value, incoming.key)
    except Invalid as error:
        return _Call(incoming, place, None, reply=error)
    named = call if call.request_id is not None else msgspec.structs.replace(call, request_id=place)
    return _Call(incoming, named.request_id or place, named)


def _outcome(call: _Call) -> Literal["answered", "invalid", "expired", "failed"]:
    reply = call.reply
    return reply.outcome if isinstance(reply, Invalid | Expired | Failed) else "answered"


def _record(call: _Call) -> ScoreResult | RankingResult | ScoreFailure:
    reply = call.reply
    if isinstance(reply, ScoreAnswer):
        return ScoreResult(**msgspec.structs.asdict(reply))
    if isinstance(reply, RankingAnswer):
        return RankingResult(**msgspec.structs.asdict(reply))
    assert isinstance(reply, Invalid | Expired | Failed), "other refusals are tried again"
    return ScoreFailure(
        request_id=call.id,
        user_id=None if call.call is None else call.call.user_id,
        reason=reply.outcome,
        message=reply.what,
        where=reply.where,
        hint=reply.hint,
    )
