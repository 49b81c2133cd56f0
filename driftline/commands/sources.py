"""`simulate` and `replay`: events from somewhere, into Kafka."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import typer

from driftline.commands import AsJson, example, session
from driftline.shown import as_json, say, time
from runtime.lifecycle import Stop, Usage

_NAMED = ("stackoverflow", "taobao", "collegemsg", "fdh")
Speed = Annotated[
    float,
    typer.Option(min=0, metavar="X", help="Seconds of event time per second of the clock; 0 = as fast as it goes."),
]


def add_to(app: typer.Typer) -> None:
    """The verbs of this file."""
    app.command("simulate", epilog=example("driftline simulate", "driftline simulate --users 5000 --days 1 --live"))(
        simulate
    )
    app.command(
        "replay",
        epilog=example(
            "driftline replay stackoverflow --folder ../shared/data",
            "driftline replay payments.csv --user card --time at --amount eur --currency EUR --with shop",
        ),
    )(replay)


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


def replay(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="FILE|NAME", help=f"*.parquet or CSV; or {', '.join(_NAMED)}.")],
    user: Annotated[str | None, typer.Option(metavar="COL", help="Column of the user (required for a file).")] = None,
    time_column: Annotated[
        str | None, typer.Option("--time", metavar="COL", help="Column of the event time (required for a file).")
    ] = None,
    type_column: Annotated[
        str, typer.Option("--type", metavar="COL", help='Column of the type; "=text" is that text in every row.')
    ] = "=event",
    item: Annotated[str | None, typer.Option(metavar="COL", help="Column of the item.")] = None,
    amount: Annotated[
        str | None, typer.Option(metavar="COL", help="Column of the amount, in currency units: payments.")
    ] = None,
    currency: Annotated[str, typer.Option(metavar="EUR", help="ISO code, or a column named COL as @COL.")] = "EUR",
    with_column: Annotated[
        str | None,
        typer.Option("--with", metavar="COL", help="Column of the other side: payee, or whom it relates to."),
    ] = None,
    event_id: Annotated[
        str | None, typer.Option("--id", metavar="COL", help="Column of the event's id; default: the row's number.")
    ] = None,
    unit: Annotated[Literal["s", "ms", "us"], typer.Option(help="Of a numeric time column.")] = "s",
    name: Annotated[str | None, typer.Option(help="Stands before ids; default: the file's name.")] = None,
    label: Annotated[str | None, typer.Option(metavar="COL", help="Column of an outcome known later.")] = None,
    label_task: Annotated[str, typer.Option(help="What the outcome is of.")] = "outcome",
    label_delay_days: Annotated[float, typer.Option(min=0, help="When it becomes known, after the event.")] = 7.0,
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the named data sets.")] = Path(
        "../shared/data"
    ),
    speed: Speed = 0.0,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first so many rows by time.")] = None,
    json: AsJson = False,
) -> None:
    """Send recorded events in the order of their times.

    Each row is one record. Sent twice, they still count once: ids repeat.
    """
    from driftline.recorded import Columns, LateLabel, Source
    from driftline.replay import known_source
    from driftline.replay import replay as send

    call = session(context)
    if source in _NAMED and not Path(source).exists():
        chosen = known_source(source, folder)
    elif user is None or time_column is None:
        known = ", ".join(_NAMED)
        raise Usage("a file needs --user COL and --time COL", where=source, todo=f"name them; or replay {known}")
    else:
        late = LateLabel(column=label, task=label_task, delay=timedelta(days=label_delay_days)) if label else None
        chosen = Source(
            name=name or Path(source).stem,
            file=Path(source),
            columns=Columns(
                user=user,
                time=time_column,
                time_unit=unit,
                type=type_column,
                item=item,
                amount=amount,
                currency=currency[1:] if currency.startswith("@") else f"={currency.removeprefix('=')}",
                with_=with_column,
                id=event_id,
            ),
            label=late,
        )
    stop = Stop()
    with stop.on_signals():
        report = send(chosen, call.kafka, speed=speed, limit=limit, stop=stop, show_progress=not json)
    if json:
        as_json(asdict(report))
        return
    rate = report.rows / report.seconds if report.seconds else 0.0
    say(f"sent {report.rows:,} rows of {chosen.name} ({report.malformed:,} malformed) and {report.labels:,} labels")
    if report.first_at is not None and report.last_at is not None:
        say(f"from {time(report.first_at)} to {time(report.last_at)}, in {report.seconds:.1f} s ({rate:,.0f} rows/s)")
