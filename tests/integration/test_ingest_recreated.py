"""Rule 3, at its narrowest: a topic deleted and created again while a batch of it is on its way to Postgres."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from contracts import topics
from runtime.kafka import KafkaConfig
from runtime.lifecycle import OperatorActionRequired
from streams.ingest.consumer_session import ConsumerSession
from tests.integration.feeding import Sender, event, eventually, ingest, taken
from tests.integration.test_ingest_positions import recreate, running

pytestmark = pytest.mark.kafka  # on Tansu librdkafka 2.16 itself crashes when a topic is recreated under it


def test_a_batch_whose_topic_was_created_again_after_its_last_fetch_is_not_committed(
    database: str, kafka_topics: KafkaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    recreated = threading.Event()

    def late(write: Callable[..., Any]) -> Callable[..., Any]:
        def written(*given: Any) -> Any:
            if not recreated.is_set():
                recreate(kafka_topics, topics.USER, 4)
                recreated.set()
            return write(*given)

        return written

    process = ingest(database, kafka_topics)
    with running(process) as future:
        eventually(process._health.is_ready)
        monkeypatch.setattr(ConsumerSession, "_write", late(ConsumerSession._write))
        Sender(kafka_topics).send(event("of the topic that is gone"))
        with pytest.raises(OperatorActionRequired, match=r"created again"):
            future.result(30)
    assert recreated.is_set()
    assert taken(database).identities == set()
