"""What surrounds the code agrees with the code: pages, dashboards, alerts, containers, commands."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import msgspec
import pytest
import yaml
from typer.testing import CliRunner

from contracts import topics
from contracts.codec import Decoder, Reason
from contracts.records import DriftAlarm, Progress
from contracts.scoring import RankingAnswer, ScoreAnswer, ScoreRequest
from driftline.cli import app
from runtime import metrics
from runtime.failpoints import Failpoint
from runtime.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
OPS, DOCS = ROOT / "ops", ROOT / "docs"
DASHBOARDS = sorted((OPS / "grafana" / "dashboards").glob("*.json"))
PROCESSES = ("ingest", "train", "score", "drift", "maintain", "export")
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")])
GROUPS = {"topics", "config", "offsets", "dlq", "snapshots", "bundle"}
_METRIC = re.compile(r"\bdriftline_[a-z0-9_]+\b")


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def _series() -> set[str]:
    """All names under which Prometheus knows the metrics."""
    names = set()
    for metric in metrics.ALL:
        names |= (
            {f"{metric.name}_{part}" for part in ("bucket", "sum", "count")} if metric.kind == "histogram" else set()
        )
        names |= {metric.name} if metric.kind != "histogram" else set()
    return names


def _labels(name: str) -> set[str]:
    plain = re.sub(r"_(bucket|sum|count)$", "", name)
    found = [metric for metric in metrics.ALL if metric.name in (name, plain)]
    return set(found[0].labels) | {"instance", "job", "le"}


def _expressions(board: Any) -> Iterator[str]:
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def _rules() -> list[dict[str, Any]]:
    return [rule for group in _yaml(OPS / "prometheus" / "rules.yml")["groups"] for rule in group["rules"]]


def _check_expression(expression: str) -> None:
    recorded = {rule["record"] for rule in _rules() if "record" in rule}
    for name in recorded:
        expression = expression.replace(name, "recorded")
    for name in _METRIC.findall(expression):
        assert name in _series(), f"no metric {name}"
    for name, matchers in re.findall(r"\b(driftline_[a-z0-9_]+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= _labels(name), expression


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["metrics.md", "settings.md"])
def test_generated_pages_are_current(page: str) -> None:
    assert (DOCS / page).read_text() == _generator().PAGES[page](), "run `make docs`"


def test_there_is_a_dashboard_for_each_process() -> None:
    assert [path.stem for path in DASHBOARDS] == ["drift", "export", "ingest", "maintain", "score", "train"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_show_known_metrics_from_the_chosen_data_source(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["uid"] == f"driftline-{path.stem}"
    assert [variable["type"] for variable in board["templating"]["list"]] == ["datasource"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        assert {part["datasource"]["uid"] for part in [panel, *panel["targets"]]} == {"${datasource}"}
    for expression in _expressions(board):
        _check_expression(expression)


def test_every_metric_is_on_a_dashboard() -> None:
    shown = " ".join(expression for path in DASHBOARDS for expression in _expressions(json.loads(path.read_text())))
    assert [metric.name for metric in metrics.ALL if metric.name not in shown] == []


def test_rules_use_known_metrics() -> None:
    for rule in _rules():
        _check_expression(rule["expr"])


def test_alerts_say_how_grave_how_long_and_what_to_do() -> None:
    page = (DOCS / "operations.md").read_text()
    headings = {_anchor(line) for line in page.splitlines() if line.startswith("#")}
    alerts = [rule for rule in _rules() if "alert" in rule]
    assert alerts
    for alert in alerts:
        assert alert["labels"]["severity"] in {"warning", "critical"}
        assert alert["for"]
        where, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert where == "docs/operations.md"
        assert anchor in headings, f"{alert['alert']}: no section {anchor}"


def test_prometheus_scrapes_every_process_where_compose_runs_it() -> None:
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in _scrapes()}
    settings = Settings()
    ports = {name: getattr(settings, name).port for name in PROCESSES}
    assert jobs == {name: [f"{name}:{port}"] for name, port in ports.items()}
    assert set(jobs) <= set(_compose()["services"])


def _scrapes() -> Any:
    return _yaml(OPS / "prometheus" / "prometheus.yml")["scrape_configs"]


def _compose() -> Any:
    return _yaml(ROOT / "docker-compose.yml")


def test_compose_pins_images_and_waits_for_what_it_needs() -> None:
    compose = _compose()
    assert "version" not in compose
    for name, service in compose["services"].items():
        assert re.search(r":v?\d+\.\d+", service["image"]), f"{name}: {service['image']}"
        for needed, how in service.get("depends_on", {}).items():
            one_shot = compose["services"][needed].get("restart") == "no"
            assert how["condition"] == ("service_completed_successfully" if one_shot else "service_healthy")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in compose["volumes"]
    for name in PROCESSES:
        assert compose["services"][name]["healthcheck"]["test"]


def test_compose_calls_verbs_that_exist_with_settings_that_exist() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for service in _compose()["services"].values():
        if not service["image"].startswith("driftline:"):
            continue
        assert set(service["environment"]) <= known
        assert CliRunner().invoke(app, [*service["command"], "--help"]).exit_code == 0


def test_the_image_holds_every_package() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    copied = set(re.findall(r"^COPY (\w+) /src/\1$", dockerfile, re.M))
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert copied == packages


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name) if name else page
        assert found.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in {_anchor(line) for line in found.read_text().splitlines() if line.startswith("#")}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_name_verbs_and_settings_that_exist(page: Path) -> None:
    text = page.read_text()
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {f"{PREFIX}CONFIG"}
    for name in re.findall(r"\bDRIFTLINE_(?!TEST_)[A-Z_]+[A-Z]", text):
        assert name.split("__")[0] in known, name
    for verb, word in re.findall(r"`driftline (?:--\S+ \S+ )?([a-z-]+)(?: ([a-z]+))?", text):
        call = [verb, word] if verb in GROUPS and word else [verb]
        assert CliRunner().invoke(app, [*call, "--help"]).exit_code == 0, call


def test_make_verbs_on_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        named = set(re.findall(r"`make ([a-z-]+)", page.read_text()))
        assert named <= targets, f"{page.name}: {named - targets}"


def test_every_fail_point_is_explained() -> None:
    page = (DOCS / "guarantees.md").read_text()
    assert [name for name in get_args(Failpoint) if f"`{name}`" not in page] == []


def test_every_reason_of_a_dead_letter_is_explained() -> None:
    page = (DOCS / "events.md").read_text()
    assert [reason for reason in Reason if f"`{reason}`" not in page] == []


def test_the_examples_of_records_are_read() -> None:
    seen = set()
    for topic, body in re.findall(r"<!-- (\S+) -->\n```json\n(.*?)```", (DOCS / "events.md").read_text(), re.S):
        seen.add(topic)
        _read(topic, body.encode())
    assert seen == {*topics.INPUTS, topics.PROGRESS, topics.ALARMS, "ScoreRequest", "ScoreAnswer", "RankingAnswer"}


def _read(topic: str, body: bytes) -> None:
    others: dict[str, Any] = {
        topics.PROGRESS: Progress,
        topics.ALARMS: DriftAlarm,
        "ScoreRequest": ScoreRequest,
        "ScoreAnswer": ScoreAnswer,
        "RankingAnswer": RankingAnswer,
    }
    if topic in others:
        msgspec.json.decode(body, type=others[topic])
        return
    key = next(json.loads(body)[name] for name in ("actor_id", "user_id", "item_id") if name in json.loads(body))
    read = Decoder(topics.INPUTS[topic])
    assert read.with_unknown_fields([read.decode(body, key.encode())]) == 0


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-")
