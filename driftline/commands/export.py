"""The process `export`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from driftline.commands import AsJson, example, session
from driftline.commands.run_process import OptionalPort, long_running, peak_rss_bytes
from driftline.output import as_json, say


def add_to(app: typer.Typer) -> None:
    """The verb of this file."""
    app.command("export", epilog=example("driftline export", "driftline export --once --json"))(export)


def export(
    context: typer.Context,
    target: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Where bundles go, instead of the setting's: a path or fsspec URI."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="One pass, then end; exit 1 if it could not be done.")] = False,
    port: OptionalPort = None,
    json: AsJson = False,
) -> None:
    """Write each learner's newest weights as a bundle that answers without Kafka and Postgres.

    A bundle is seen when it is whole, and latest.json names the newest. Ctrl-C drains.
    """
    from scoring.export.process import Export

    call = session(context)
    settings = call.settings.export
    with long_running(call, "export", settings.port if port is None else port.number) as (health, stop):
        totals = Export(
            postgres_url=call.postgres_url,
            snapshots=call.settings.snapshots,
            target=target or call.settings.bundles,
            settings=settings,
            health=health,
            stop=stop,
        ).run(once=once)
    if json:
        as_json({**asdict(totals), "peak_rss_bytes": peak_rss_bytes()}, indent=False)
    else:
        say(f"{totals.bundles:,} bundles in {totals.passes:,} passes; removed {totals.removed:,} old ones")
