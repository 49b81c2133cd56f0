"""`retire`: a learner that nobody is to run any more, or that is to start anew."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from driftline.commands import AsJson, example, session
from driftline.output import as_json, say
from runtime.lifecycle import ConfigurationError, OperatorActionRequired


def add_to(app: typer.Typer) -> None:
    """The verb of this file."""
    app.command("retire", epilog=example("driftline retire markov", "driftline retire sdim --yes"))(retire)


def retire(
    context: typer.Context,
    learner: Annotated[str, typer.Argument(metavar="LEARNER", help="As `driftline status` prints it.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: AsJson = False,
) -> None:
    """Take a learner out of service: nothing waits for it any more.

    Its journal, predictions, signature tables and snapshots go, and with them what kept log and sequences for it. A
    `train` of it that still runs ends with exit code 3. Cannot be undone; `driftline train` of the same name starts
    from nothing, with the settings it has then.
    """
    from storage.learning import retirement

    call = session(context)
    call.check_tables()
    if not yes:
        typer.confirm(f"Retire {learner}, with all it has learnt?", abort=True, err=True)
    try:
        with call.writing() as connection:
            retired = retirement.retire(connection, learner)
    except retirement.Pinned as error:
        raise OperatorActionRequired(
            f"these of its snapshots are pinned: {', '.join(error.ids)}",
            where=f"learner {learner}",
            hint=f"driftline snapshots unpin {' '.join(error.ids)}",
        ) from None
    if retired is None:
        raise ConfigurationError(f"no learner {learner}", hint="see `driftline status`")
    if json:
        as_json(asdict(retired))
        return
    say(
        f"retired {retired.learner} (branch {retired.branch}) after {retired.steps:,} steps; "
        f"`driftline maintain` collects its {retired.snapshots:,} snapshots"
    )
