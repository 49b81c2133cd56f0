"""`learners`: which learners are installed, what they answer, and their options."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Annotated, Any

import typer

from driftline.commands import AsJson, example
from driftline.output import as_json, say, table
from learners import registry
from learners.contract.spec import LearnerSpec
from runtime.lifecycle import ConfigurationError


def add_to(app: typer.Typer) -> None:
    """The verb of this file."""
    app.command("learners", epilog=example("driftline learners", "driftline learners prompttpp --json"))(learners)


def learners(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of which to list the options.")] = None,
    json: AsJson = False,
) -> None:
    """List the learners that are installed, or the options of one.

    Options are settings: a table [train.options.NAME] of the settings file. Needs neither Kafka nor Postgres.
    """
    known = [spec_of(one) for one in ([name] if name else registry.names())]
    told = [_told(spec) for spec in known]
    if json:
        as_json(told[0] if name else told)
    elif name:
        [spec] = told
        say(f"{name} {spec['version']}: {spec['summary']}")
        say(f"answers {', '.join(spec['tasks'])}; beside it run {', '.join(spec['baselines']) or 'no arms'}\n")
        rows = [[option["name"], option["type"], str(option["default"]), option["help"]] for option in spec["options"]]
        table(["option", "type", "default", "what it does"], rows)
    else:
        rows = [[spec["name"], spec["version"], ", ".join(spec["tasks"]), spec["summary"]] for spec in told]
        table(["learner", "version", "answers", "what it is"], rows)


def spec_of(name: str) -> LearnerSpec:
    """:raises ConfigurationError: no such learner is installed, or its package is broken."""
    try:
        return registry.spec_of(name)
    except (registry.UnknownLearner, registry.BrokenLearner) as error:
        raise ConfigurationError(str(error), where="--learner", hint="`driftline learners` lists them") from None


def _told(spec: LearnerSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "version": spec.version,
        "summary": spec.summary,
        "tasks": [task.kind for task in spec.tasks(spec.configured({}, seed=0))],
        "baselines": list(spec.baselines),
        "variants": list(spec.variants),
        "devices": sorted(spec.devices),
        "options": [
            {
                "name": item.name,
                "type": str(item.type),
                "default": None if item.default is MISSING else item.default,
                "help": item.metadata.get("help", ""),
            }
            for item in fields(spec.config)
            if item.name != "seed"
        ],
    }
