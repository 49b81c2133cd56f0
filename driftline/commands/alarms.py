"""`alarms`: what `drift` said."""

from __future__ import annotations

from typing import Annotated

import typer

from contracts.records import DriftAlarm
from driftline.commands import AsJson, Limit, example, session
from driftline.output import as_json, table

_NAMED = 3
"""Names of a mix that a line of the table names."""


def add_to(app: typer.Typer) -> None:
    """The verb of this file."""
    app.command("alarms", epilog=example("driftline alarms", "driftline alarms --subject markov --json"))(alarms)


def alarms(
    context: typer.Context,
    subject: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of this learner, or this task of labels, only.")
    ] = None,
    limit: Limit = 50,
    json: AsJson = False,
) -> None:
    """List the changes that `drift` found, the newest first: what, since when, how sure.

    Reads `drift.alarms` from its start, and leaves no trace there. Times are event times.
    """
    from driftline.alarm_topic import raised

    found = [alarm for alarm in raised(session(context).kafka) if subject in (None, alarm.subject)]
    newest = sorted(found, key=lambda alarm: alarm.raised_at, reverse=True)[:limit]
    if json:
        as_json(newest)
        return
    table(
        ["raised", "subject", "branch", "series", "detector", "z", "before", "after", "since", "offsets", "moved most"],
        [_row(alarm) for alarm in newest],
    )


def _row(alarm: DriftAlarm) -> tuple[object, ...]:
    shifts = list(alarm.shifts.items())[:_NAMED]
    return (
        alarm.raised_at,
        alarm.subject,
        alarm.branch,
        alarm.series,
        alarm.detector,
        alarm.z,
        f"{alarm.before.mean:.4g}",
        f"{alarm.after.mean:.4g}",
        alarm.after.first_event_at,
        f"{alarm.source}/{alarm.after.partition}:{alarm.after.first_offset}-{alarm.after.next_offset}",
        ", ".join(f"{name} {was:.3f} -> {now:.3f}" for name, (was, now) in shifts) or None,
    )
