"""`driftline score`: what comes next for a user and when, or how candidates rank, over HTTP and Kafka.

Four threads and one asynchronous edge: the edge (`web`) and the reader of `scores.requests` put requests into one
intake, the engine takes them out in batches and answers, the shelf puts newer models in place, and this thread
watches them. Answers come
from the newest live snapshot and from user state as of one watermark; see `protocol.md` of the design, rules
11 and 19.
"""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path

import structlog
import torch

from contracts.scoring import ModelInfo
from learners import registry
from runtime.admin_app import Health
from runtime.kafka import KafkaConfig
from runtime.lifecycle import ConfigurationError, DriftlineError, Stop
from runtime.settings import ScoreSettings
from scoring.serve.batch_engine import PROBE_S, Engine
from scoring.serve.http_api import application
from scoring.serve.http_server import Server
from scoring.serve.kafka_requests import Requests
from scoring.serve.live_model import Model
from scoring.serve.model_loader import Shelf
from scoring.serve.request_queue import RequestQueue
from scoring.serve.state_reader import StateReader
from scoring.weights import SERVED
from storage.engine import open_engine

TRANSACTION_TIMEOUT_S = 5.0
LATELY_S = 5.0
"""Ready means: Postgres answered within so many seconds."""
KAFKA_S, DRAIN_S, SEND_S, SHELF_S = 2.0, 3.0, 1.0, 1.0
"""Seconds left, at a stop, to Kafka's requests in hand, to HTTP's taken in, to replies being sent, to a model being
built."""
SWITCH_S = 0.0005
"""Python's threads take turns so often. By default a model being built keeps an answer waiting for 5 ms each time that
it comes back from Postgres."""

_log = structlog.get_logger(__name__)


class Score:
    """The process. `run` returns once `stop` is set and what was asked is answered."""

    def __init__(
        self,
        *,
        postgres_url: str,
        snapshots: Path,
        settings: ScoreSettings,
        health: Health,
        stop: Stop,
        kafka: KafkaConfig | None = None,
    ) -> None:
        """
        :param snapshots: folder of the snapshot files.
        :param kafka: where `scores.requests` is answered too; None: HTTP alone.
        :raises Usage: the port is taken, or there is no such learner or device.
        """
        _check(settings)
        self._settings = settings
        self._health = health
        self._stop = stop
        for part in ("model", "postgres", "score"):
            health.set_ready(part, False, "starting")
        self._server = Server(host=settings.host, port=settings.port)
        self._postgres = open_engine(
            postgres_url,
            application_name="driftline-score",
            transaction_timeout_s=TRANSACTION_TIMEOUT_S,
            pooled=True,
        )
        self._shelf = Shelf(
            postgres=self._postgres,
            folder=snapshots,
            learner=settings.learner,
            device=settings.device,
            poll_s=settings.poll_s,
            changed=self._model_changed,
        )
        self._engine = Engine(
            intake=RequestQueue(
                batch_size=settings.batch_size, batch_wait_s=settings.batch_wait_s, max_queue=settings.max_queue
            ),
            reader=StateReader(self._postgres, learner=settings.learner),
            shelf=self._shelf,
            threads=settings.threads,
        )

        self._requests: Requests | None = None
        if kafka is not None:
            self._requests = Requests(kafka=kafka, settings=settings, submit=self._engine.submit)

    @property
    def port(self) -> int:
        """TCP port of the HTTP server, open from the constructor on."""
        return self._server.port

    def models(self) -> list[ModelInfo]:
        """Who answers."""
        current = self._shelf.current
        return [] if current is None else [current.info]

    def run(self) -> None:
        """Serves until stopped; then drains in less than ten seconds.

        :raises Trouble: one of its threads ended by itself.
        :raises TopicMissing, BrokerRefused: Kafka's requests cannot be read; a person decides.
        """
        torch.set_num_threads(self._settings.threads)
        torch.use_deterministic_algorithms(True)
        sys.setswitchinterval(SWITCH_S)
        # What lives for ever need not be walked again and again: each walk would be somebody's slow answer.
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        self._shelf.start()
        self._engine.start()
        token = self._settings.token
        page = application(
            submit=self._engine.submit,
            models=self.models,
            health=self._health,
            token=None if token is None else token.get_secret_value(),
        )
        self._server.start(page, drain_s=SEND_S)
        if self._requests is not None:
            self._requests.start()
        self._health.set_ready("score", True)
        _log.info("score.listening", host=self._settings.host, port=self.port)
        try:
            while not self._stop.wait(PROBE_S / 2):
                self._watch()
        finally:
            self._drain()

    def _watch(self) -> None:
        silent_s = time.monotonic() - self._engine.read_at
        why = self._engine.trouble
        if not why and silent_s > LATELY_S:
            why = f"Postgres has not answered for {silent_s:.0f} s"
        self._health.set_ready("postgres", not why, why)
        if self._requests is not None and self._requests.failure is not None:
            raise self._requests.failure
        for thread in (self._shelf, self._engine, self._server):
            if not thread.is_alive():
                raise DriftlineError(f"the {type(thread).__name__.lower()}'s thread ended", where="score")

    def _drain(self) -> None:
        self._health.set_ready("score", False, "stopping")
        if self._requests is not None:
            self._requests.close(KAFKA_S)
        self._engine.close(DRAIN_S)
        self._server.close(SEND_S + 1.0)
        self._shelf.close(SHELF_S)
        self._postgres.dispose()
        _log.info("score.stopped", reason=self._stop.reason)

    def _model_changed(self, model: Model | None, why: str) -> None:
        self._health.set_ready("model", model is not None, why)


def _check(settings: ScoreSettings) -> None:
    try:
        kinds = {task.kind for task in registry.tasks_of(settings.learner)}
    except (registry.UnknownLearner, registry.BrokenLearner) as error:
        raise ConfigurationError(str(error), where="setting score.learner", hint="see `driftline learners`") from None
    if not kinds & SERVED:
        raise ConfigurationError(
            f"learner {settings.learner!r} answers no requests: it predicts {', '.join(sorted(kinds))}",
            where="setting score.learner",
            hint=f"name one that answers {' or '.join(sorted(SERVED))}; `driftline learners` lists them",
        )
    if settings.device == "auto":
        return
    try:
        torch.empty(0, device=settings.device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA says it with an assertion
        reason = str(error).splitlines()[0]
        raise ConfigurationError(
            f"device {settings.device!r}: {reason}", where="setting score.device", hint='try "auto"'
        ) from None
