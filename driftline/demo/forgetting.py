"""The last acts: a user is erased; then a label comes late, and the erased user comes back in vain."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

from contracts import topics
from contracts.codec import encode
from contracts.records import Label, UserEvent
from driftline.audit.byte_traces import traces
from driftline.demo.processes import Broken
from driftline.demo.stage import Play
from driftline.simulate.scenario import DAY_S, SOURCE, Scenario
from runtime.produce import Outgoing, produce
from storage import overview
from storage.learning import predictions
from storage.learning.predictions import OpenPrediction
from storage.sequences.user_sequences import PAYMENT

LATE = timedelta(days=3)
BRANCH = 1
AFTER_ALL = 2**62
"""A step after all that were ever taken."""
_LOOK_EVERY_S = 0.5


def erase(play: Play) -> None:
    """Looks where the user's id stands, and erases the user."""
    url, erased = play.call.postgres_url, play.plot.erased
    before = traces(url, play.data, erased)
    said = play.players.ask("erase", erased, "--yes", seconds=play.plot.patience_s)
    play.facts.erasure = {"user_id": erased, "erased": said, "before": before}
    play.say(f"{erased} was erased; its id stood in {sum(before.values()):,} rows and files")


def come_late(play: Play) -> None:
    """A label of the asked user's newest payment, three days later; and a new event of the erased user."""
    facts, payment, patience = play.facts, _newest_payment(play), play.plot.patience_s
    issued, before = _prediction(play, payment), _taken(play)
    now = Scenario.start + timedelta(seconds=play.plot.days * DAY_S) + LATE
    _send(play, payment, now)
    play.players.start("ingest", "--port", "0", "--once", "--json", name="ingest-3").done(patience)
    learn = ("train", "--learner", "risk", "--port", "0", "--once", "--json")
    play.players.start(*learn, name="train-risk-2").done(patience)
    facts.late = {
        "payment": payment,
        "known_at": now,
        "seconds_late": (now - payment["at"]).total_seconds(),
        "taken": {name: count - before[name] for name, count in _taken(play).items()},
        "risk_as_issued": issued.risks[0],
        "issued_in_step": issued.step,
        "learnt": not issued.closed and _prediction(play, payment).closed,
    }
    facts.erasure["after"] = _left(play)
    play.say(
        f"a label came {LATE / timedelta(days=1):.0f} days after the stream and was learnt with its payment, whose "
        f"risk had been given as {issued.risks[0]:.1%}; a new event of the erased user was not taken in"
    )


def prove(play: Play) -> None:
    """After all that: is each record counted exactly once?"""
    play.facts.maintain = play.running["maintain"].drained()
    play.facts.audit = play.players.ask("verify", seconds=play.plot.patience_s)
    play.say("verify read every topic and table again with code of its own")


def _left(play: Play) -> dict[str, int]:
    """Where the erased user's id still stands, when `maintain` has had the time to come by: snapshots of payments' risk
    name users, and the old ones go in its next pass after one that has forgotten was published."""
    until = time.monotonic() + play.plot.forgotten_within_s
    while (found := traces(play.call.postgres_url, play.data, play.plot.erased)) and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S)
    return found


def _send(play: Play, payment: dict[str, Any], now: datetime) -> None:
    """Both records, as of `now`."""
    label = Label(
        event_id="demo-late",
        user_id=play.plot.asked,
        task="fraud",
        subject_event_id=payment["event_id"],
        ref_time=payment["at"],
        known_at=now,
        value=1.0,
        source=SOURCE,
    )
    event = UserEvent(event_id="demo-again", user_id=play.plot.erased, occurred_at=now, source=SOURCE, type="browse")
    records = ((topics.LABELS, label), (topics.USER, event))
    at_ms = round(now.timestamp() * 1e3)
    produce((Outgoing(topic, one.user_id.encode(), encode(one), at_ms) for topic, one in records), play.call.kafka)


def _newest_payment(play: Play) -> dict[str, Any]:
    """One whose own label has not come.

    :raises Broken: there is none.
    """
    for event in reversed(play.facts.user["events"]):
        if event["kind"] == PAYMENT:
            return {**event, "at": datetime.fromisoformat(event["at"])}
    raise Broken("the user has paid for nothing: no label can come", where=play.plot.asked)


def _prediction(play: Play, payment: dict[str, Any]) -> OpenPrediction:
    """What the learner of outcomes said of it when it came.

    :raises Broken: nothing.
    """
    asked = [(play.plot.asked, payment["key"])]
    with play.call.reading() as connection:
        found = predictions.of_users(connection, "risk", BRANCH, AFTER_ALL, asked)
    if not found:
        raise Broken("no prediction of the payment is kept", where=payment["event_id"])
    return found[0]


def _taken(play: Play) -> dict[str, int]:
    """Records of all topics: read, accepted, suppressed."""
    with play.call.reading() as connection:
        found = overview.taken(connection).values()
    return {name: sum(getattr(one, name) for one in found) for name in ("read", "accepted", "suppressed")}
