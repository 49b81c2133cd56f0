"""Quix Streams with its PostgreSQL sink: parse JSON, append one row a record.

At least once and without a primary key: it keeps duplicates and malformed rows, which is the sink at its
fastest.
"""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from quixstreams.sinks.community.postgresql import PostgreSQLSink  # type: ignore[import-not-found]

from benchmarks.contenders.quix import Clock, application, run, topic
from benchmarks.contenders.task import Task

TABLE = "event"


def main() -> None:
    task = Task.from_environment()
    clock = Clock()
    app = application(task, processing_guarantee="at-least-once")
    app.dataframe(topic(app, task, clock)).sink(sink(task.postgres_url))
    run(app, task, clock)


def sink(url: str) -> PostgreSQLSink:
    parts = urlsplit(url)
    return PostgreSQLSink(
        host=parse_qs(parts.query)["host"][0],
        port=5432,
        dbname=parts.path.lstrip("/"),
        user=parts.username,
        password="",
        table_name=TABLE,
    )


if __name__ == "__main__":
    main()
