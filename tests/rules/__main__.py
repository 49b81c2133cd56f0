"""`python -m tests.rules [RULE ...] [--no-kafka]`: shows each rule's test red with the rule switched off.

The tree is copied; one switch at a time is applied to the copy and the rule's tests are run there. Without
arguments all rules are tried and docs/rules.md is written. Ends with 1 if a test is red as is, or stays green.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

from driftline.local import embedded
from tests.conftest import SHARED
from tests.rules.rule import Rule
from tests.rules.rules import RULES

ROOT = Path(__file__).parents[2]
LIMIT_S = 420
COPIED = (
    "contracts",
    "storage",
    "learners",
    "runtime",
    "contexts",
    "streams",
    "scoring",
    "driftline",
    "tests",
    "pyproject.toml",
)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the tests of a rule did."""

    rule: Rule
    green_as_is: bool
    stayed_green: tuple[str, ...]
    """Tests that did not notice that the rule was off."""

    @property
    def proven(self) -> bool:
        return self.green_as_is and not self.stayed_green


def main(arguments: Sequence[str]) -> int:
    """Tries the rules asked for."""
    parser = ArgumentParser(prog="python -m tests.rules", description=__doc__)
    parser.add_argument("rules", nargs="*", type=int, help="numbers of the protocol's rules; default: all")
    parser.add_argument("--no-kafka", action="store_true", help="leave out what needs a real Kafka")
    asked = parser.parse_args(arguments)
    wanted = [rule for rule in RULES if not asked.rules or rule.number in asked.rules]
    wanted = [rule for rule in wanted if not (asked.no_kafka and rule.kafka)]
    with tempfile.TemporaryDirectory(prefix="driftline-rules-") as folder, ExitStack() as servers:
        tree = copy(Path(folder))
        environment = start_servers(servers, Path(folder), kafka=any(rule.kafka for rule in wanted))
        failed = run(tree, environment, sorted({test for rule in wanted for test in rule.tests}))
        for test in sorted(failed):
            print(f"red as is: {test}", flush=True)
        seen = []
        for rule in wanted:
            seen.append(try_rule(tree, environment, rule, failed))
            print(line(seen[-1]), flush=True)
    if not asked.rules and not asked.no_kafka:
        (ROOT / "docs").mkdir(exist_ok=True)
        (ROOT / "docs" / "rules.md").write_text(page(seen), encoding="utf-8")
    return 0 if all(each.proven for each in seen) else 1


def copy(folder: Path) -> Path:
    """The tree without what is built or downloaded; `shared` beside it, as beside the original."""
    tree = folder / "driftline"
    tree.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    if SHARED.exists():
        (folder / "shared").symlink_to(SHARED)
    return tree


def start_servers(servers: ExitStack, folder: Path, *, kafka: bool) -> dict[str, str]:
    """One Postgres and, if need be, one Kafka for all runs; gives the environment of the runs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE_")}
    environment["PYTHONPATH"] = str(folder / "driftline")  # before the editable installation's finder
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    options = ["max_connections=100", "shared_buffers=128MB"]
    environment["DRIFTLINE_TEST_POSTGRES"] = servers.enter_context(embedded.postgres(options=options))
    if kafka:
        script, data = SHARED / "kafka" / "kafka", folder / "kafka"
        servers.callback(lambda: subprocess.run([script, "kill", data], check=True))
        started = subprocess.run([script, "start", data], check=True, capture_output=True, text=True, timeout=90)
        environment["DRIFTLINE_TEST_KAFKA"] = started.stdout.strip()
    return environment


def run(tree: Path, environment: dict[str, str], tests: Iterable[str]) -> set[str]:
    """Runs tests in the tree; those that failed. A test that was skipped or not found counts as failed by error.

    :raises RuntimeError: the tests could not be run at all.
    """
    tests, report = list(tests), tree.parent / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}", *tests]
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return set(tests)  # it hangs with the rule off
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-1000:]}")
    failed = set()
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '').partition('[')[0]}"
        test = next((test for test in tests if test.endswith(name) or name.endswith(test.rpartition("/")[2])), None)
        if test is None:
            raise RuntimeError(f"the report names {name}, which was not asked for")
        if case.find("skipped") is not None:
            raise RuntimeError(f"{test} was skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.add(test)
    return failed


def try_rule(tree: Path, environment: dict[str, str], rule: Rule, failed_as_is: set[str]) -> Seen:
    """Runs a rule's tests with the rule off."""
    file = tree / rule.file
    original = text = file.read_text(encoding="utf-8")
    for old, new in rule.off:
        if text.count(old) != 1:
            raise RuntimeError(
                f"rule {rule.number} ({rule.says}): in {rule.file} stands {text.count(old)} times:\n{old}"
            )
        text = text.replace(old, new)
    compile(text, rule.file, "exec")
    file.write_text(text, encoding="utf-8")
    try:
        noticed = run(tree, environment, rule.tests)
    finally:
        file.write_text(original, encoding="utf-8")
    green = tuple(test for test in rule.tests if test not in noticed)
    return Seen(rule=rule, green_as_is=not failed_as_is & set(rule.tests), stayed_green=green)


def line(seen: Seen) -> str:
    """A result for the screen."""
    as_is = "green as is" if seen.green_as_is else "RED AS IS"
    off = f"STAYED GREEN: {', '.join(seen.stayed_green)}" if seen.stayed_green else "red when off"
    return f"rule {seen.rule.number:>2}  {as_is}, {off}  {seen.rule.says}"


def page(seen: Sequence[Seen]) -> str:
    """docs/rules.md."""
    lines = [
        "# The rules of the protocol and their tests",
        "",
        "Written by `python -m tests.rules`, which copies the tree, switches one rule off at a time (the switches are",
        "in `tests/rules/`) and runs the rule's tests there: each must pass as is and fail with the rule off.",
        "",
        "| rule | what it says | switched off in | test | as is | when off |",
        "|---|---|---|---|---|---|",
    ]
    for number, group in groupby(seen, lambda each: each.rule.number):
        for each in group:
            tests = "<br>".join(f"`{test.rpartition('/')[2]}`" for test in each.rule.tests)
            as_is = "green" if each.green_as_is else "**red**"
            off = "**green**" if each.stayed_green else "red"
            lines.append(f"| {number} | {each.rule.says} | `{each.rule.file}` | {tests} | {as_is} | {off} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
