"""A served ranking is the one that the user's whole sequence gives, whatever happened to the stored tables."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Connection

from contexts.batch_builder import context_of
from contracts import topics
from contracts.scoring import RankingResult, ScoreFailure
from learners.contract.batch import Candidates, Query
from learners.contract.made_up.streams import START
from learners.models.sdim.network import ask
from scoring.heads import user_state
from storage.log import offsets
from storage.privacy import erasure
from storage.sequences import item_events, user_sequences
from storage.sequences.item_events import BehaviourAsk, Behaviours
from storage.sequences.user_sequences import HistoryAsk
from tests.integration.feeding import Sender
from tests.integration.learning import Given, School
from tests.integration.score.conftest import Running, served
from tests.integration.score.test_score_over_kafka import CLOCKED, MakeInbox, call, inbox_of, prediction
from tests.integration.test_train_ranking import (
    CONFIG,
    FOREVER,
    USERS,
    killed,
    learn,
    published_of,
    school,
    sequence,
    shop,
    write,
)

if TYPE_CHECKING:
    from runtime.kafka import KafkaConfig

__all__ = ["inbox_of", "school"]

ITEMS = [f"item {n}" for n in range(0, 40, 3)] + ["never sold"]
Answer = dict[str, Any]
ServeSchool = Callable[..., Running]


@pytest.fixture
def serve(school: School) -> Iterator[ServeSchool]:
    """Call it with settings: a `score` of SDIM over the school, awaited until it is ready."""
    with ExitStack() as servers:

        def start(*, kafka: KafkaConfig | None = None, **settings: Any) -> Running:
            settings = {"learner": "sdim", **settings}
            return servers.enter_context(served(school.database, school.folder, True, settings, kafka))

        yield start


def rank(running: Running, user: str, items: Sequence[str] = ITEMS, **more: Any) -> Answer:
    return running.ask(user, candidates=list(items), **more)


def expected(school: School, answer: Answer, *, before: int = FOREVER) -> dict[str, float]:
    """Logits of ITEMS from all that the sequence holds of the user, by the version inside the answer's snapshot."""
    with school.engine.begin() as connection:
        asked = HistoryAsk(user=answer["user_id"], before=before, last_n=100_000)
        [events] = user_sequences.histories(connection, [asked], offsets.watermark(connection))
    query = Query(stack=np.zeros(1, np.int64), visible=np.array([len(events)]), now=np.zeros(1, np.int64))
    published = published_of(school, answer["snapshot_id"])
    assert answer["embedding"] == published.embedding
    item = np.array([ITEMS], np.object_)
    shown = Candidates(item=item, mask=np.ones(item.shape, np.bool_), log_q=np.zeros(item.shape))
    logits = published.rank(ask(context_of([events]), query, shown, last_n=CONFIG.last_n, short_n=CONFIG.short_n))
    return dict(zip(ITEMS, logits[0].tolist(), strict=True))


def check(school: School, answer: Answer, **asked: Any) -> None:
    """Order and numbers are those of the whole sequence."""
    logits = expected(school, answer, **asked)
    given = {one["item_id"]: one["logit"] for one in answer["ranking"]}
    assert given == pytest.approx(logits, abs=1e-5)
    assert [one["logit"] for one in answer["ranking"]] == sorted(given.values(), reverse=True)
    assert sum(one["probability"] for one in answer["ranking"]) == pytest.approx(1.0)
    assert answer["candidates"] == len(ITEMS)


def check_all(school: School, running: Running, state: str) -> list[Answer]:
    answers = [rank(running, user) for user in USERS]
    assert {answer["state"] for answer in answers} == {state}
    for answer in answers:
        check(school, answer)
    return answers


def test_an_answer_says_how_it_came_by_the_users_past_and_what_it_stands_on(school: School, serve: ServeSchool) -> None:
    shop(school, 200)
    learn(school)
    running = serve()
    answer = rank(running, "user 1", request_id="r1")
    check(school, answer)
    events = sequence(school, "user 1")
    said = ("user_id", "request_id", "learner", "snapshot_id", "state", "cache_updated", "events_seen")
    assert {name: answer[name] for name in said} == {
        "user_id": "user 1",
        "request_id": "r1",
        "learner": "sdim",
        "snapshot_id": school.live()[-1],
        "state": "cache_hit",
        "cache_updated": 0,
        "events_seen": len(events),
    }
    assert datetime.fromisoformat(answer["last_event_at"]) == time_of(events[-1].at)
    assert answer["asked_at"] == answer["last_event_at"]
    assert [place["next_offset"] for place in answer["watermark"] if place["topic"] == topics.USER] == [200, *NOTHING]
    assert 0 <= answer["staleness_seconds"] < 60
    unknown = [one["item_id"] for one in answer["ranking"] if not one["known"]]
    assert "never sold" in unknown
    [model] = running.client.get("/v1/models").json()
    assert (model["answers"], model["embedding"]) == ("ranking", answer["embedding"])


def test_rankings_are_those_of_the_whole_sequence_with_rows_cache_updated_lost_and_of_another_version(
    school: School, serve: ServeSchool
) -> None:
    shop(school, 200)
    learn(school)
    running = serve()
    check_all(school, running, "cache_hit")
    shop(school, 40)  # nobody has learnt them
    for answer in check_all(school, running, "cache_updated"):
        assert 0 < answer["cache_updated"] < 20
    school.query("TRUNCATE signature_table")
    check_all(school, running, "cache_rebuilt")
    before = running.model()
    learn(school)  # publishes, and writes rows of the new version
    running.until(lambda: running.model() != before)
    check_all(school, running, "cache_hit")
    school.query("UPDATE signature_table SET embedding = 'of another time'")
    check_all(school, running, "cache_rebuilt")
    states = _states(running)
    assert states["cache_hit"] >= 2 * len(USERS)
    assert states["cache_rebuilt"] >= 2 * len(USERS)


def test_while_a_new_version_is_published_each_answer_is_whole_in_the_version_it_names(
    school: School, serve: ServeSchool
) -> None:
    shop(school, 120)
    learn(school)
    running = serve()
    shop(school, 120)
    over = threading.Event()

    def load(user: str) -> list[Answer]:
        found = []
        while not over.is_set():
            found.append(rank(running, user))
        return found

    with ThreadPoolExecutor(3) as pool:
        loads = [pool.submit(load, user) for user in USERS[:3]]
        try:
            first = running.model()
            learn(school)
            running.until(lambda: running.model() != first)
            rank(running, USERS[0])
        finally:
            over.set()
    answers = [answer for one in loads for answer in one.result()]
    assert len({answer["embedding"] for answer in answers}) == 2
    kinds = {(a["user_id"], a["snapshot_id"], a["state"], a["cache_updated"]): a for a in answers}
    assert {"cache_updated", "cache_hit"} <= {state for _, _, state, _ in kinds}
    for answer in kinds.values():
        check(school, answer)


def test_across_kills_of_train_and_its_return(school: School, serve: ServeSchool) -> None:
    shop(school, 120)
    learn(school)
    running = serve()
    shop(school, 80)
    for failpoint in ("train.after_step:5", "train.before_live"):
        killed(school, failpoint)
        check_all(school, running, "cache_updated")
    before = running.model()
    learn(school)
    running.until(lambda: running.model() != before)
    check_all(school, running, "cache_hit")


def test_late_behaviours_and_questions_about_the_past(school: School, serve: ServeSchool) -> None:
    shop(school, 200)
    learn(school)
    running = serve()
    events = sequence(school, "user 0")
    late = [events[3].at + 1, events[-2].at]
    write(school, [Given(200 + n, 10**15, at, "user 0", "purchase", item="item 6") for n, at in enumerate(late)])
    answer = rank(running, "user 0")
    check(school, answer)
    assert (answer["state"], answer["cache_updated"], answer["events_seen"]) == ("cache_updated", 2, len(events) + 2)
    past = events[len(events) // 2].at
    answer = rank(running, "user 0", at=time_of(past).isoformat())
    check(school, answer, before=past)
    assert answer["state"] == "cache_rebuilt", "the row holds what came later"
    assert answer["events_seen"] == 1 + len([one for one in events if one.at < past])
    future = events[-1].at + 10**12
    assert rank(running, "user 0", at=time_of(future).isoformat())["state"] == "cache_updated"


def test_a_window_that_moved_further_than_its_row_can_tell_is_built_anew(school: School, serve: ServeSchool) -> None:
    count = CONFIG.last_n + 20

    def buy(first: int, rows: int) -> None:
        given = range(first, first + rows)
        write(school, [Given(n, n, START + n * 10**6, "ann", "purchase", item=f"item {n * 7 % 40}") for n in given])

    buy(0, count)
    learn(school)
    running = serve()
    for more, state in ((0, "cache_hit"), (CONFIG.reserve, "cache_updated"), (1, "cache_rebuilt")):
        buy(count, more) if more else None
        count += more
        answer = rank(running, "ann")
        assert (answer["state"], answer["events_seen"]) == (state, CONFIG.last_n)
        check(school, answer)


def test_an_erased_user_is_like_somebody_who_never_was(school: School, serve: ServeSchool) -> None:
    shop(school, 200)
    learn(school)
    running = serve()
    known = rank(running, "user 2")
    erasure.erase(school.engine, ["user 2"])
    erased, nobody = rank(running, "user 2"), rank(running, "nobody")
    moving = ("user_id", "staleness_seconds")
    assert {n: v for n, v in erased.items() if n not in moving} == {n: v for n, v in nobody.items() if n not in moving}
    assert (erased["state"], erased["events_seen"], erased["last_event_at"]) == ("no_history", 0, None)
    assert erased["ranking"] != known["ranking"]
    check(school, erased)
    for user in ("user 1", "user 3"):
        check(school, rank(running, user))


@pytest.mark.parametrize("spoil", ["sums = '\\x00'", "counts = ''", "shape = '{1,1,1}'", "shape = '{8,16,32}'"])
def test_a_spoilt_row_is_not_ranked_from(school: School, serve: ServeSchool, spoil: str) -> None:
    shop(school, 80)
    learn(school)
    running = serve()
    school.query(f"UPDATE signature_table SET {spoil}")
    check_all(school, running, "cache_rebuilt")


def test_many_histories_at_once_are_read_in_portions(
    school: School, serve: ServeSchool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if windows were so long that a batch of them did not fit into memory."""
    shop(school, 120)
    learn(school)
    school.query("DELETE FROM signature_table WHERE user_id % 2 = 0")
    running, real, portions = serve(batch_wait_s=0.2), item_events.read, list[int]()

    def read(connection: Connection, asks: Sequence[BehaviourAsk]) -> list[Behaviours]:
        portions.append(sum(ask.newest for ask in asks))
        return real(connection, asks)

    monkeypatch.setattr(item_events, "read", read)
    monkeypatch.setattr(user_state, "_PORTION", CONFIG.last_n + CONFIG.short_n)
    with ThreadPoolExecutor(len(USERS)) as pool:
        answers = list(pool.map(lambda user: rank(running, user), USERS))
    assert max(portions) <= CONFIG.last_n + CONFIG.short_n
    assert len(portions) > 1
    assert {answer["state"] for answer in answers} == {"cache_hit", "cache_rebuilt"}
    for answer in answers:
        check(school, answer)


def test_a_long_history_is_not_read_while_there_is_a_row(
    school: School, serve: ServeSchool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = item_events.read, list[BehaviourAsk]()

    def read(connection: Connection, asks: Sequence[BehaviourAsk]) -> list[Behaviours]:
        asked.extend(asks)
        return real(connection, asks)

    monkeypatch.setattr(item_events, "read", read)
    shop(school, 200)
    learn(school)
    running = serve()
    shop(school, 20)
    answers = [rank(running, user) for user in USERS]
    assert {answer["state"] for answer in answers} <= {"cache_hit", "cache_updated"}
    assert {one.newest for one in asked} == {CONFIG.short_n}


def test_row_and_behaviours_are_read_in_one_repeatable_read_transaction(
    school: School, serve: ServeSchool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is committed, or lost, between two of its statements is not seen."""
    shop(school, 80)
    learn(school)
    running = serve()
    real = item_events.read

    def read(connection: Connection, asks: Sequence[BehaviourAsk]) -> list[Behaviours]:
        if asks:
            shop(school, 20)
        return real(connection, asks)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(item_events, "read", read)
        during = rank(running, "user 1")
    after = rank(running, "user 1")
    assert (during["state"], after["state"]) == ("cache_hit", "cache_updated")
    assert next_offset(after) == next_offset(during) + 20
    check(school, after)


def test_the_best_come_first_as_many_as_asked_for_and_an_item_named_twice_counts_once(
    school: School, serve: ServeSchool
) -> None:
    shop(school, 120)
    learn(school)
    running = serve()
    whole = rank(running, "user 1")
    some = rank(running, "user 1", [*ITEMS, *ITEMS[:5]], top=3)
    assert some["ranking"] == whole["ranking"][:3]
    assert some["candidates"] == len(ITEMS)
    strangers = rank(running, "user 1", ["zeta", "alpha", "beta"])
    assert [one["item_id"] for one in strangers["ranking"]] == ["zeta", "alpha", "beta"], "of equals the first named"


def test_users_asked_at_once_get_what_each_alone_gets(school: School, serve: ServeSchool) -> None:
    shop(school, 200)
    learn(school)
    shop(school, 20)
    running = serve(batch_wait_s=0.05)
    asked = [(user, ITEMS[: 1 + n]) for user in [*USERS, "nobody"] for n in (0, 3, len(ITEMS) - 1)]
    asked += [(USERS[0], [f"item {n}" for n in range(1000)])]
    alone = [rank(running, user, items) for user, items in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda one: rank(running, *one), asked))
    for one, other in zip(alone, together, strict=True):
        logits = {item["item_id"]: item["logit"] for item in other["ranking"]}
        assert logits == pytest.approx({item["item_id"]: item["logit"] for item in one["ranking"]}, abs=1e-5)
        assert {n: one[n] for n in ("user_id", "state", "cache_updated", "candidates")} == {
            n: other[n] for n in ("user_id", "state", "cache_updated", "candidates")
        }


@pytest.mark.parametrize(
    ("request_", "where", "said"),
    [
        ({}, "$.candidates", "learner 'sdim' ranks candidates, and there are none"),
        ({"top": 3}, "$.top", "there are no candidates to name the best of"),
        ({"candidates": []}, "request body", "$.candidates"),
        ({"candidates": ["i"] * 1001}, "request body", "$.candidates"),
        ({"candidates": ["i"], "top": 0}, "request body", "$.top"),
        ({"candidates": [""]}, "request body", "$.candidates[0]"),
        ({"candidates": [7]}, "request body", "$.candidates[0]"),
    ],
)
def test_a_request_that_cannot_be_ranked_is_told_why(
    ranking_service: Running, request_: dict[str, Any], where: str, said: str
) -> None:
    reply = ranking_service.post("ann", **request_)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["reason"], error["where"]) == ("invalid", where)
    assert said in error["message"]
    assert error["hint"]


@pytest.fixture
def ranking_service(school: School, serve: ServeSchool) -> Running:
    shop(school, 16)
    learn(school)
    return serve()


def test_a_ranking_on_kafka_is_that_over_http(school: School, serve: ServeSchool, inbox_of: MakeInbox) -> None:
    shop(school, 120)
    learn(school)
    running = serve(kafka=school.config, group=f"{school.config.prefix}score")
    sender = Sender(school.config)
    call(sender, "user 1", request_id="q-1", candidates=tuple(ITEMS), top=5)
    call(sender, "user 1", request_id="q-2")
    found = {one.request_id: one for one in inbox_of(school.config).until(2)}
    ranked, refused = found["q-1"], found["q-2"]
    assert isinstance(ranked, RankingResult)
    over_http = rank(running, "user 1", request_id="q-1", top=5)
    told = {name: value for name, value in prediction(ranked).items() if name not in ("schema", "outcome")}
    assert told == {name: value for name, value in over_http.items() if name not in CLOCKED}
    assert isinstance(refused, ScoreFailure)
    assert (refused.reason, refused.where) == ("invalid", "$.candidates")


def test_a_learner_without_tables_ranks_from_the_sequence(school: School, serve: ServeSchool) -> None:
    shop(school, 80)
    school.train(learner="own_count")
    answer = rank(serve(learner="own_count"), "user 1")
    assert (answer["state"], answer["embedding"]) == ("from_history", None)
    assert {one["known"] for one in answer["ranking"]} == {None}
    assert sum(one["probability"] for one in answer["ranking"]) == pytest.approx(1.0)
    bought = [event.item for event in sequence(school, "user 1") if event.item in ITEMS]
    assert answer["ranking"][0]["item_id"] in bought


NOTHING = [0] * 3
"""Next offsets of the topic's other partitions."""


def next_offset(answer: Answer) -> int:
    return sum(place["next_offset"] for place in answer["watermark"])


def time_of(at: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)


def _states(running: Running) -> dict[str, float]:
    families = text_string_to_metric_families(running.client.get("/metrics").text)
    found = [sample for family in families for sample in family.samples]
    return {s.labels["state"]: s.value for s in found if s.name == "driftline_score_user_states_total"}
