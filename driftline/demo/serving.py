"""The act of `score`, twice: what comes next for a user and when; and which items the user would choose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from contracts.scoring import RankingAnswer, ScoreAnswer
from driftline.demo.http_client import answers, free_port, post
from driftline.demo.stage import Play
from driftline.simulate.encoding import item_id

CANDIDATES = 200
"""Items to rank: those that were on sale from the beginning."""


def next_event(play: Play) -> None:
    """One question, from PromptTPP's newest snapshot and the newest state of the user."""
    facts, user = play.facts, play.plot.asked
    facts.user = play.players.ask("user", user)
    with _worker(play, "prompttpp") as url:
        question = {"user_id": user, "request_id": "demo", "types": 3}
        facts.answer, facts.answer_ms = post(url, question, ScoreAnswer)
    play.say(f"score answered what comes next for user {user}")


def ranking(play: Play) -> None:
    """One question more, from SDIM's newest snapshot and the signature table that its `train` wrote."""
    facts, user = play.facts, play.plot.asked
    with _worker(play, "sdim") as url:
        question = {"user_id": user, "candidates": [item_id(item) for item in range(CANDIDATES)], "top": 5}
        ranked, facts.ranking_ms = post(url, question, RankingAnswer)
        facts.ranking = ranked
    play.say(f"score, with SDIM, ranked {ranked.candidates} items for the same user")


@contextmanager
def _worker(play: Play, learner: str) -> Iterator[str]:
    """A `score` of a learner, while the block lasts; gives the URL it answers at."""
    port = free_port()
    worker = play.players.start("score", "--learner", learner, "--port", str(port), name=f"score-{learner}")
    url = f"http://127.0.0.1:{port}"
    play.players.until("score is ready", lambda: answers(f"{url}/readyz"), seconds=play.plot.patience_s)
    yield f"{url}/v1/score"
    worker.kill()
