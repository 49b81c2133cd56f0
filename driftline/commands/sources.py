"""`simulate` and `replay`: events from somewhere, into Kafka."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from driftline.commands import AsJson, example, replay, session
from driftline.commands.replay import Speed
from driftline.shown import as_json, say, time
from runtime.lifecycle import Stop, Usage


def add_to(app: typer.Typer) -> None:
    """Both verbs."""
    app.command("simulate", epilog=example("driftline simulate", "driftline simulate --users 5000 --days 1 --live"))(
        simulate
    )
    replay.add_to(app)


def simulate(
    context: typer.Context,
    users: Annotated[int, typer.Option(min=2)] = 500,
    items: Annotated[int, typer.Option(min=1)] = 200,
    days: Annotated[float, typer.Option(min=0.01, help="How long.")] = 14.0,
    change_after_days: Annotated[
        float | None, typer.Option(min=0, help="When behaviour changes; default: after half the time.")
    ] = None,
    no_change: Annotated[bool, typer.Option("--no-change", help="Behaviour never changes.")] = False,
    malformed: Annotated[float, typer.Option(min=0, help="Malformed records per valid event.")] = 0.0,
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Repeated records per valid event.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    speed: Speed = 0.0,
    until_now: Annotated[
        bool, typer.Option("--until-now", help="Days that end now, instead of from 2026-01-01.")
    ] = False,
    live: Annotated[bool, typer.Option("--live", help="From now on, at the clock's pace.")] = False,
    json: AsJson = False,
) -> None:
    """Send a small simulated world with one planted change.

    The same options send the same bytes, unless --until-now or --live ties them to the clock.
    """
    from driftline.simulate import DAY_S, Scenario, Simulation
    from runtime.produce import paced, produce

    call = session(context)
    half = days / 2 if change_after_days is None else change_after_days
    if until_now and live:
        raise Usage("--until-now and --live contradict each other")
    now = datetime.now(UTC)
    start = now if live else now - timedelta(days=days) if until_now else Scenario().start
    simulation = Simulation(
        Scenario(
            seed=seed,
            users=users,
            items=items,
            duration_s=days * DAY_S,
            change_after_s=None if no_change else half * DAY_S,
            malformed_rate=malformed,
            duplicate_rate=duplicates,
            start=start,
        )
    )
    stop = Stop()
    with stop.on_signals():
        sent = produce(paced(simulation.records(), speed=1.0 if live else speed, stop=stop), call.kafka)
    truth = simulation.truth
    if json:
        as_json(
            {
                "sent": dict(sent),
                "stopped": stop.is_set(),
                "valid": dict(truth.valid),
                "duplicates": dict(truth.duplicates),
                "malformed": dict(truth.malformed),
                "change_at": truth.change_at,
            }
        )
        return
    say(f"sent {sum(sent.values()):,} records: " + ", ".join(f"{topic} {count:,}" for topic, count in sent.items()))
    if truth.change_at is not None:
        say(f"behaviour changes at {time(truth.change_at)}")
