"""`labels`: what came of them, and of which tasks none are expected."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from driftline.commands import AsJson, example, session
from driftline.output import as_json, note, say, table
from runtime.lifecycle import ConfigurationError


def add_to(app: typer.Typer) -> None:
    """The verbs of this file."""
    group = typer.Typer(help="What came of late labels, and of which tasks none are expected.", no_args_is_help=True)
    group.command("status", epilog=example("driftline labels status", "driftline labels status --json"))(status)
    group.command(
        "assume-complete",
        epilog=example("driftline labels assume-complete fraud", "driftline labels assume-complete fraud --undo"),
    )(assume_complete)
    app.add_typer(group, name="labels")


def status(context: typer.Context, json: AsJson = False) -> None:
    """Print what came of the labels that each learner of outcomes has read: each label counts once."""
    from storage import overview
    from storage.learning import label_resolutions

    call = session(context)
    with call.reading() as connection:
        found = overview.outcomes(connection)
    if json:
        as_json([asdict(one) for one in found])
        return
    if not found:
        say("no learner of outcomes was ever started")
    for one in found:
        say(f"{one.learner} (task {one.task}): {sum(one.labels.values()):,} labels, {one.open:,} payments wait")
        table(["labels", "count"], [(name.replace("_", " "), count) for name, count in one.labels.items() if count])
        if one.idle:
            say(f"read to the broker's end when silences ended last: {', '.join(one.idle)}")
        if one.unlabelled:
            note(label_resolutions.none_read(one.task, one.open))


def assume_complete(
    context: typer.Context,
    task: Annotated[str, typer.Argument(metavar="TASK", help="As labels name it, e.g. fraud.")],
    undo: Annotated[bool, typer.Option("--undo", help="Labels are expected again.")] = False,
) -> None:
    """Let silence count for a task of which no label was ever read.

    Until a first label is read, or this is said, no payment counts as good by silence: a topic of labels that is
    misspelt or not connected yet would look like a world without fraud. What was learnt meanwhile stays learnt.
    """
    from storage.learning import label_resolutions

    call = session(context)
    if not task.strip():
        raise ConfigurationError("a task has a name", where="TASK", hint="name it as labels do, e.g. fraud")
    with call.writing() as connection:
        changed = (label_resolutions.assume_no_more if undo else label_resolutions.assume_complete)(connection, task)
    what = "labels are expected" if undo else "silence counts, though no label may come"
    say(f"task {task}: {what}{'' if changed else ' (as before)'}; a running `train` knows within a second")
