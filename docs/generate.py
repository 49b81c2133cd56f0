"""Writes docs/metrics.md and docs/settings.md from the code (`make docs`). A test compares them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from runtime import metrics
from runtime.metrics import Metric
from runtime.settings import PREFIX, Settings

FOLDER = Path(__file__).parent
_PARTS = {
    "ingest": "`driftline ingest`",
    "train": "`driftline train`",
    "score": "`driftline score`",
    "drift": "`driftline drift`",
    "maintain": "`driftline maintain`",
    "export": "`driftline export`",
}

_METRICS_HEAD = """\
# Metrics

Written by `make docs` from `runtime/metrics.py`, the one list of all metrics; do not edit by hand.
Each process serves its own at `/metrics` (ports: see [settings](settings.md)). No label is a user, item or event id.
"""
_SETTINGS_HEAD = """\
# Settings

Written by `make docs` from `runtime/settings.py`; do not edit by hand.

Strongest first: environment variables, then the TOML file (`--config FILE`, else `DRIFTLINE_CONFIG`, else
`driftline.toml` in the working directory), then the defaults. In the file a group is a table:

```toml
kafka_bootstrap = "broker-1:9092,broker-2:9092"

[ingest]
batch_records = 20000
```

A name that is not in these tables is refused, in the environment and in the file. `driftline config show` prints
what is in force, with passwords hidden.
"""


def metrics_page() -> str:
    """docs/metrics.md."""
    parts: dict[str, list[Metric[...]]] = {}
    for metric in metrics.ALL:
        parts.setdefault(_PARTS.get(metric.name.split("_")[1], "Every process"), []).append(metric)
    blocks = [_METRICS_HEAD]
    for part, found in parts.items():
        rows = [
            f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} "
            f"| {_cell(metric.help)} |"
            for metric in found
        ]
        blocks.append(
            "\n".join([f"## {part}", "", "| name | kind | labels | meaning |", "|---|---|---|---|", *rows, ""])
        )
    return "\n".join(blocks)


def settings_page() -> str:
    """docs/settings.md."""
    blocks, groups = [_SETTINGS_HEAD], list[tuple[str, type[BaseModel]]]()
    plain = []
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, BaseModel):
            groups.append((name, type(field.default)))
        else:
            plain.append((PREFIX + name.upper(), field))
    blocks.append(_settings_table("All processes", plain))
    for name, group in groups:
        fields = [(f"{PREFIX}{name.upper()}__{inner.upper()}", field) for inner, field in group.model_fields.items()]
        blocks.append(_settings_table(_PARTS[name], fields))
    return "\n".join(blocks)


def _settings_table(title: str, fields: list[tuple[str, FieldInfo]]) -> str:
    rows = [f"| `{name}` | {_default(field)} | {_cell(field.description or '')} |" for name, field in fields]
    return "\n".join([f"## {title}", "", "| environment variable | default | meaning |", "|---|---|---|", *rows, ""])


def _default(field: FieldInfo) -> str:
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value == "":
        return "not set"
    return f"`{json.dumps(value) if isinstance(value, dict) else value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PAGES = {"metrics.md": metrics_page, "settings.md": settings_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
        print(f"wrote docs/{name}")
