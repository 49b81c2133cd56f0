"""`replay`: recorded events, into Kafka."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

import typer

from driftline.commands import AsJson, example, session
from driftline.datasets.dataset_names import NAMES
from driftline.output import as_json, say, time
from runtime.lifecycle import ConfigurationError, Stop

Speed = Annotated[
    float,
    typer.Option(min=0, metavar="X", help="Seconds of event time per second of the clock; 0 = as fast as it goes."),
]


def add_to(app: typer.Typer) -> None:
    """The verb of this file."""
    app.command(
        "replay",
        epilog=example(
            "driftline replay stackoverflow --folder ../shared/data",
            "driftline replay payments.csv --user card --time at --amount eur --currency EUR --with shop",
        ),
    )(replay)


def replay(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="FILE|NAME", help=f"*.parquet or CSV; or {', '.join(NAMES)}.")],
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
    despite: Annotated[
        bool,
        typer.Option(
            "--despite-topic-settings", help="Send though a topic would delete or refuse records of such times."
        ),
    ] = False,
    json: AsJson = False,
) -> None:
    """Send recorded events in the order of their times.

    Each row is one record; items, friendships and labels of users come beside them. Sent twice, they still count
    once: ids repeat. The named data sets keep their own times, but for amazon_titles: it knows the order alone, its
    times are made up, and `source` of its records says so (amazon_titles/synthetic-time).
    """
    from driftline.datasets.known import known_source
    from driftline.recorded import Columns, LateLabel, Source
    from driftline.recorded.publisher import replay as send

    call = session(context)
    if source in NAMES and not Path(source).exists():
        chosen = known_source(source, folder)
    elif user is None or time_column is None:
        known = ", ".join(NAMES)
        raise ConfigurationError(
            "a file needs --user COL and --time COL", where=source, hint=f"name them; or replay {known}"
        )
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
        report = send(
            chosen,
            call.kafka,
            speed=speed,
            limit=limit,
            stop=stop,
            show_progress=not json,
            despite_settings=despite,
        )
    if json:
        as_json(asdict(report))
        return
    rate = report.rows / report.seconds if report.seconds else 0.0
    say(f"sent {report.rows:,} rows of {chosen.name} ({report.malformed:,} malformed) and {report.labels:,} labels")
    if report.first_at is not None and report.last_at is not None:
        say(f"from {time(report.first_at)} to {time(report.last_at)}, in {report.seconds:.1f} s ({rate:,.0f} rows/s)")
