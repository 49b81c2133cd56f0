"""The command `driftline`. What the verbs do is in `driftline/commands`; exit codes are in `runtime.lifecycle`."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import structlog
import typer
from confluent_kafka import KafkaException

from driftline.cli_context import Session
from driftline.commands import (
    alarms,
    bundle,
    dlq,
    erase,
    example,
    export,
    labels,
    learners,
    offsets,
    reading,
    replay_journal,
    retire,
    run_process,
    setup,
    snapshots,
    sources,
    up,
    verify,
)
from driftline.local.parent_watchdog import end_with
from driftline.output import note, say
from runtime import logs
from runtime.lifecycle import DriftlineError, Exit
from storage.engine import BadAddress, Denied, TooOld, Unavailable, Unfit

_INTERRUPTED = 130
_ADDRESS = "setting DRIFTLINE_POSTGRES_URL"

app = typer.Typer(
    name="driftline",
    help="Exactly-once user state and continual learning on live Kafka events.\n\n"
    "Exit codes: 0 done, 1 failed, 2 wrong call or setting, 3 refused: a person decides.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=example("driftline up", "driftline simulate && driftline status"),
)
PARTS = (
    up, run_process, export, setup, sources, reading, learners, offsets, dlq, labels, alarms, snapshots, bundle,
    replay_journal, verify, erase, retire,
)  # fmt: skip
for part in PARTS:
    part.add_to(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"driftline {version('driftline')}")
        raise typer.Exit


@app.callback()
def everywhere(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings file; default $DRIFTLINE_CONFIG, ./driftline.toml.")
    ] = None,
    stack: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="stack.json of a running `driftline up`; default: the one in data_dir."),
    ] = None,
    parent: Annotated[int | None, typer.Option(hidden=True, help="Process that this one must not outlive.")] = None,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of all verbs."""
    if parent is not None:
        end_with(parent)
    context.obj = Session(config=config, stack_file=stack)


def main() -> int:
    """The console script."""
    return run(sys.argv[1:])


def run(arguments: Sequence[str]) -> int:
    """One call; its exit code. Errors are on stderr as what, where and what to do."""
    try:
        app(args=list(arguments), prog_name="driftline")
    except SystemExit as end:
        return _code(end)
    except DriftlineError as trouble:
        _tell(_NAMES[trouble.code], trouble)
        return trouble.code
    except BadAddress as error:
        _tell("wrong call", DriftlineError(error.what, where=_ADDRESS, hint=error.hint))
        return Exit.USAGE
    except Denied as error:
        todo = "correct DRIFTLINE_POSTGRES_URL, or let the server's or pooler's operator let this client in"
        _tell("wrong call", DriftlineError(f"Postgres refuses this client: {error}", where=_ADDRESS, hint=todo))
        return Exit.USAGE
    except Unavailable as error:
        _tell(
            "failed",
            DriftlineError(f"Postgres is away: {error}", hint="is it running, and DRIFTLINE_POSTGRES_URL right?"),
        )
        return Exit.FAILED
    except Unfit as error:
        code = Exit.USAGE if isinstance(error, TooOld) else Exit.REFUSED
        _tell(_NAMES[code], DriftlineError(error.what, where=_ADDRESS, hint=error.hint))
        return code
    except KafkaException as error:
        todo = "is it well, and DRIFTLINE_KAFKA_BOOTSTRAP right? Then run it again"
        _tell("failed", DriftlineError(f"Kafka: {error.args[0].str()}", hint=todo))
        return Exit.FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:
        _unexpected(error, arguments)
        return Exit.FAILED
    return Exit.DONE


_NAMES = {Exit.FAILED: "failed", Exit.USAGE: "wrong call", Exit.REFUSED: "refused"}


def _tell(how: str, trouble: DriftlineError) -> None:
    """Why a call ended: to a person, or where the process writes a log as the last line of that."""
    if logs.is_set_up() and not sys.stderr.isatty():
        structlog.get_logger("driftline").error(f"process.{how.replace(' ', '_')}", error=trouble)
    else:
        note(f"{how}: {trouble}")


def _code(end: SystemExit) -> int:
    return end.code if isinstance(end.code, int) else (Exit.DONE if end.code is None else Exit.FAILED)


def _unexpected(error: Exception, arguments: Sequence[str]) -> None:
    """A defect of ours. What an exception says may hold records, so it is short unless asked for."""
    if logs.is_set_up():
        structlog.get_logger("driftline").critical("process.unexpected", exc_info=error)
        return
    try:
        detailed = Session().settings.log_level == "debug"
    except DriftlineError:
        detailed = False
    if detailed:
        note("".join(traceback.format_exception(error)).rstrip())
        return
    last = traceback.extract_tb(error.__traceback__)[-1]
    note(
        f"failed: unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]} "
        f"[{Path(last.filename).name}:{last.lineno}]\n  -> DRIFTLINE_LOG_LEVEL=debug shows where it came from"
    )
