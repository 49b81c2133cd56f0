"""What an answer says, over HTTP, from hand-made sequences."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from learners.models.prompttpp.learner import PromptTPP

if TYPE_CHECKING:
    from tests.integration.score.conftest import Serve, World

Answer = dict[str, Any]
CLOCKED = {"staleness_seconds", "watermark"}


def prediction(answer: Answer) -> Answer:
    """Without what moves by itself."""
    return {name: value for name, value in answer.items() if name not in CLOCKED}


def close(one: Answer, other: Answer) -> bool:
    """Equal up to what another batch shape changes."""
    return (
        {n: one[n] for n in ("user_id", "asked_at", "events_seen", "snapshot_id")}
        == {n: other[n] for n in ("user_id", "asked_at", "events_seen", "snapshot_id")}
        and [q["seconds"] for q in one["next_event"]]
        == pytest.approx([q["seconds"] for q in other["next_event"]], rel=1e-5, abs=1e-6)
        and {t["type"]: t["probability"] for t in one["next_type"]}
        == pytest.approx({t["type"]: t["probability"] for t in other["next_type"]}, rel=1e-5, abs=1e-6)
    )


def test_quantiles_increase_and_types_sum_to_one(serve: Serve, people: list[str]) -> None:
    answer = serve().ask("user-7", quantiles=[0.05, 0.25, 0.5, 0.75, 0.95], types=3, request_id="r1")
    seconds = [one["seconds"] for one in answer["next_event"]]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    times = [datetime.fromisoformat(one["at"]) for one in answer["next_event"]]
    asked = datetime.fromisoformat(answer["asked_at"])
    assert [(time - asked).total_seconds() for time in times] == pytest.approx(seconds, abs=1e-6)
    assert len(answer["next_type"]) == 3
    assert sum(one["probability"] for one in answer["next_type"]) + answer["other_types"] == pytest.approx(1, abs=1e-6)
    assert (answer["user_id"], answer["request_id"], answer["events_seen"]) == ("user-7", "r1", 8)


def test_the_same_request_twice_has_the_same_answer(serve: Serve, people: list[str]) -> None:
    running = serve()
    assert prediction(running.ask("user-3")) == prediction(running.ask("user-3"))


def test_an_answer_says_which_snapshot_and_which_watermark(serve: Serve, world: World, people: list[str]) -> None:
    world.retire_and_go_on("topic-2")
    world.add(("user-3", 900.0, "type-1"), ("user-3", 901.0, "type-2"))
    answer = serve().ask("user-3")
    assert (answer["snapshot_id"], answer["snapshot_step"]) == ("prompttpp-1-0000000001", 1)
    assert (answer["learner"], answer["learner_version"]) == ("prompttpp", PromptTPP.version)
    assert answer["watermark"] == [{"topic": "events.user", "partition": 0, "topic_id": "topic-2", "next_offset": 2}]
    assert 0 <= answer["staleness_seconds"] < 60
    assert answer["events_seen"] == 6  # four came on the stream that was retired


def test_models_are_listed(serve: Serve, people: list[str]) -> None:
    (model,) = serve().client.get("/v1/models").json()
    assert (model["learner"], model["snapshot_step"], model["device"]) == ("prompttpp", 1, "cpu")


def test_a_question_about_the_past_ignores_what_came_later(serve: Serve, world: World) -> None:
    world.publish(1)
    world.add(("ann", 1.0, "type-1"), ("ann", 2.0, "type-2"))
    running = serve()
    newest = running.ask("ann")
    asked = "2026-01-01T03:30:00+01:00"  # half an hour after the second event
    before = running.ask("ann", at=asked)
    world.add(("ann", 2.5, "type-3"), ("ann", 4.0, "type-0"))
    assert prediction(running.ask("ann", at=asked)) == prediction(before)  # strictly before: 02:30 is not seen
    assert before["asked_at"] == "2026-01-01T02:30:00Z"
    assert (before["events_seen"], before["last_event_at"]) == (2, "2026-01-01T02:00:00Z")
    assert before["next_event"] != newest["next_event"]  # half an hour of silence says something
    assert running.ask("ann")["events_seen"] == 4


def test_a_history_is_cut_to_what_the_learner_looks_at(serve: Serve, people: list[str]) -> None:
    assert serve().ask("user-11")["events_seen"] == 8  # of 12


def test_an_unknown_user_is_answered(serve: Serve, people: list[str]) -> None:
    answer = serve().ask("nobody")
    assert (answer["events_seen"], answer["last_event_at"]) == (0, None)
    assert answer["asked_at"] == "2026-01-01T00:00:00Z"  # the record time the snapshot has learnt up to
    assert [one["at"] for one in answer["next_event"]] == [None, None, None]
    assert all(one["seconds"] > 0 for one in answer["next_event"])


def test_an_unknown_user_asked_about_at_a_time_gets_times(serve: Serve, people: list[str]) -> None:
    answer = serve().ask("nobody", at="2026-02-01T00:00:00Z")
    assert answer["asked_at"] == "2026-02-01T00:00:00Z"
    assert all(one["at"] > answer["asked_at"] for one in answer["next_event"])


def test_sixty_four_clients_at_once_get_what_each_alone_gets(serve: Serve, people: list[str]) -> None:
    running = serve(batch_wait_s=0.02)
    quantiles = [[0.1, 0.5, 0.9], [0.25]]
    asked = [(user, quantiles[n % 2]) for n, user in enumerate([*people[:62], "nobody", people[0]])]
    alone = [running.ask(user, quantiles=wanted) for user, wanted in asked]
    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(lambda one: running.ask(one[0], quantiles=one[1]), asked))
    assert all(close(one, other) for one, other in zip(alone, together, strict=True))
