"""`migrate`, `topics create`, `config show`: what stands before anything runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer
from alembic.util.exc import CommandError

from contracts import topics as topic_list
from driftline.commands import AsJson, example, session
from driftline.output import as_json, note, say, table
from runtime import kafka
from runtime.lifecycle import OperatorActionRequired
from storage import migrate

topics = typer.Typer(help="The topics in Kafka.", no_args_is_help=True)
config = typer.Typer(help="The settings.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """The verbs of this file."""
    app.command("migrate", epilog=example("driftline migrate"))(migrate_tables)
    topics.command("create", epilog=example("driftline topics create", "driftline topics create --partitions 12"))(
        create_topics
    )
    app.add_typer(topics, name="topics")
    config.command("show", epilog=example("driftline config show", "driftline config show --json"))(show_config)
    app.add_typer(config, name="config")


def migrate_tables(context: typer.Context, json: AsJson = False) -> None:
    """Bring the tables in Postgres to this version. Safe to repeat, and to run from many machines at once."""
    try:
        revision = migrate.upgrade(session(context).postgres_url)
    except CommandError as error:
        raise OperatorActionRequired(
            f"the tables are of a version that this one does not know: {error}",
            where="setting DRIFTLINE_POSTGRES_URL",
            hint="use the Driftline that made them, or a newer one",
        ) from None
    if json:
        as_json({"revision": revision})
    else:
        say(f"tables at revision {revision}")


def create_topics(
    context: typer.Context,
    partitions: Annotated[
        int | None, typer.Option(min=1, help="Of events.* and labels, instead of 4. The others keep 1.")
    ] = None,
    replication: Annotated[int, typer.Option(min=-1, help="Copies of each; -1 = the broker's default.")] = -1,
    json: AsJson = False,
) -> None:
    """Create the topics that are missing. Those that are there stay as they are; differences are shown."""
    specs = [
        replace(spec, partitions=partitions) if partitions and spec.partitions > 1 else spec for spec in topic_list.ALL
    ]
    made = kafka.create_topics(session(context).kafka, specs, replication=replication)
    if json:
        as_json(
            {
                "created": made.created,
                "existing": made.existing,
                "different": {
                    topic: {name: {"wanted": wanted, "found": found} for name, (wanted, found) in settings.items()}
                    for topic, settings in made.different.items()
                },
                "configs_effective": made.configs_effective,
            }
        )
        return
    table(["topic", ""], [(name, "created" if name in made.created else "was there") for name in _names()])
    for topic, settings in made.different.items():
        for name, (wanted, found) in settings.items():
            note(f"{topic}: {name} is {found}, Driftline expects {wanted}")
    if not made.configs_effective:
        note("this broker keeps no topic configs: no retention, no compaction")


def show_config(context: typer.Context, json: AsJson = False) -> None:
    """Print the settings as they are in force; passwords and other secrets are hidden."""
    shown = session(context).settings.redacted()
    if json:
        as_json(shown)
        return
    rows: list[tuple[str, object]] = []
    for name, value in shown.items():
        group = value if isinstance(value, dict) and name != "kafka_options" else None
        if group is None:
            rows.append((f"DRIFTLINE_{name.upper()}", value))
        else:
            rows += [(f"DRIFTLINE_{name.upper()}__{inner.upper()}", part) for inner, part in group.items()]
    table(["setting", "value"], [(name, str(value)) for name, value in rows])


def _names() -> list[str]:
    return [spec.name for spec in topic_list.ALL]
