"""What the two Quix Streams contenders share: the application, its clock and its stop.

Runs in the peers' venv. The settings are Quix's own defaults except where a line says why.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import orjson  # type: ignore[import-not-found, unused-ignore]
from quixstreams import Application  # type: ignore[import-not-found]
from quixstreams.checkpointing import Checkpoint  # type: ignore[import-not-found]
from quixstreams.models import JSONDeserializer, Topic  # type: ignore[import-not-found]
from quixstreams.models.serializers import SerializationError  # type: ignore[import-not-found]

from benchmarks.contenders.task import Answer, Task


class Clock:
    """Takes the two times of an `Answer` where Quix has no hook of its own.

    The first record is seen by the JSON parser, which replaces Quix's default (the same one-line call of
    orjson), so it costs one comparison a record. The end is the return of the last checkpoint's commit.
    """

    def __init__(self) -> None:
        self.started_at = 0.0
        self.finished_at = 0.0
        commit = Checkpoint.commit

        def timed_commit(checkpoint: Any, **kwargs: Any) -> None:
            commit(checkpoint, **kwargs)
            self.finished_at = time.time()

        Checkpoint.commit = timed_commit

    def loads(self, value: bytes) -> Any:
        if not self.started_at:
            self.started_at = time.time()
        return orjson.loads(value)


def application(task: Task, *, processing_guarantee: str) -> Any:
    return Application(
        broker_address=task.bootstrap,
        consumer_group=task.group,
        auto_offset_reset="earliest",
        processing_guarantee=processing_guarantee,
        state_dir=task.state_dir,
        on_consumer_error=_skip_what_is_not_json,
        loglevel=logging.WARNING,
    )


def topic(app: Any, task: Task, clock: Clock) -> Topic:
    return app.topic(task.topic, key_deserializer="str", value_deserializer=JSONDeserializer(loads=clock.loads))


def run(app: Any, task: Task, clock: Clock) -> None:
    """Runs until every record that is JSON was handled, then says so."""
    app.run(count=task.parseable, collect=False)
    Answer(records=task.parseable, started_at=clock.started_at, finished_at=clock.finished_at).print()


def _skip_what_is_not_json(error: Exception, message: object, log: object) -> bool:
    return isinstance(error, SerializationError)
