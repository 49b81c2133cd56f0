"""Processes of `ingest` that come and go on a real Kafka (protocol, rule 1): nobody's session is ended for it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count

import pytest

from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit
from tests.integration.feeding import Processes, Sender, event, eventually, identity, query, taken

SESSION_S = 1.0
pytestmark = pytest.mark.kafka

_OWNERS = """
    SELECT a.pid, count(*) FROM stream_offset s
    LEFT JOIN pg_stat_activity a ON a.pid = s.owner_pid AND a.backend_start = s.owner_started GROUP BY 1
"""


def owners(database: str) -> dict[int | None, int]:
    """Backend -> how many streams it holds; None = held by nobody who lives."""
    return dict(query(database, _OWNERS))


def shared_by(database: str, processes: int) -> bool:
    found = owners(database)
    return None not in found and len(found) == processes


@contextmanager
def flowing(config: KafkaConfig, *, every_s: float = 0.05) -> Iterator[list[int]]:
    """Sends events until the block ends; gives a list whose one element is how many."""
    stop, sent = threading.Event(), [0]

    def feed() -> None:
        sender = Sender(config)
        for number in count():
            if stop.wait(every_s):
                break
            sender.send(event(f"e{number}", f"user {number % 7}", number))
            sent[0] = number + 1

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield sent
    finally:
        stop.set()
        thread.join()


def read(database: str, sent: list[int]) -> bool:
    return taken(database).totals["read"] == sent[0]


def come_and_go(database: str, kafka_topics: KafkaConfig, started: Processes, *, joins: int) -> None:
    """A second process joins and leaves, so many times, while records flow into the first."""
    with flowing(kafka_topics) as sent:
        first = started.start(database, kafka_topics, session_timeout_s=SESSION_S)
        eventually(lambda: shared_by(database, 1), within_s=40)
        for _ in range(joins):
            second = started.start(database, kafka_topics, session_timeout_s=SESSION_S)
            eventually(lambda: shared_by(database, 2), within_s=40)
            second.signal(signal.SIGTERM)
            assert second.exit_code() == Exit.DONE
            eventually(lambda: shared_by(database, 1), within_s=40)
    eventually(partial(read, database, sent))
    assert taken(database).identities == {identity(event(f"e{n}", f"user {n % 7}")) for n in range(sent[0])}
    assert first.log().count("ingest.assigned") > joins
    for process in started.running:
        for line in ("ingest.sessions_ended", "ingest.rejoin", "ingest.fenced", "ingest.not_released"):
            assert line not in process.log()


def test_a_process_that_joins_ends_nobodys_session(
    database: str, kafka_topics: KafkaConfig, started: Processes
) -> None:
    come_and_go(database, kafka_topics, started, joins=5)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nor_does_it_in_fifty_joins(database: str, kafka_topics: KafkaConfig, started: Processes) -> None:
    come_and_go(database, kafka_topics, started, joins=50)


def test_a_killed_process_is_replaced_without_waiting_for_its_session(
    database: str, kafka_topics: KafkaConfig, started: Processes
) -> None:
    with flowing(kafka_topics) as sent:
        killed = started.start(database, kafka_topics, session_timeout_s=60)
        eventually(lambda: sent[0] and shared_by(database, 1), within_s=40)
        killed.signal(signal.SIGKILL)
        killed.exit_code()
        began = time.monotonic()
        started.start(database, kafka_topics, session_timeout_s=60)
        eventually(lambda: shared_by(database, 1), within_s=40)
        assert time.monotonic() - began < 40
    eventually(partial(read, database, sent))


def test_a_process_whose_place_was_taken_joins_again_in_another(
    database: str, kafka_topics: KafkaConfig, started: Processes
) -> None:
    first = started.start(database, kafka_topics, session_timeout_s=6)
    eventually(lambda: shared_by(database, 1), within_s=40)
    [(pid,)] = query(database, "SELECT DISTINCT owner_pid FROM stream_offset")
    query(database, "SELECT pg_terminate_backend(%s)", pid)  # its slot is free; it has nothing to do and sees nothing
    second = started.start(database, kafka_topics, session_timeout_s=6)
    eventually(lambda: shared_by(database, 2), within_s=40)
    assert first.log().count("ingest.rejoin") >= 1
    assert "fenced" in first.log()
    with flowing(kafka_topics) as sent:
        eventually(lambda: sent[0] >= 40)
    eventually(partial(read, database, sent))
    assert first.process.poll() is None
    assert second.process.poll() is None
    assert second.log().count("ingest.rejoin") == 0
