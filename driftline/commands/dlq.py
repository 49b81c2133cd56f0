"""`dlq list|show|replay`: refused records, and their second chance."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from contracts.codec import Reason
from driftline import dead_letter_replay
from driftline.commands import AsJson, Limit, example, session
from driftline.output import as_json, note, one_line, say, table, time
from runtime.lifecycle import ConfigurationError, Exit, OperatorActionRequired
from storage.log import dead_letters
from storage.log.dead_letters import Letter
from storage.privacy import suppression

dlq = typer.Typer(help="Dead letters: records that were refused.", no_args_is_help=True)
OfReason = Annotated[
    Reason | None, typer.Option("--reason", metavar="REASON", help="Only those refused for this reason.")
]


def add_to(app: typer.Typer) -> None:
    """The verbs of this file."""
    dlq.command("list", epilog=example("driftline dlq list", "driftline dlq list --reason key_mismatch --json"))(
        list_letters
    )
    dlq.command("show", epilog=example("driftline dlq show 3:1042"))(show)
    dlq.command(
        "replay",
        epilog=example(
            "driftline dlq replay 3:1042 --value mended.json",
            "driftline dlq replay 3:1042 3:1043 --fix-key",
            "driftline dlq replay --reason unknown_version",
        ),
    )(replay)
    app.add_typer(dlq, name="dlq")


def list_letters(
    context: typer.Context,
    reason: OfReason = None,
    everything: Annotated[bool, typer.Option("--all", help="Those that came in by replay, too.")] = False,
    limit: Limit = 50,
    json: AsJson = False,
) -> None:
    """List dead letters, the newest first. Bodies are shown by `dlq show`."""
    with session(context).reading() as connection:
        found = dead_letters.newest(connection, reason=reason, replayed=everything, limit=limit)
    if json:
        as_json([_summary(letter) for letter in found])
        return
    table(
        ["id", "reason", "topic", "partition", "offset", "received", "bytes", "cut", "replayed", "detail"],
        [
            (
                letter.id,
                letter.reason,
                letter.topic,
                letter.partition,
                letter.offset,
                letter.received_at,
                letter.size,
                letter.cut,
                letter.replayed,
                letter.detail[:80],
            )
            for letter in found
        ],
    )


def show(
    context: typer.Context,
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="As `dlq list` prints it.")],
    json: AsJson = False,
) -> None:
    """Print a dead letter whole: why it was refused, its key and its body."""
    with session(context).reading() as connection:
        letter = _found(letter_id, dead_letters.find(connection, _checked(letter_id)))
    if json:
        as_json({**_summary(letter), "key": _text(letter.key), "value": _text(letter.value)})
        return
    for name, value in _summary(letter).items():
        say(f"{name + ':':<14}{time(value) if hasattr(value, 'isoformat') else one_line(value)}")
    say(f"{'key:':<14}{one_line(_text(letter.key))}")
    say(f"\n{'(no body)' if letter.value is None else _text(letter.value)}")


def replay(
    context: typer.Context,
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Which; or --reason for many.")] = None,
    reason: OfReason = None,
    limit: Limit = 10_000,
    value: Annotated[
        Path | None, typer.Option(metavar="FILE", exists=True, dir_okay=False, help="The mended body (one ID).")
    ] = None,
    fix_key: Annotated[bool, typer.Option("--fix-key", help="Set the key to what the body says.")] = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="Also those that would be refused again.")] = False,
    json: AsJson = False,
) -> None:
    """Send dead letters again to the topics they came from. However often it is done, each comes in once.

    Exit 3 if one was not sent: its body is not kept whole, or it would be refused again.
    """
    ids = ids or []
    if bool(ids) == (reason is not None):
        raise ConfigurationError("name dead letters, or a --reason", hint="see `driftline dlq list`")
    if value is not None and len(ids) != 1:
        raise ConfigurationError("--value is the body of one dead letter", hint="name exactly one ID")
    call = session(context)
    kafka = call.kafka  # looked at before anything is
    with call.reading() as connection:
        if reason is not None:
            found = dead_letters.newest(connection, reason=reason, replayed=False, limit=limit)
        else:
            found = [_found(name, dead_letters.find(connection, _checked(name))) for name in ids]
        secret = suppression.installation_key(connection)
    body = None if value is None else value.read_bytes()
    sent, done, refused = [], [], []
    for letter in found:
        if letter.replayed:
            done.append(letter.id)
            continue
        try:
            sent.append(dead_letter_replay.repeat(letter, value=body, fix_key=fix_key, anyway=anyway))
        except OperatorActionRequired as trouble:
            refused.append(letter.id)
            note(f"refused: {trouble}")
    dead_letter_replay.send(sent, kafka, secret=secret)
    if json:
        as_json({"sent": [record.id for record in sent], "came_in_before": done, "refused": refused})
    else:
        before = f", {len(done):,} had come in before" if done else ""
        say(f"sent {len(sent):,}{before}" + (f", refused {len(refused):,}" if refused else ""))
    if refused:
        raise typer.Exit(Exit.REFUSED)


def _checked(letter_id: str) -> str:
    try:
        dead_letters.parse_id(letter_id)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    return letter_id


def _found(letter_id: str, letter: Letter | None) -> Letter:
    if letter is None:
        raise ConfigurationError(f"no dead letter {letter_id}", hint="see `driftline dlq list --all`")
    return letter


def _summary(letter: Letter) -> dict[str, Any]:
    return {name: value for name, value in asdict(letter).items() if name not in ("key", "value")}


def _text(content: bytes | None) -> str | None:
    return None if content is None else content.decode(errors="backslashreplace")
