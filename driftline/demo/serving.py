"""The act of `score`: what comes next for a user, and when."""

from __future__ import annotations

from contracts.scoring import ScoreAnswer
from driftline.demo.pages import answers, free_port, post
from driftline.demo.play import Play


def score(play: Play) -> None:
    """One question, from the newest snapshot and the newest state of the user."""
    facts, port = play.facts, free_port()
    worker = play.players.start("score", "--port", str(port))
    url = f"http://127.0.0.1:{port}"
    play.players.until("score is ready", lambda: answers(f"{url}/readyz"), seconds=play.plot.patience_s)
    facts.user = play.players.ask("user", play.plot.asked)
    question = {"user_id": play.plot.asked, "request_id": "demo", "types": 3}
    facts.answer, facts.answer_ms = post(f"{url}/v1/score", question, ScoreAnswer)
    play.say(f"score answered for user {play.plot.asked}")
    worker.kill()
