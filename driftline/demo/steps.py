"""The order of the acts, the servers under them, and whether anybody stays behind."""

from __future__ import annotations

import json
import time
from pathlib import Path

from pydantic import SecretStr
from rich.console import Console

from driftline.cli_context import Session
from driftline.demo import exporting, forgetting, learning, serving, watching
from driftline.demo.processes import Known, alive, cast, descendants
from driftline.demo.results import Facts, Plot
from driftline.demo.stage import Play
from driftline.local.embedded import LocalStack, local_stack
from runtime.settings import Settings

ACTS = (
    learning.prepare,
    learning.take_in,
    learning.learn,
    learning.repeat,
    watching.alarms,
    serving.next_event,
    serving.ranking,
    exporting.export,
    forgetting.erase,
    forgetting.come_late,
    forgetting.prove,
)


class Story:
    """The acts, in their order."""

    def __init__(self, plot: Plot, folder: Path, console: Console) -> None:
        self.plot, self.folder, self.console = plot, folder, console
        self.facts = Facts()
        self._seen: Known = {}
        """All processes that were ever started on the way."""

    def run(self) -> Facts:
        """Plays it.

        :raises Trouble: it could not be played to the end.
        """
        self._say("starting an embedded PostgreSQL and an embedded Kafka-compatible broker (Tansu)")
        with local_stack() as parts, cast(self.folder, self._settings(parts)) as players:
            addresses = Settings.model_construct(
                postgres_url=SecretStr(parts.postgres_url), kafka_bootstrap=parts.kafka_bootstrap
            )
            play = Play(
                plot=self.plot,
                facts=self.facts,
                players=players,
                call=Session.of(addresses),
                folder=self.folder,
                say=self._say,
            )
            for act in ACTS:
                act(play)
        self.facts.left = alive(self._seen | descendants())
        self.facts.total_s = time.monotonic() - self.facts.started_at
        return self.facts

    def _settings(self, parts: LocalStack) -> dict[str, str]:
        plot = self.plot
        return {
            "DRIFTLINE_POSTGRES_URL": parts.postgres_url,
            "DRIFTLINE_KAFKA_BOOTSTRAP": parts.kafka_bootstrap,
            "DRIFTLINE_DATA_DIR": str(self.folder / "data"),
            "DRIFTLINE_CONFIG": str(self.folder / "driftline.toml"),
            "DRIFTLINE_LOG_FORMAT": "console",
            "DRIFTLINE_INGEST__BATCH_RECORDS": str(plot.batch_records),
            "DRIFTLINE_TRAIN__OPTIONS": json.dumps(
                {name: {"warmup_events": plot.warmup_events} for name in ("prompttpp", "sdim")}
            ),
            "DRIFTLINE_TRAIN__SNAPSHOT_EVERY_S": str(plot.snapshot_every_s),
            # `ingest` is away for a while: do not go on without the partitions it has not brought yet.
            "DRIFTLINE_TRAIN__MERGE_WAIT_S": "60",
            "DRIFTLINE_MAINTAIN__EVERY_S": "2",
            "DRIFTLINE_MAINTAIN__COMPACT_ROWS": str(plot.compact_rows),
        }

    def _say(self, line: str) -> None:
        self._seen |= descendants()
        self.console.print(f"[dim]{time.monotonic() - self.facts.started_at:5.0f} s[/]  {line}", highlight=False)
