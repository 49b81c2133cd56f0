"""`simulate`: a made-up world with known truth, into Kafka."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contracts.topics import INPUTS
from driftline.commands import AsJson, example, session
from driftline.commands.replay import Speed
from driftline.output import as_json, note, say, time
from driftline.sending import check_topics
from runtime.lifecycle import ConfigurationError, Stop

if TYPE_CHECKING:
    from driftline.simulate import Scenario


class Change(StrEnum):
    """Values of --drift."""

    NONE = "none"
    ABRUPT = "abrupt"
    GRADUAL = "gradual"
    RECURRING = "recurring"


def add_to(app: typer.Typer) -> None:
    """The verb of this file."""
    app.command(
        "simulate",
        epilog=example(
            "driftline simulate",
            "driftline simulate --drift recurring --drift-days 1 --truth truth.json",
            "driftline simulate --users 5000 --days 1 --live",
        ),
    )(simulate)


def simulate(
    context: typer.Context,
    users: Annotated[int, typer.Option(min=2)] = 500,
    items: Annotated[int, typer.Option(min=1)] = 200,
    days: Annotated[float, typer.Option(min=0.01, help="How long.")] = 14.0,
    drift: Annotated[Change, typer.Option(help="How behaviour changes.")] = Change.ABRUPT,
    change_after_days: Annotated[
        float | None, typer.Option(min=0, help="When behaviour changes; default: after half the time.")
    ] = None,
    drift_days: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Gradual: until all is new. Recurring: how long each holds. Default: 1/8 of --days.",
        ),
    ] = None,
    label_delay_days: Annotated[float, typer.Option(min=0, help="From a payment to its label.")] = 1.0,
    malformed: Annotated[float, typer.Option(min=0, help="Malformed records per event.")] = 0.0,
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Repeated records per event.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    truth: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what was planted, as JSON, before anything is sent.")
    ] = None,
    speed: Speed = 0.0,
    until_now: Annotated[
        bool, typer.Option("--until-now", help="Days that end now, instead of from 2026-01-01.")
    ] = False,
    live: Annotated[bool, typer.Option("--live", help="From now on, at the clock's pace.")] = False,
    json: AsJson = False,
) -> None:
    """Send a simulated world with planted changes of behaviour.

    Users excite themselves and, by messages, their friends; they buy baskets of items, and labels say a day later
    which payments were fraud. The same options send the same bytes, unless --until-now or --live ties them to the
    clock.
    """
    from driftline.simulate import DAY_S, Drift, Scenario

    if until_now and live:
        raise ConfigurationError("--until-now and --live contradict each other")
    now = datetime.now(UTC)
    after_days = days / 2 if change_after_days is None else change_after_days
    scenario = Scenario(
        seed=seed,
        users=users,
        items=items,
        start=now if live else now - timedelta(days=days) if until_now else Scenario.start,
        duration_s=days * DAY_S,
        change_after_s=None if drift is Change.NONE else after_days * DAY_S,
        drift=Drift.ABRUPT if drift is Change.NONE else Drift(drift),
        change_lasts_s=(days / 8 if drift_days is None else drift_days) * DAY_S,
        label_delay_s=label_delay_days * DAY_S,
        malformed_rate=malformed,
        duplicate_rate=duplicates,
    )
    _send(context, scenario, truth=truth, speed=1.0 if live else speed, json=json)


def _send(context: typer.Context, scenario: Scenario, *, truth: Path | None, speed: float, json: bool) -> None:
    from driftline.simulate import Simulation
    from runtime.produce import paced, produce

    call, simulation, stop = session(context), Simulation(scenario), Stop()
    check_topics(
        call.kafka,
        INPUTS,
        first_at=scenario.start,
        last_at=scenario.start,  # the end of a world that is sent as it happens lies ahead
        unless="give --until-now or --live",
        tell=note,
    )
    if truth is not None:
        try:
            truth.write_bytes(simulation.truth.json() + b"\n")
        except OSError as error:
            raise ConfigurationError(
                f"cannot write: {error.strerror}", where=str(truth), hint="name a file in a folder"
            ) from None
    with stop.on_signals():
        sent = produce(paced(simulation.records(), speed=speed, stop=stop), call.kafka)
    if json:
        known = simulation.truth
        counts = {"valid": known.valid, "duplicates": known.duplicates, "malformed": known.malformed}
        changes = {"change_at": known.change_at, "changes": known.changes}
        as_json({"sent": dict(sent), "stopped": stop.is_set()} | counts | changes)
        return
    say(f"sent {sum(sent.values()):,} records: " + ", ".join(f"{topic} {count:,}" for topic, count in sent.items()))
    for change in simulation.changes:
        ends = "" if change.ends_at == change.starts_at else f" to {time(change.ends_at)}"
        say(f"behaviour changes at {time(change.starts_at)}{ends}, to that of {change.to}")
