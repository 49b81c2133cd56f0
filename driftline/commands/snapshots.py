"""`snapshots list|show|verify|pin|unpin`: what the registry says, whether the files agree, and which are to stay."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

import typer

from driftline.commands import AsJson, Limit, example, session
from driftline.output import as_json, say, table
from runtime.lifecycle import ConfigurationError, Exit
from storage.learning import snapshot_files as files
from storage.learning import snapshot_gc, snapshot_registry
from storage.learning.snapshot_registry import Snapshot

snapshots = typer.Typer(help="Snapshots of the learners' weights.", no_args_is_help=True)
OfLearner = Annotated[str | None, typer.Option("--learner", metavar="NAME", help="Of this learner only.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID", help="As `snapshots list` prints them.")]


def add_to(app: typer.Typer) -> None:
    """The verbs of this file."""
    snapshots.command("list", epilog=example("driftline snapshots list --learner prompttpp"))(list_snapshots)
    snapshots.command("show", epilog=example("driftline snapshots show prompttpp-1-0000000040"))(show)
    snapshots.command("verify", epilog=example("driftline snapshots verify", "driftline snapshots verify --json"))(
        verify
    )
    snapshots.command("pin", epilog=example("driftline snapshots pin prompttpp-1-0000000040"))(pin)
    snapshots.command("unpin", epilog=example("driftline snapshots unpin prompttpp-1-0000000040"))(unpin)
    app.add_typer(snapshots, name="snapshots")


def list_snapshots(context: typer.Context, learner: OfLearner = None, limit: Limit = 50, json: AsJson = False) -> None:
    """List snapshots, the newest first.

    Of those an erasure touched: whether they can be rebuilt, and whether their files may name erased users.
    """
    with session(context).reading() as connection:
        found, naming = snapshot_registry.snapshots(connection, learner, limit=limit), snapshot_gc.naming(connection)
    if json:
        as_json([_fields(one, naming) for one in found])
        return
    table(
        ["id", "learner", "branch", "step", "status", "pinned", "irreproducible", "names erased", "created", "sha256"],
        [
            (
                *(s.id, s.learner, s.branch, s.step, s.status, s.pinned, s.irreproducible, s.id in naming),
                *(s.created_at, (s.sha256 or "-")[:16]),
            )
            for s in found
        ],
    )


def show(
    context: typer.Context,
    snapshot_id: Annotated[str, typer.Argument(metavar="ID", help="As `snapshots list` prints it.")],
) -> None:
    """Print a snapshot's registry entry with its manifest, as JSON."""
    with session(context).reading() as connection:
        found, naming = snapshot_registry.find(connection, snapshot_id), snapshot_gc.naming(connection)
    if found is None:
        raise ConfigurationError(f"no snapshot {snapshot_id}", hint="see `driftline snapshots list`")
    as_json(_fields(found, naming))


def verify(
    context: typer.Context,
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Which; default: all live ones.")] = None,
    learner: OfLearner = None,
    json: AsJson = False,
) -> None:
    """Read snapshot files and compare their bytes with the registry. Exit 1 if one is missing or different."""
    call = session(context)
    with call.reading() as connection:
        known = [s for s in snapshot_registry.snapshots(connection, learner, limit=1_000_000) if s.status == "live"]
    if unknown := set(ids or ()) - {one.id for one in known}:
        raise ConfigurationError(
            f"no live snapshot {', '.join(sorted(unknown))}", hint="see `driftline snapshots list`"
        )
    folder = call.settings.snapshots
    results: list[dict[str, Any]] = []
    for one in known:
        if ids and one.id not in ids:
            continue
        try:
            files.read(folder, one.id, sha256=one.sha256 or "")
            results.append({"id": one.id, "ok": True, "problem": None})
        except files.BadSnapshot as error:
            results.append({"id": one.id, "ok": False, "problem": str(error)})
    bad = sum(not result["ok"] for result in results)
    if json:
        as_json({"folder": str(folder), "snapshots": results})
    else:
        table(["id", "", "problem"], [(r["id"], "good" if r["ok"] else "BAD", r["problem"]) for r in results])
        say(f"{len(results):,} read in {folder}, {bad:,} bad")
    if bad:
        raise typer.Exit(Exit.FAILED)


def pin(context: typer.Context, ids: Ids) -> None:
    """Keep snapshots, however old, until `unpin`. Their parents and the log they are rebuilt from stay too."""
    _pin(context, ids, pinned=True)


def unpin(context: typer.Context, ids: Ids) -> None:
    """Let go of pinned snapshots: `driftline maintain` collects them when nothing else needs them."""
    _pin(context, ids, pinned=False)


def _pin(context: typer.Context, ids: list[str], *, pinned: bool) -> None:
    with session(context).writing() as connection:
        for snapshot_id in ids:
            if not snapshot_gc.pin(connection, snapshot_id, pinned=pinned):
                raise ConfigurationError(
                    f"no live snapshot {snapshot_id}: nothing done", hint="see `driftline snapshots list`"
                )
    say(f"{'pinned' if pinned else 'unpinned'} {', '.join(ids)}")


def _fields(snapshot: Snapshot, naming: Collection[str]) -> dict[str, Any]:
    shown = {name: getattr(snapshot, name) for name in snapshot.__dataclass_fields__}
    cursor = {str(stream): offset for stream, offset in snapshot.cursor.items()}
    return {**shown, "cursor": cursor, "names_erased": snapshot.id in naming}
