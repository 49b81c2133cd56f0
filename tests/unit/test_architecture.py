"""The direction of imports (docs: design, "Direction"), read from the source and not by importing."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = {
    "contracts": 0,
    "storage": 1,
    "learners": 1,
    "runtime": 1,
    "contexts": 2,
    "streams": 3,
    "scoring": 3,
    "driftline": 4,
}
PACKAGES = (*LAYERS, "benchmarks", "tests")
ENTRIES = {
    "streams.ingest.process",
    "streams.train.process",
    "streams.drift.process",
    "streams.maintain.process",
    "scoring.serve.process",
    "scoring.export.process",
}
"""Each long-running process has one entry module."""


@cache
def sources() -> dict[str, ast.Module]:
    """Module name -> syntax tree, of everything that ships."""
    found = {}
    for package in LAYERS:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(file.read_text(encoding="utf-8"), file)
    return found


def imports_of(tree: ast.Module, *, at_load: bool = False) -> Iterator[str]:
    """The modules a module imports; `at_load`: without those inside functions or for type checkers only."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            module = node.module or ""
            yield from (
                f"{module}.{alias.name}" if f"{module}.{alias.name}" in sources() else module for alias in node.names
            )
        elif at_load and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        elif at_load and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        todo += ast.iter_child_nodes(node)


def imported() -> Iterator[tuple[str, str]]:
    """(module, what it imports) for all of ours."""
    for module, tree in sources().items():
        for target in imports_of(tree):
            yield module, target


def top(module: str) -> str:
    return module.partition(".")[0]


def test_a_layer_imports_only_lower_layers_and_itself() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, target in imported()
        if top(target) in LAYERS and top(target) != top(module) and LAYERS[top(target)] >= LAYERS[top(module)]
    ]
    assert not wrong


def test_nothing_imports_the_outermost_parts() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, target in imported()
        if top(target) in {"benchmarks", "tests"} or (top(target) == "driftline" and top(module) != "driftline")
    ]
    assert not wrong


def test_learners_import_nothing_of_ours_and_no_kafka_sql_clock_or_environment() -> None:
    banned = set(PACKAGES) - {"learners"} | {
        "confluent_kafka", "sqlalchemy", "psycopg", "time", "os", "random", "socket", "subprocess", "structlog",
    }  # fmt: skip
    wrong = [f"{m} imports {t}" for m, t in imported() if top(m) == "learners" and top(t) in banned]
    assert not wrong


def test_processes_never_import_each_other() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, target in imported()
        if target in ENTRIES and top(module) in {"streams", "scoring"} and module != target
    ]
    assert not wrong


def test_scoring_never_reads_the_log() -> None:
    wrong = [f"{m} imports {t}" for m, t in imported() if top(m) == "scoring" and t.startswith("storage.log.event_log")]
    assert not wrong


def users_of(*libraries: str) -> set[str]:
    return {module for module, target in imported() if top(target) in libraries}


def test_kafka_clients_live_where_they_are_made_and_where_messages_flow() -> None:
    wrong = {
        module
        for module in users_of("confluent_kafka")
        if module
        not in {"runtime.kafka", "runtime.kafka_errors", "runtime.produce", "runtime.request_reply", "runtime.headers"}
        and top(module) not in {"streams", "driftline"}
    }
    assert not wrong


def test_faust_and_river_have_one_user_each() -> None:
    assert users_of("faust", "mode") == {"streams.drift.process"}
    assert users_of("aiokafka") == {"streams.drift.header_names"}  # which mends its reading of headers, for `drift`
    assert users_of("river") == {"streams.drift.detectors"}


def test_clients_are_made_in_one_place() -> None:
    """Elsewhere the names serve as types: nobody else calls the constructors."""
    makers = {"Consumer", "Producer", "AdminClient"}
    wrong = [
        f"{module}: {ast.unparse(node)[:60]}"
        for module, tree in sources().items()
        if module != "runtime.kafka" and not module.startswith("driftline.audit")  # it proves the others right
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in makers
    ]
    assert not wrong


def test_sql_lives_in_storage() -> None:
    """Elsewhere SQLAlchemy's names are types of what is passed along; the audit has its own SQL on purpose."""
    passed_along = {"Connection", "Engine"}
    wrong = []
    for module, tree in sources().items():
        if top(module) == "storage" or module.startswith(("driftline.audit", "driftline.local")):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and top(node.module or "") in {"sqlalchemy", "psycopg"}:
                wrong += [f"{module}: {alias.name}" for alias in node.names if alias.name not in passed_along]
            elif isinstance(node, ast.Import):
                wrong += [f"{module}: {a.name}" for a in node.names if top(a.name) in {"sqlalchemy", "psycopg"}]
    assert not wrong


def test_storage_knows_neither_torch_nor_kafka() -> None:
    wrong = [
        f"{m} imports {t}" for m, t in imported() if top(m) == "storage" and top(t) in {"torch", "confluent_kafka"}
    ]
    assert not wrong


def test_only_the_settings_read_the_environment() -> None:
    readers = {
        module
        for module, tree in sources().items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"})
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and {a.name for a in node.names} & {"environ"})
    }
    assert readers == {"runtime.settings"}


def test_no_module_imports_itself_around_a_corner() -> None:
    graph = {m: {t for t in imports_of(tree, at_load=True) if t in sources()} for m, tree in sources().items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for target in sorted(graph[module] - {module}):
                visit(target, (*path, module))
            done.add(module)

    sys.setrecursionlimit(max(sys.getrecursionlimit(), 2000))
    for module in graph:
        visit(module, ())


def test_every_package_says_what_it_is() -> None:
    silent = [
        str(file.parent.relative_to(ROOT))
        for package in LAYERS
        for file in (ROOT / package).rglob("__init__.py")
        if not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
        and not file.is_relative_to(ROOT / "storage/migrations/versions")
    ]
    assert not silent


def test_every_module_says_what_it_is() -> None:
    silent = [
        module
        for module, tree in sources().items()
        if not ast.get_docstring(tree) and not module.endswith(("__main__", "versions"))
    ]
    assert not silent


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert not [module for module in sources() if drawers & set(module.split("."))]


@pytest.mark.parametrize("package", LAYERS)
def test_the_folders_are_there(package: str) -> None:
    assert (ROOT / package / "__init__.py").is_file()
