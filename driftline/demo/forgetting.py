"""The last acts: a user is erased; then a label comes late, and the erased user comes back in vain."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from contracts import topics
from contracts.codec import encode
from contracts.records import Label, UserEvent
from driftline.audit_traces import traces
from driftline.demo.cast import Broken
from driftline.demo.play import Play
from driftline.simulate.scenario import DAY_S, SOURCE, Scenario
from runtime.produce import Outgoing, produce
from storage import overview
from storage.sequences import PAYMENT


def erase(play: Play) -> None:
    """Looks where the user's id stands, erases the user, and looks again."""
    url, erased = play.call.postgres_url, play.plot.erased
    before = traces(url, play.data, erased)
    said = play.players.ask("erase", erased, "--yes", seconds=play.plot.patience_s)
    play.facts.erasure = {"user_id": erased, "erased": said, "before": before, "after": traces(url, play.data, erased)}
    play.say(f"{erased} was erased; its id stood in {sum(before.values()):,} rows and files")


def come_late(play: Play) -> None:
    """A label of the asked user's first payment, and a new event of the erased one."""
    facts, payment = play.facts, _first_payment(play)
    now = Scenario.start + timedelta(seconds=play.plot.days * DAY_S)
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
    before = _taken(play)
    at_ms = round(now.timestamp() * 1e3)
    records = ((topics.LABELS, label), (topics.USER, event))
    produce(
        (Outgoing(topic, one.user_id.encode(), encode(one), at_ms) for topic, one in records),
        play.call.kafka,
    )
    play.players.start("ingest", "--port", "0", "--once", "--json", name="ingest-3").done(play.plot.patience_s)
    new = {name: count - before[name] for name, count in _taken(play).items()}
    waited = now - payment["at"]
    facts.late = {"payment": payment, "known_at": now, "seconds_late": waited.total_seconds(), "taken": new}
    facts.erasure["after"] = traces(play.call.postgres_url, play.data, play.plot.erased)
    play.say(
        f"a label came {waited / timedelta(hours=1):.0f} hours after its payment and was taken in; "
        "a new event of the erased user was not"
    )


def prove(play: Play) -> None:
    """After all that: is each record counted exactly once?"""
    play.facts.maintain = play.running["maintain"].drained()
    play.facts.audit = play.players.ask("verify", seconds=play.plot.patience_s)
    play.say("verify read every topic and table again with code of its own")


def _first_payment(play: Play) -> dict[str, Any]:
    """:raises Broken: there is none."""
    for event in play.facts.user["events"]:
        if event["kind"] == PAYMENT:
            return {**event, "at": datetime.fromisoformat(event["at"])}
    raise Broken("the user has paid for nothing: no label can come", where=play.plot.asked)


def _taken(play: Play) -> dict[str, int]:
    """Records of all topics: read, accepted, suppressed."""
    with play.call.reading() as connection:
        found = overview.taken(connection).values()
    return {name: sum(getattr(one, name) for one in found) for name in ("read", "accepted", "suppressed")}
