"""Faust: one agent that parses JSON and counts per user in a table (in memory, with a changelog topic)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import faust
import orjson  # type: ignore[import-not-found, unused-ignore]

from benchmarks.contenders.task import Answer, Task

PARTITIONS = 4
"""A table needs as many as the topic it counts."""


class Counter:
    """The agent's function and the times it was first and last busy."""

    def __init__(self, app: Any, task: Task, done: asyncio.Event) -> None:
        self.started_at = 0.0
        self.counted = 0
        self._task = task
        self._done = done
        self._counts = app.Table("counts", default=int, partitions=PARTITIONS)

    async def count(self, stream: Any) -> None:
        counts, parseable = self._counts, self._task.parseable
        async for key, value in stream.items():
            if not self.started_at:
                self.started_at = time.time()
            try:
                orjson.loads(value)
            except orjson.JSONDecodeError:
                continue
            counts[key] += 1
            self.counted += 1
            if self.counted == parseable:
                self._done.set()


def application(task: Task) -> Any:
    return faust.App(
        task.group,
        broker=f"kafka://{task.bootstrap}",
        store="memory://",
        datadir=task.state_dir,
        topic_replication_factor=1,
        topic_partitions=PARTITIONS,
        topic_disable_leader=True,
        web_enabled=False,
        consumer_auto_offset_reset="earliest",
    )


async def run(task: Task) -> None:
    """Counts every record that is JSON, waits for the changelog and the offsets, says so."""
    app = application(task)
    done = asyncio.Event()
    counter = Counter(app, task, done)
    source = app.topic(task.topic, key_type=str, value_type=bytes, value_serializer="raw")
    app.agent(source)(counter.count)
    await app.start()
    await done.wait()
    await app.producer.flush()
    await app.consumer.commit()
    Answer(records=counter.counted, started_at=counter.started_at, finished_at=time.time()).print()
    await app.stop()


if __name__ == "__main__":
    asyncio.run(run(Task.from_environment()))
