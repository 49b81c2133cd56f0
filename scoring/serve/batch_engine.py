"""The thread that answers: a batch of requests, one read of Postgres, one pass of the model.

A batch uses one model and one watermark from its first to its last request. Whatever goes wrong in it, every
request of it is told, and the thread goes on.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import structlog
import torch

from contracts.scoring import Answer, ScoreRequest
from runtime import metrics
from runtime.redaction import said
from scoring.errors import EXPIRED, Failed, NotReady, Refusal, Stopping
from scoring.heads import candidate_ranking, next_event
from scoring.heads.request_decoding import misfit
from scoring.serve.live_model import Model
from scoring.serve.model_loader import Shelf
from scoring.serve.request_queue import Done, RequestQueue, Waiting
from scoring.serve.state_reader import Seen, StateReader
from storage.engine import Unavailable, Unfit

PROBE_S = 1.0
"""Without requests Postgres is asked so often whether it is there."""
_PAUSE_FIRST_S, _PAUSE_LONGEST_S = 0.1, 5.0
_AGAIN = "ask again: the connection is tried again by itself"
_log = structlog.get_logger(__name__)
T = TypeVar("T")


class Engine:
    """Answers requests (`submit`) until it is closed."""

    def __init__(
        self,
        *,
        intake: RequestQueue,
        reader: StateReader,
        shelf: Shelf,
        threads: int,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """
        :param threads: torch threads of the model's pass.
        :param now: what deadlines are compared with.
        """
        self.read_at = float("-inf")
        """When Postgres last answered, by `clock`."""
        self.trouble = "Postgres was not asked yet"
        """Why user state cannot be read; "" while it can."""
        self._intake = intake
        self._reader = reader
        self._shelf = shelf
        self._threads = threads
        self._clock = clock
        self._now = now
        self._failures = 0
        self._away = NotReady(self.trouble, where="Postgres", hint=_AGAIN)
        self._again_at = float("-inf")
        self._in_hand: list[Waiting] = []
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Answers from now on."""
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, request: ScoreRequest, done: Done) -> None:
        """Has a request answered: `done` is called with the answer or the refusal.

        :raises Overloaded, Stopping: it was not even queued.
        """
        self._intake.put(Waiting(request, done))

    def close(self, timeout_s: float) -> None:
        """Refuses new requests, finishes those it has, and after `timeout_s` refuses the rest."""
        self._intake.close()
        self._thread.join(timeout_s)
        rest = list(self._in_hand)
        while batch := self._intake.take(0.0):
            rest += batch
        _tell_all(rest, Stopping("the process stopped before it could answer", where="score", hint="ask another one"))

    # -- the thread --

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        while True:
            pause_s = min(max(self._again_at - self._clock(), 0.0), PROBE_S) if self._failures else PROBE_S
            taken = self._intake.take(pause_s)
            self._in_hand = self._still_wanted(taken)
            metrics.score_queue.set(len(self._intake))
            if not taken and self._intake.closed:
                return
            if taken and not self._in_hand:
                continue
            try:
                self._handle(self._in_hand)
            except Exception as error:  # the thread must go on, and nobody may wait for ever
                _log.exception("score.failed", requests=len(self._in_hand))
                self.trouble = said(error)
                _tell_all(self._in_hand, _broken())
            self._in_hand = []

    def _still_wanted(self, batch: list[Waiting]) -> list[Waiting]:
        """Those whose deadline has not passed; the others are told."""
        if all(waiting.request.deadline is None for waiting in batch):
            return batch
        now = self._now()
        late = [waiting for waiting in batch if waiting.request.deadline is not None and waiting.request.deadline < now]
        _tell_all(late, EXPIRED)
        return [waiting for waiting in batch if waiting not in late]

    def _handle(self, batch: list[Waiting]) -> None:
        """Answers a batch; an empty one only asks whether Postgres is there."""
        if self._failures and self._clock() < self._again_at:
            _tell_all(batch, self._away)
            return
        model = self._shelf.current
        if model is None or not batch:
            if self._guarded(lambda: self._read(lambda reader: reader.histories([])), batch):
                _tell_all(batch, self._shelf.absence)
            return
        metrics.score_batch_rows.observe(len(batch))
        self._guarded(lambda: self._answer(model, batch), batch)

    def _guarded(self, work: Callable[[], object], batch: list[Waiting]) -> bool:
        """Runs what reads Postgres; while it is away, everybody is told at once and tries are spaced out."""
        try:
            work()
        except Exception as error:
            if batch and not isinstance(error, Unavailable | Unfit | NotReady):
                raise
            if not self._failures:
                _log.warning("score.postgres_away", error=error)
            self._failures += 1
            pause_s = min(_PAUSE_FIRST_S * 2 ** min(self._failures, 10), _PAUSE_LONGEST_S)
            self._again_at = self._clock() + pause_s * random.uniform(0.5, 1.0)
            self._away = _unreadable(error)
            self.trouble = self._away.what
            _tell_all(batch, self._away)
            return False
        return True

    def _read(self, ask: Callable[[StateReader], Seen[T]]) -> Seen[T]:
        seen = ask(self._reader)
        if self._failures:
            _log.info("score.postgres_back", failures=self._failures)
        self._failures, self.trouble, self.read_at = 0, "", self._clock()
        self._shelf.nudge(seen.standing.newest_live)
        if seen.standing.staleness_s is not None:
            metrics.staleness.set(seen.standing.staleness_s)
        return seen

    def _answer(self, model: Model, batch: list[Waiting]) -> None:
        """:raises Unavailable, NotReady: nobody was told yet."""
        try:
            replies = self._replies(model, [waiting.request for waiting in batch])
        except (Unavailable, Unfit, NotReady):
            raise
        except Exception:
            if len(batch) == 1:
                raise
            _log.warning("score.batch_failed", requests=len(batch), exc_info=True)
            for waiting in batch:  # one of them may be what breaks the others
                self._alone(model, waiting)
            return
        for waiting, reply in zip(batch, replies, strict=True):
            waiting.done(reply)

    def _alone(self, model: Model, waiting: Waiting) -> None:
        try:
            self._answer(model, [waiting])
        except (Unavailable, Unfit, NotReady) as error:
            waiting.done(_unreadable(error))
        except Exception:
            _log.exception("score.failed", requests=1)
            waiting.done(_broken())

    def _replies(self, model: Model, requests: Sequence[ScoreRequest]) -> list[Answer | Refusal]:
        """Of the kind the model's learner answers; a request of the other kind is refused."""
        unfit = [misfit(request, model.info.learner, ranks=model.ranks) for request in requests]
        fit = [request for request, why in zip(requests, unfit, strict=True) if why is None]
        kind = candidate_ranking.replies if model.ranks else next_event.replies
        found = iter(kind(model, fit, self._read) if fit else ())
        replies: list[Answer | Refusal] = [why or next(found) for why in unfit]
        for request, reply in zip(requests, replies, strict=True):
            if isinstance(reply, Failed):
                _log.error("score.not_a_number", snapshot=model.snapshot.id, user_id=request.user_id)
        return replies


def _unreadable(error: Exception) -> NotReady:
    if isinstance(error, NotReady):
        return error
    return NotReady(f"user state cannot be read: {said(error)}", where="Postgres", hint=_AGAIN)


def _broken() -> Failed:
    return Failed("something broke", where="score", hint="ask again once; if it fails again, its log says what broke")


def _tell_all(batch: Sequence[Waiting], refusal: Refusal) -> None:
    for waiting in batch:
        waiting.done(refusal)
