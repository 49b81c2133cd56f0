"""Quix Streams, exactly-once: parse JSON, count per user in RocksDB with a changelog topic."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders.quix import Clock, application, run, topic
from benchmarks.contenders.task import Task


def count(_: Any, state: Any) -> int:
    total: int = state.get("count", 0) + 1
    state.set("count", total)
    return total


def main() -> None:
    task = Task.from_environment()
    clock = Clock()
    app = application(task, processing_guarantee="exactly-once")
    app.dataframe(topic(app, task, clock)).apply(count, stateful=True)
    run(app, task, clock)


if __name__ == "__main__":
    main()
