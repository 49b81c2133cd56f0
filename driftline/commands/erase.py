"""`erase`: people who ask to be forgotten."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from driftline.commands import AsJson, example, session
from driftline.shown import as_json, note, say
from runtime import failpoints
from runtime.lifecycle import Usage
from storage.engine import mapped_errors, open_engine


def add_to(app: typer.Typer) -> None:
    """The verb of this file."""
    app.command("erase", epilog=example("driftline erase user-17", "driftline erase --from asked.txt --yes"))(erase)


def erase(
    context: typer.Context,
    users: Annotated[list[str] | None, typer.Argument(metavar="USER", help="Ids of users.")] = None,
    listed: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", dir_okay=False, help="One user id a line, besides.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: AsJson = False,
) -> None:
    """Erase users: their records, everywhere, and those that come later.

    Log, sequences (also other users' relations to them), dead letters and names. Snapshots learnt from them
    are marked irreproducible, and each learner is told in its journal; pinned ones whose files may name erased
    users are listed, for you to unpin. What the topics hold stays there, but is not taken in again. Cannot be
    undone; interrupted, call it again.
    """
    from storage import collection, erasure

    wanted = _wanted(users or [], listed)
    call = session(context)
    call.check_tables()
    failpoints.arm(call.settings.failpoint)
    if not yes:
        typer.confirm(f"Erase {len(wanted):,} user{'s' * (len(wanted) > 1)} for ever?", abort=True, err=True)
    engine = open_engine(call.postgres_url, application_name="driftline-erase")
    with mapped_errors():
        erased = erasure.erase(engine, wanted, done=_passed)
    with call.reading() as connection:
        naming = collection.naming(connection, pinned=True)
    if json:
        as_json({"users": len(wanted), **asdict(erased), "pinned_naming": naming})
        return
    say(
        f"erased {len(wanted):,}: {erased.log_rows:,} log rows, {erased.entries:,} entries of their sequences, "
        f"{erased.letters:,} dead letters; {erased.others:,} other sequences mended"
    )
    if erased.irreproducible:
        note(f"{erased.irreproducible:,} snapshots were learnt from erased events and cannot be rebuilt any more")
    if naming:
        note(
            f"pinned, so kept, though their files may name erased users: {', '.join(naming)}\n"
            f"  -> driftline snapshots unpin {' '.join(naming)}; `driftline maintain` then collects them as soon as a "
            "younger one of `train` has forgotten"
        )


def _wanted(users: list[str], listed: Path | None) -> list[str]:
    if listed is not None:
        try:
            users = [*users, *listed.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise Usage(f"unreadable: {error}", where=str(listed), todo="give one user id a line") from None
    wanted = [user for user in users if user]
    if not wanted:
        raise Usage("no user is named", todo="driftline erase USER ..., or --from FILE")
    return wanted


_POINTS: dict[str, failpoints.Failpoint] = {
    "suppressed": "erase.after_suppressed",
    "log": "erase.after_log",
    "others": "erase.after_others",
    "letters": "erase.after_letters",
    "sequences": "erase.after_sequences",
}


def _passed(step: str) -> None:
    if (point := _POINTS.get(step)) is not None:
        failpoints.failpoint(point)
