"""The act of `drift`: it has to find the planted change."""

from __future__ import annotations

import msgspec

from contracts import topics
from contracts.records import DriftAlarm
from driftline.demo.http_client import free_port, metric
from driftline.demo.stage import Play
from driftline.demo.topic_values import values

_RECORDS = f'driftline_drift_records_total{{topic="{topics.PROGRESS}"}}'


def watch(play: Play) -> None:
    """`drift` begins to read what the learners tell."""
    play.ports["drift"] = port = free_port()
    play.running["drift"] = play.players.start("drift", "--port", str(port), "--json")


def alarms(play: Play) -> None:
    """Waits until it has read the last step of each learner, then ends it, and reads what it said."""
    facts = play.facts
    told = sum(map(len, facts.progress.values()))
    page = f"http://127.0.0.1:{play.ports['drift']}/metrics"
    play.players.until(
        "drift has read what the learners told", lambda: metric(page, _RECORDS) >= told, seconds=play.plot.patience_s
    )
    facts.drift = play.running["drift"].drained()
    facts.alarms = [msgspec.json.decode(value, type=DriftAlarm) for value in values(play.call.kafka, topics.ALARMS)]
    series = ", ".join(sorted({f"{alarm.subject}: {alarm.series}" for alarm in facts.alarms})) or "nothing"
    play.say(f"[yellow]drift raised {len(facts.alarms)} alarms[/] ({series})")
