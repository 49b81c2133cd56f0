"""`erase`: people who ask to be forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from sqlalchemy import Connection

from driftline.commands import AsJson, example, session
from driftline.id_lists import STDIN, IdList, check_ids, meant, read_ids
from driftline.output import as_json, note, say
from runtime import failpoints
from runtime.lifecycle import ConfigurationError, Exit
from storage.engine import mapped_errors, open_engine

if TYPE_CHECKING:
    from storage.privacy.erasure import Erased

SHOWN = 20
"""Unknown users told on stderr; more are counted."""


@dataclass(frozen=True, kw_only=True)
class Unknown:
    """A user of whom nothing was ever known."""

    user: str
    did_you_mean: list[str]
    """Users still there whose ids look alike."""


def add_to(app: typer.Typer) -> None:
    """The verb of this file."""
    examples = example("driftline erase user-17", "driftline erase --from asked.txt --yes --json")
    app.command("erase", epilog=examples)(erase)


def erase(
    context: typer.Context,
    users: Annotated[list[str] | None, typer.Argument(metavar="USER", help="Ids of users.")] = None,
    listed: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="One user id a line, besides, exactly as records have it; - = stdin."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    allow_unknown: Annotated[
        bool, typer.Option("--allow-unknown", help="Exit code 0 though nothing was ever known of some of them.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Erase users: their records, everywhere, and those that come later.

    Log, sequences (also other users' relations to them), dead letters and names. Snapshots learnt from them
    are marked irreproducible, and each learner is told in its journal; pinned ones whose files may name erased
    users are listed, for you to unpin. What the topics hold stays there, but is not taken in again. Users of whom
    nothing was ever known are blocked too, and listed with exit code 3: they may be misspelt. Cannot be undone;
    interrupted, call it again.
    """
    from storage.learning import snapshot_gc
    from storage.privacy import erasure

    asked = _wanted(users or [], listed)
    wanted = asked.ids
    if listed == STDIN and not yes:
        raise ConfigurationError(
            "nobody can be asked while the list comes from standard input", where="--from -", hint="add --yes"
        )
    call = session(context)
    call.check_tables()
    failpoints.arm(call.settings.failpoint)
    if not yes:
        typer.confirm(f"Erase {len(wanted):,} user{'s' * (len(wanted) > 1)} for ever?", abort=True, err=True)
    engine = open_engine(call.postgres_url, application_name="driftline-erase")
    with mapped_errors():
        erased = erasure.erase(engine, wanted, done=_passed)
    with call.reading() as connection:
        naming = snapshot_gc.naming(connection, pinned=True)
        unknown = _unknown(connection, erased.unknown)
    if json:
        told = {"users": len(wanted), "empty_lines": asked.empty_lines, **asdict(erased)}
        as_json({**told, "unknown": unknown, "pinned_naming": naming})
    else:
        _tell(asked, erased, naming)
    if unknown:
        _tell_unknown(unknown)
        if not allow_unknown:
            raise typer.Exit(Exit.REFUSED)


def _unknown(connection: Connection, users: Sequence[str]) -> list[Unknown]:
    """Users of whom nothing was known, with those still there who may have been meant."""
    from storage.privacy import row_erasure

    forms = {user: meant(user) for user in users}
    there = row_erasure.known_of(connection, {form for found in forms.values() for form in found}) if users else set()
    return [Unknown(user=user, did_you_mean=[form for form in forms[user] if form in there]) for user in users]


def _tell(asked: IdList, erased: Erased, naming: Sequence[str]) -> None:
    if asked.empty_lines:
        note(f"{asked.empty_lines:,} empty lines of the list were skipped")
    count = len(asked.ids) - len(erased.unknown)
    say(
        f"erased {count:,}: {erased.log_rows:,} log rows, {erased.entries:,} entries of their sequences, "
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


def _tell_unknown(unknown: Sequence[Unknown]) -> None:
    """On stderr; ids as Python spells them, so that nothing unseen in them stays unseen."""
    note(
        f"nothing was ever known of {len(unknown):,}, who may be misspelt; "
        "records that come under these ids are refused all the same"
    )
    for one in unknown[:SHOWN]:
        guess = " or ".join(map(repr, one.did_you_mean))
        note(f"  {one.user!r}" + (f"; did you mean {guess}, who is still there?" if guess else ""))
    if len(unknown) > SHOWN:
        note(f"  and {len(unknown) - SHOWN:,} more, which --json lists")
    note("  -> compare them with the ids in the records, and erase who was meant; --allow-unknown: exit code 0")


def _wanted(users: list[str], listed: Path | None) -> IdList:
    """:raises Usage: none is named, or an id or the file cannot be one."""
    given = check_ids(users, where="the command line")
    found = read_ids(listed) if listed is not None else IdList(ids=(), empty_lines=0)
    wanted = tuple(dict.fromkeys([*given, *found.ids]))
    if not wanted:
        raise ConfigurationError("no user is named", hint="driftline erase USER ..., or --from FILE")
    return IdList(ids=wanted, empty_lines=found.empty_lines)


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
