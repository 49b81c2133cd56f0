"""`bundle check|list`: bundles, wherever they are. They need neither Kafka nor Postgres nor a setting."""

from __future__ import annotations

import json as text
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from driftline.commands import AsJson, example
from driftline.output import as_json, one_line, say, table
from runtime.lifecycle import ConfigurationError

if TYPE_CHECKING:
    from scoring.export.bundle_check import Checked
    from scoring.export.bundle_target import BundleTarget

bundle = typer.Typer(help="Bundles: weights that answer without Kafka and Postgres.", no_args_is_help=True)
Uri = Annotated[str, typer.Argument(metavar="URI", help="A path or any fsspec URI.")]
Options = Annotated[
    str | None, typer.Option(metavar="JSON", help='Options of the fsspec implementation, e.g. {"anon": true}.')
]


def add_to(app: typer.Typer) -> None:
    """The verbs of this file."""
    bundle.command("check", epilog=example("driftline bundle check bundles/sdim", "driftline bundle check s3://b/m"))(
        check
    )
    bundle.command("list", epilog=example("driftline bundle list bundles", "driftline bundle list s3://b --json"))(
        list_bundles
    )
    app.add_typer(bundle, name="bundle")


def check(
    uri: Uri,
    options: Options = None,
    json: AsJson = False,
) -> None:
    """Load a bundle, ask its example again and compare. Exit 3 if it is cut, changed, foreign or answers otherwise.

    Given a learner's folder or the whole target, the bundles that latest.json names are checked.
    """
    from scoring.export.bundle_target import BundleTarget

    place = BundleTarget(uri, _decoded(options))
    found = [_checked(place, below) for below in _below(place)]
    if json:
        as_json(found)
        return
    for one in found:
        how = "to the last bit" if one.exact else f"within the tolerance for another device class ({one.device_class})"
        who = f"{one_line(one.learner)}: snapshot {one_line(one.snapshot)}"
        say(f"{who} answers as it did, {one.figures} numbers {how}  [{one_line(one.bundle)}]")


def list_bundles(uri: Uri, options: Options = None, json: AsJson = False) -> None:
    """List the bundles of a target, the newest first."""
    from scoring.export.bundle_target import BundleTarget

    place = BundleTarget(uri, _decoded(options))
    rows = [
        {
            "learner": learner,
            "bundle": name,
            "snapshot": manifest["snapshot"]["id"],
            "step": manifest["snapshot"]["step"],
            "bytes": sum(file["bytes"] for file in manifest["files"].values()),
            "latest": name == (place.latest(learner) or {}).get("bundle"),
        }
        for learner in place.folders()
        for name, manifest in place.manifests(learner).items()
    ]
    if json:
        as_json(rows)
    else:
        table(["learner", "snapshot", "step", "bytes", "latest", "bundle"], [_row(one) for one in rows])


def _row(one: dict[str, Any]) -> list[object]:
    return [one[name] for name in ("learner", "snapshot", "step", "bytes", "latest", "bundle")]


def _below(place: BundleTarget) -> Iterator[tuple[str, ...]]:
    """Where, below the place given, the bundles to be checked are."""
    if place.files():
        yield ()
        return
    if (latest := place.latest()) is not None:
        yield (latest["bundle"],)
        return
    newest = {learner: place.latest(learner) for learner in place.folders()}
    found = [(learner, latest["bundle"]) for learner, latest in newest.items() if latest is not None]
    if not found:
        todo = "give a bundle, a learner's folder with its latest.json, or the target of `driftline export`"
        raise ConfigurationError("no bundle is there", where=place.where, hint=todo)
    yield from found


def _checked(place: BundleTarget, below: tuple[str, ...]) -> Checked:
    from scoring.export.bundle import parse
    from scoring.export.bundle_check import check as checked

    where = "/".join([place.where.rstrip("/"), *below])
    return checked(parse(place.files(*below), where=where), where=where)


def _decoded(options: str | None) -> dict[str, Any]:
    try:
        found = text.loads(options or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigurationError("not a JSON object", where="--options", hint='e.g. {"anon": true}')
    return found
