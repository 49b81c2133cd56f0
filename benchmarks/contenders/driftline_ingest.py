"""Driftline itself: the `ingest` process with its default settings, in one Python process, up to the end offsets.

It is what `driftline ingest --once` runs, less the command line and the metrics server; the tables are
made before, as `driftline migrate` does.
"""

from __future__ import annotations

from benchmarks.contenders.task import Answer, Task
from runtime.admin_app import Health
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Stop
from runtime.settings import IngestSettings
from storage.migrate import upgrade
from streams.ingest.process import Ingest


def main() -> None:
    task = Task.from_environment()
    upgrade(task.postgres_url)
    ingest = Ingest(
        postgres_url=task.postgres_url,
        kafka_config=KafkaConfig(bootstrap=task.bootstrap),
        settings=IngestSettings(group=task.group),
        health=Health("ingest"),
        stop=Stop(),
    )
    totals = ingest.run(once=True)
    if totals.first_at is None or totals.last_at is None:
        raise SystemExit("nothing was ingested")
    Answer(records=totals.read, started_at=totals.first_at, finished_at=totals.last_at).print()


if __name__ == "__main__":
    main()
