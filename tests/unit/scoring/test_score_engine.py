"""Whatever breaks in a batch, everybody is told and the thread goes on."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from structlog.testing import capture_logs

from contracts.scoring import ScoreAnswer, ScoreRequest
from learners.contract.batch import Batch, Context, Query, Target
from learners.contract.needs import Needs
from learners.contract.protocol import Losses, Prediction, Report, State
from scoring.errors import Failed, Invalid, NotReady, Refusal
from scoring.serve.batch_engine import Engine
from scoring.serve.live_model import Model, device_for
from scoring.serve.model_loader import Shelf
from scoring.serve.request_queue import RequestQueue
from scoring.serve.state_reader import Seen, StateReader
from storage.engine import Unavailable
from storage.read_point import Standing
from storage.sequences.user_sequences import HistoryAsk, SequenceEvent

if TYPE_CHECKING:
    from tests.unit.scoring.conftest import MakeModel

Reply = ScoreAnswer | Refusal


class StubLearner:
    """Answers 1 second to everybody, NaN to who asks as of the 13th microsecond."""

    name = "stub"
    version = "1"
    needs = Needs(last_n=4)

    def __init__(self) -> None:
        self.rows: list[int] = []

    def predict(self, context: Context, query: Query) -> Prediction:
        self.rows.append(len(query))
        seconds = torch.ones((len(query), len(query.quantiles)), dtype=torch.float64)
        seconds[torch.from_numpy(query.now == 13)] = torch.nan
        return Prediction(
            quantiles=seconds,
            types=("a", "\0unknown"),
            type_log_probs=torch.full((len(query), 2), 0.5).log(),
            memo=None,
        )

    def score(self, prediction: Prediction, target: Target) -> Losses:
        raise NotImplementedError

    def learn(self, batch: Batch, prediction: Prediction | None = None) -> Report:
        raise NotImplementedError

    def forget(self, users: Container[str]) -> None:
        raise NotImplementedError

    def state(self) -> State:
        raise NotImplementedError

    serving_state = state

    def load(self, state: State) -> None:
        raise NotImplementedError


@dataclass
class StubReader:
    """Postgres as the test wants it: raises what `trouble` says for the asks given."""

    trouble: Callable[[Sequence[HistoryAsk]], Exception | None] = lambda asks: None
    reads: list[list[str]] = field(default_factory=list)

    def histories(self, asks: Sequence[HistoryAsk], *, items_only: bool = False) -> Seen[Sequence[SequenceEvent]]:
        self.reads.append([ask.user for ask in asks])
        if error := self.trouble(asks):
            raise error
        standing = Standing(standby=False, newest_live=None, streams=[], staleness_s=None)
        return Seen(standing=standing, found=[[] for _ in asks])


@dataclass
class StubShelf:
    current: Model | None
    absence: NotReady = field(default_factory=lambda: NotReady("no snapshot", where="learner stub", hint="train it"))

    def nudge(self, newest_live: str | None) -> None: ...


class Rig:
    """An engine over stubs; `ask` waits for all replies of one batch."""

    def __init__(self, engine: Engine, learner: StubLearner, reader: StubReader) -> None:
        self.engine, self.learner, self.reader = engine, learner, reader

    def ask(self, *requests: ScoreRequest) -> list[Reply]:
        replies: SimpleQueue[tuple[int, Reply]] = SimpleQueue()
        for n, request in enumerate(requests):
            self.engine.submit(request, lambda reply, n=n: replies.put((n, reply)))  # type: ignore[misc]
        found = [replies.get(timeout=10) for _ in requests]
        return [reply for _, reply in sorted(found, key=lambda one: one[0])]


Bench = Callable[..., AbstractContextManager[Rig]]


@pytest.fixture
def bench(make_model: MakeModel) -> Bench:
    """Call it with a reader: an engine over it that runs while the block does."""

    @contextmanager
    def running(reader: StubReader, *, model: bool = True, batch: int = 1) -> Iterator[Rig]:
        learner = StubLearner()
        engine = Engine(
            intake=RequestQueue(batch_size=batch, batch_wait_s=10.0, max_queue=100),
            reader=cast(StateReader, reader),
            shelf=cast(Shelf, StubShelf(make_model(learner) if model else None)),
            threads=1,
        )
        engine.start()
        try:
            yield Rig(engine, learner, reader)
        finally:
            engine.close(10)
            assert not engine.is_alive()

    return running


def ask(user: str, **more: Any) -> ScoreRequest:
    return ScoreRequest(user_id=user, **more)


def poisoned(asks: Sequence[HistoryAsk]) -> Exception | None:
    return ValueError("poison") if any(one.user == "poison" for one in asks) else None


def test_one_read_and_one_pass_serve_a_batch_and_a_user_asked_twice_is_one_row(bench: Bench) -> None:
    with bench(StubReader(), batch=3) as one:
        replies = one.ask(ask("ann"), ask("bob", types=1), ask("ann", request_id="again"))
    assert [reply.request_id for reply in replies if isinstance(reply, ScoreAnswer)] == [None, None, "again"]
    assert [reads for reads in one.reader.reads if reads] == [["ann", "bob"]]
    assert one.learner.rows == [2]


def test_each_set_of_quantiles_is_a_pass_of_its_own(bench: Bench) -> None:
    with bench(StubReader(), batch=3) as one:
        replies = one.ask(ask("ann"), ask("ann", quantiles=(0.5,)), ask("bob", quantiles=(0.5,)))
    assert [len(reply.next_event) for reply in replies if isinstance(reply, ScoreAnswer)] == [3, 1, 1]
    assert one.learner.rows == [1, 2]


def test_a_request_that_breaks_a_batch_fails_alone(bench: Bench) -> None:
    with capture_logs() as logs, bench(StubReader(poisoned), batch=3) as one:
        replies = one.ask(ask("ann"), ask("poison"), ask("bob"))
    assert [type(reply) for reply in replies] == [ScoreAnswer, Failed, ScoreAnswer]
    assert [line["log_level"] for line in logs if line["event"] == "score.failed"] == ["error"]


def test_a_prediction_that_is_no_number_fails_alone(bench: Bench) -> None:
    nan_at = datetime(1970, 1, 1, microsecond=13, tzinfo=UTC)
    with capture_logs() as logs, bench(StubReader(), batch=2) as one:
        replies = one.ask(ask("ann", at=nan_at), ask("bob"))
    assert [type(reply) for reply in replies] == [Failed, ScoreAnswer]
    assert [line["event"] for line in logs] == ["score.not_a_number"]


def test_while_postgres_is_away_it_is_asked_seldom_and_everybody_is_told_at_once(bench: Bench) -> None:
    reader = StubReader(lambda asks: Unavailable("no route"))
    with bench(reader) as one:
        replies = [reply for n in range(50) for reply in one.ask(ask(f"user-{n}"))]
        assert "no route" in one.engine.trouble
    assert {type(reply) for reply in replies} == {NotReady}
    said = {(reply.what, reply.where, reply.hint) for reply in replies if isinstance(reply, NotReady)}
    assert said == {
        ("user state cannot be read: no route", "Postgres", "ask again: the connection is tried again by itself")
    }
    assert len(reader.reads) < 10


def test_a_request_of_the_other_kind_is_refused_alone_and_told_where_to_go(bench: Bench) -> None:
    with bench(StubReader(), batch=3) as one:
        first, second, third = one.ask(ask("ann"), ask("bob", candidates=("a",)), ask("cid"))
    assert isinstance(first, ScoreAnswer)
    assert isinstance(third, ScoreAnswer)
    assert isinstance(second, Invalid)
    assert (second.what, second.where) == ("learner 'stub' ranks no candidates", "$.candidates")
    assert "--learner sdim" in (second.hint or "")
    assert [reads for reads in one.reader.reads if reads] == [["ann", "cid"]]


def test_without_a_model_requests_are_asked_to_come_again(bench: Bench) -> None:
    with bench(StubReader(), model=False) as one:
        (reply,) = one.ask(ask("ann"))
    assert isinstance(reply, NotReady)
    assert (reply.what, reply.where, reply.hint) == ("no snapshot", "learner stub", "train it")


def test_a_closed_engine_refuses(bench: Bench) -> None:
    with bench(StubReader()) as one:
        one.engine.close(10)
        with pytest.raises(NotReady, match=r"stopping \[score\]\n  -> ask another one"):
            one.ask(ask("ann"))


def test_a_learner_that_cannot_be_moved_computes_on_the_cpu() -> None:
    learner = StubLearner()
    assert device_for(learner, "auto").type == "cpu"
    with pytest.raises(ValueError, match="on the CPU only"):
        device_for(learner, "cuda")
