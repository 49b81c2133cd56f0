"""`replay-journal`: whether the journal really gives a snapshot's bytes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from driftline.commands import AsJson, example, session
from driftline.output import as_json, say
from runtime.lifecycle import ConfigurationError, Exit
from storage.engine import mapped_errors, open_engine
from storage.learning import snapshot_registry


def add_to(app: typer.Typer) -> None:
    """The verbs of this file."""
    app.command(
        "replay-journal", epilog=example("driftline replay-journal", "driftline replay-journal prompttpp-1-0000000040")
    )(replay)


def replay(
    context: typer.Context,
    snapshot_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="As `snapshots list` prints it; default: the newest live one.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Learn a snapshot again from its parent and the journal, and compare the bytes (sha256). Exit 1 if they differ."""
    from streams.train.journal_replay import replay_journal

    call = session(context)
    engine = open_engine(call.postgres_url, application_name="driftline-replay-journal")
    with mapped_errors(), engine.connect() as connection:
        if snapshot_id is None:
            with connection.begin():
                live = snapshot_registry.newest_live(connection, call.settings.train.learner)
            if not live:
                raise ConfigurationError("there is no live snapshot yet", hint="let `driftline train` take one")
            snapshot_id = live[0].id
        found = replay_journal(connection, snapshot_id, call.settings.snapshots, threads=call.settings.train.threads)
    if json:
        as_json({**asdict(found), "equal": found.equal})
    else:
        say(
            f"{found.snapshot}: {found.steps:,} steps of {found.rows:,} rows from {found.parent or 'birth'} give "
            f"sha256 {found.found[:16]}..., " + ("as recorded" if found.equal else f"NOT the recorded {found.recorded}")
        )
    if not found.equal:
        raise typer.Exit(Exit.FAILED)
