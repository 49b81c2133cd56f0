"""The long-running processes, `ingest` to `maintain`. Each draws its libraries only when it is called."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from driftline.cli_context import Session
from driftline.commands import AsJson, example, session
from driftline.commands.learners import spec_of
from driftline.output import as_json, say
from runtime import failpoints
from runtime.admin_app import AdminServer, Health
from runtime.lifecycle import Stop
from runtime.logs import catch_the_uncaught, configure_logging
from runtime.settings import Port as PortSetting
from storage.postgres.calls import CALLS

Once = Annotated[bool, typer.Option("--once", help="Stop at the ends the topics had at the start.")]


@dataclass(frozen=True)
class AdminPort:
    """A port as it was given; `number` None = no server."""

    number: int | None

    @classmethod
    def of(cls, text: str) -> AdminPort:
        """Reads it as the settings do.

        :raises typer.BadParameter: it is neither a port nor "none".
        """
        try:
            return cls(TypeAdapter(PortSetting).validate_python(text))
        except ValidationError:
            raise typer.BadParameter(f'{text!r} is neither a TCP port (0 to 65535) nor "none"') from None


Port = Annotated[int | None, typer.Option(min=0, max=65535, help="TCP port instead of the setting's; 0 = any.")]
OptionalPort = Annotated[
    AdminPort | None,
    typer.Option(
        parser=AdminPort.of,
        metavar="PORT|none",
        help="TCP port of /metrics and /readyz instead of the setting's; 0 = any, none = no server.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """The verbs of this file."""
    app.command("ingest", epilog=example("driftline ingest", "driftline ingest --once --json"))(ingest)
    app.command("train", epilog=example("driftline train --learner prompttpp", "driftline train --once --json"))(train)
    app.command("score", epilog=example("driftline score", "driftline score --learner sdim --port 8080"))(score)
    app.command("drift", epilog=example("driftline drift", "driftline drift --port none --json"))(drift)
    app.command("maintain", epilog=example("driftline maintain", "driftline maintain --once --json"))(maintain)


def ingest(context: typer.Context, once: Once = False, port: OptionalPort = None, json: AsJson = False) -> None:
    """Take in what the topics hold, exactly once.

    Each accepted record goes into the log and its users' sequences, each invalid one into the dead letters.
    Ctrl-C drains.
    """
    from streams.ingest.process import Ingest

    call = session(context)
    settings = call.settings.ingest
    with long_running(call, "ingest", settings.port if port is None else port.number, kafka=True) as (health, stop):
        process = Ingest(
            postgres_url=call.postgres_url, kafka_config=call.kafka, settings=settings, health=health, stop=stop
        )
        totals = process.run(once=once)
    if json:
        as_json({**asdict(totals), "peak_rss_bytes": peak_rss_bytes()}, indent=False)
    else:
        say(
            f"read {totals.read:,}: accepted {totals.accepted:,}, dead-lettered {totals.dead:,}, "
            f"duplicates {totals.duplicates:,}, suppressed {totals.suppressed:,}; {totals.batches:,} batches"
        )
        if totals.ignored_origins:
            say(f"{totals.ignored_origins:,} driftline-origin headers prove no replay and were ignored")
        if totals.unreadable_headers:
            say(f"{totals.unreadable_headers:,} records counted without their headers: a name is not UTF-8")


def train(
    context: typer.Context,
    learner: Annotated[str | None, typer.Option(metavar="NAME", help="Which learner; default: the setting's.")] = None,
    once: Once = False,
    port: OptionalPort = None,
    json: AsJson = False,
) -> None:
    """Keep one learner learning from the event log.

    Each step is journalled before it runs; snapshots are taken on the way. Ctrl-C drains.
    """
    from streams.train.process import Train

    call = session(context)
    settings = call.settings.train
    if learner is not None:
        settings = settings.model_copy(update={"learner": learner})
    spec_of(settings.learner)  # a mistyped name is told before anything is waited for
    with long_running(call, "train", settings.port if port is None else port.number, kafka=True) as (health, stop):
        process = Train(
            postgres_url=call.postgres_url,
            kafka_config=call.kafka,
            snapshots=call.settings.snapshots,
            settings=settings,
            health=health,
            stop=stop,
        )
        totals = process.run(once=once)
    if json:
        as_json({**asdict(totals), "peak_rss_bytes": peak_rss_bytes()}, indent=False)
    else:
        said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in asdict(totals).items())
        say(f"{settings.learner}: {said}")


def score(
    context: typer.Context,
    learner: Annotated[str | None, typer.Option(metavar="NAME", help="Whose snapshots answer.")] = None,
    port: Port = None,
) -> None:
    """Answer what comes next for a user and when or, with a learner that ranks, which candidates.

    From the newest snapshot and the newest user state: POST /v1/score, and where a Kafka is given the topic
    `scores.requests`, answered on `scores.results`. Ctrl-C drains.
    """
    from scoring.serve.process import Score

    call = session(context)
    given = {"learner": learner, "port": port}
    settings = call.settings.score.model_copy(update={name: v for name, v in given.items() if v is not None})
    spec_of(settings.learner)
    has_kafka = call.settings.kafka_bootstrap is not None
    with long_running(call, "score", None, kafka=has_kafka) as (health, stop):  # its pages are its own server's
        Score(
            postgres_url=call.postgres_url,
            snapshots=call.settings.snapshots,
            settings=settings,
            health=health,
            stop=stop,
            kafka=call.kafka if has_kafka else None,
        ).run()


def maintain(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="One pass, then end.")] = False,
    port: OptionalPort = None,
    json: AsJson = False,
) -> None:
    """Keep the database fit: compact sequences, collect snapshots, remove what is beyond its retention.

    No reader can tell that it runs, and nothing needs repair when it is killed. Ctrl-C drains.
    """
    from streams.maintain.process import Maintain

    call = session(context)
    settings = call.settings.maintain
    with long_running(call, "maintain", settings.port if port is None else port.number) as (health, stop):
        totals = Maintain(
            postgres_url=call.postgres_url,
            snapshots=call.settings.snapshots,
            settings=settings,
            duplicate_window=call.settings.ingest.duplicate_window,
            health=health,
            stop=stop,
        ).run(once=once)
    if json:
        as_json({**asdict(totals), "peak_rss_bytes": peak_rss_bytes()}, indent=False)
    else:
        say(
            f"compacted {totals.rows_before:,} rows of {totals.compacted_users:,} users into {totals.rows_after:,}; "
            f"collected {totals.snapshots:,} snapshots; removed {totals.log_segments:,} log segments and "
            f"{totals.trimmed_events:,} events of sequences"
        )


def drift(context: typer.Context, port: OptionalPort = None, json: AsJson = False) -> None:
    """Say on `drift.alarms` when behaviour changes: what, since when, how sure.

    Reads the learners' progress, labels and answers; it steers nothing. Needs Kafka alone. Ctrl-C drains.
    """
    from streams.drift.process import DriftProcess

    call = session(context)
    settings = call.settings.drift
    with long_running(call, "drift", settings.port if port is None else port.number, tables=False, kafka=True) as (
        health,
        stop,
    ):
        totals = DriftProcess(kafka_config=call.kafka, settings=settings, health=health, stop=stop).run()
    if json:
        as_json({**asdict(totals), "peak_rss_bytes": peak_rss_bytes()}, indent=False)
    else:
        say(", ".join(f"{name} {value:,}" for name, value in asdict(totals).items()))


@contextmanager
def long_running(
    call: Session, name: str, port: int | None, *, tables: bool = True, kafka: bool = False
) -> Iterator[tuple[Health, Stop]]:
    """What a long-running process has around it: log lines, health, metrics, a way to stop.

    :param tables: it needs Postgres. :param kafka: it needs Kafka, whose options are looked at first.
    """
    settings = call.settings
    configure_logging(settings.log_format, settings.log_level, process=name, hidden=settings.secrets())
    catch_the_uncaught()
    failpoints.arm(settings.failpoint)
    if tables:
        _ = call.postgres_url  # whoever gave neither hears of this one first
    if kafka:
        _ = call.kafka  # what is wrong with its options is told in the log, before anything runs
    if tables:
        call.check_tables()
    health, stop = Health(name), Stop()
    health.watch("postgres", CALLS.overdue)
    with stop.on_signals(), AdminServer(health, port=port, host=settings.admin_host):
        yield health, stop


def peak_rss_bytes() -> int:
    """The most memory this process has held."""
    if sys.platform == "linux":  # getrusage would count what the parent held before exec
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
