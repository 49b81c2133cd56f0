"""Real processes, killed, frozen and replaced (protocol, rule 1): nothing is lost, nothing doubles."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from urllib.error import HTTPError

import psycopg
import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from contracts import topics
from contracts.records import UserEvent
from runtime import kafka as clients
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit
from storage.privacy import erasure
from tests.integration.feeding import (
    Processes,
    Running,
    Sender,
    engine_of,
    event,
    eventually,
    identity,
    ingest_once,
    query,
    taken,
)

SESSION_S = 1.5


def events(first: int, count: int = 30) -> list[UserEvent]:
    return [event(f"e{n}", f"user {n % 5}", n) for n in range(first, first + count)]


def accepted(database: str, count: int) -> bool:
    return len(taken(database).identities) == count


def read(database: str, count: int) -> bool:
    return taken(database).totals["read"] == count


@contextmanager
def held(database: str) -> Iterator[psycopg.Connection]:
    """Holds the offsets' rows, so that batches stop just before their COMMIT."""
    with psycopg.connect(database) as connection:
        connection.execute("SELECT * FROM stream_offset FOR UPDATE")
        yield connection
        connection.rollback()


def waiting(database: str, statement: str = "UPDATE stream_offset") -> list[int]:
    """Backends of `ingest` that wait for a lock inside such a statement."""
    rows = query(
        database,
        "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s",
        f"%{statement}%",
    )
    return [pid for (pid,) in rows]


@pytest.mark.parametrize("place", ["ingest.after_rows", "ingest.before_commit", "ingest.after_commit"])
def test_killed_anywhere_in_a_batch_the_next_start_neither_loses_nor_doubles(
    database: str, tansu_topics: KafkaConfig, started: Processes, place: str
) -> None:
    Sender(tansu_topics).send(*events(0))
    killed = started.start(database, tansu_topics, "--once", failpoint=f"{place}:1")
    assert killed.exit_code() == -signal.SIGKILL
    assert accepted(database, 30 if place == "ingest.after_commit" else 0)
    Sender(tansu_topics).send(*events(20))
    ingest_once(database, tansu_topics)
    assert taken(database).identities == {identity(each) for each in events(0, 50)}


def at_work(database: str, config: KafkaConfig, started: Processes) -> tuple[Sender, Running]:
    """A process that has taken in its first 30 events, in batches of 10, and who sends it more."""
    sender = Sender(config)
    process = started.start(database, config, batch_records=10)
    sender.send(*events(0))
    eventually(lambda: accepted(database, 30))
    return sender, process


def test_an_erasure_does_not_make_a_running_process_join_its_group_again(
    database: str, tansu_topics: KafkaConfig, started: Processes
) -> None:
    sender, process = at_work(database, tansu_topics, started)
    for n, user in enumerate(["user 0", "user 1"], start=1):
        erasure.erase(engine_of(database), [user])
        sender.send(*events(n * 30))
        eventually(partial(read, database, (n + 1) * 30))
    found = taken(database)
    assert {user for _, user, _ in found.identities} == {"user 2", "user 3", "user 4"}
    assert (len(found.identities), found.totals["suppressed"]) == (54, 36)
    process.signal(signal.SIGTERM)
    assert process.exit_code() == Exit.DONE
    assert process.log().count("ingest.assigned") == 1
    assert not [line for line in process.log().splitlines() if "ingest.fenced" in line or "ingest.rejoin" in line]


def test_sigterm_drains_within_ten_seconds_and_leaves_nothing_half_done(
    database: str, tansu_topics: KafkaConfig, started: Processes
) -> None:
    sender, process = at_work(database, tansu_topics, started)
    sender.send(*events(30, 300))
    asked = time.monotonic()
    process.signal(signal.SIGTERM)
    assert process.exit_code() == Exit.DONE
    assert time.monotonic() - asked < 10
    ingest_once(database, tansu_topics)
    assert accepted(database, 330)


def test_of_two_owners_outside_one_group_the_former_stops_and_says_what_to_do(
    database: str, tansu_topics: KafkaConfig, started: Processes
) -> None:
    sender = Sender(tansu_topics)
    first = started.start(database, tansu_topics, group="one")
    sender.send(*events(0))
    eventually(lambda: accepted(database, 30))
    second = started.start(database, tansu_topics, group="two")
    eventually(lambda: query(database, "SELECT min(epoch) FROM stream_offset") == [(2,)])
    sender.send(*events(30))
    assert first.exit_code() == Exit.REFUSED
    assert "outside consumer group" in first.log()
    assert "use one consumer group" in first.log()
    eventually(lambda: accepted(database, 60))
    assert second.process.poll() is None


def freeze_replace_and_wake(database: str, config: KafkaConfig, started: Processes) -> tuple[Running, Running]:
    """A process frozen just before its COMMIT, and its successor; both alive at the end."""
    sender = Sender(config)
    zombie = started.start(database, config, session_timeout_s=SESSION_S)
    sender.send(*events(0))
    eventually(lambda: accepted(database, 30))
    with held(database):
        sender.send(*events(30))
        eventually(lambda: waiting(database))
        zombie.signal(signal.SIGSTOP)
    # The lock is free: the frozen process's backend now holds its rows and waits for a COMMIT that does not come.
    successor = started.start(database, config, session_timeout_s=SESSION_S)
    connected = (
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'driftline-ingest' AND datname = current_database()"
    )
    eventually(lambda: len(query(database, connected)) == 2, within_s=60)
    eventually(lambda: accepted(database, 60), within_s=12, why="the successor must not wait for the frozen one")
    sender.send(*events(60))
    eventually(lambda: accepted(database, 90))
    zombie.signal(signal.SIGCONT)
    eventually(lambda: "ingest.rejoin" in zombie.log())
    sender.send(*events(80))
    eventually(lambda: taken(database).totals["read"] == 120)
    assert accepted(database, 110)
    assert zombie.process.poll() is None
    return zombie, successor


def test_a_process_frozen_before_its_commit_is_replaced_and_wakes_up_harmless(
    database: str, tansu_topics: KafkaConfig, started: Processes
) -> None:
    freeze_replace_and_wake(database, tansu_topics, started)


@pytest.mark.kafka  # Tansu sometimes forgets a member that joins while another leaves
def test_and_comes_back_when_it_is_needed(database: str, kafka_topics: KafkaConfig, started: Processes) -> None:
    zombie, successor = freeze_replace_and_wake(database, kafka_topics, started)
    successor.signal(signal.SIGTERM)
    assert successor.exit_code() == Exit.DONE
    Sender(kafka_topics).send(*events(110))
    eventually(lambda: accepted(database, 140), within_s=30)
    assert zombie.process.poll() is None


def test_a_connection_that_breaks_at_commit_leaves_the_outcome_to_postgres(
    database: str, tansu_topics: KafkaConfig, started: Processes
) -> None:
    sender = Sender(tansu_topics)
    process = started.start(database, tansu_topics)
    sender.send(*events(0))
    eventually(lambda: accepted(database, 30))
    with held(database):
        sender.send(*events(30))
        eventually(lambda: waiting(database))
        for pid in waiting(database):
            query(database, "SELECT pg_terminate_backend(%s)", pid)
        eventually(lambda: not waiting(database))
    eventually(lambda: accepted(database, 60))
    assert taken(database).totals["read"] == 60
    assert process.log().count("ingest.rejoin") >= 1
    assert process.process.poll() is None


def test_without_postgres_it_is_not_ready_says_so_once_a_try_and_goes_on_by_itself(
    database: str, tansu_topics: KafkaConfig, started: Processes, free_port: int
) -> None:
    sender = Sender(tansu_topics)

    def ready() -> tuple[int, dict[str, object]]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/readyz", timeout=2) as answer:
                return answer.status, json.loads(answer.read())
        except HTTPError as error:
            with error:
                return error.code, json.loads(error.read())
        except OSError:
            return 0, {}

    process = started.start(database, tansu_topics, port=free_port)
    sender.send(*events(0))
    eventually(lambda: accepted(database, 30))
    eventually(lambda: ready()[0] == 200)
    name = query(database, "SELECT current_database()")[0][0]
    elsewhere = database.replace(name, "postgres")
    query(elsewhere, f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    query(elsewhere, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", name)
    sender.send(*events(30))
    eventually(lambda: ready()[0] == 503)
    assert "waiting to try again" in str(ready()[1])
    lines = [json.loads(line) for line in process.log().splitlines() if "ingest.rejoin" in line]
    assert all(line["error"] and line["level"] == "warning" and "exception" not in line for line in lines)
    query(elsewhere, f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    eventually(lambda: accepted(database, 60), within_s=30)
    eventually(lambda: ready()[0] == 200)


@pytest.mark.kafka
def test_two_processes_share_the_work_and_hand_it_over_while_records_flow(
    database: str, kafka_topics: KafkaConfig, started: Processes
) -> None:
    sender = Sender(kafka_topics)
    sent = 0

    def feed(count: int) -> None:
        nonlocal sent
        for _ in range(count):
            sender.send(*events(sent * 20, 30))  # ten of each thirty come again
            sent += 1

    one = started.start(database, kafka_topics, session_timeout_s=1, batch_records=20)
    feed(5)
    two = started.start(database, kafka_topics, session_timeout_s=1, batch_records=20)
    feed(20)
    eventually(lambda: two.log().count("ingest.assigned") >= 1)
    feed(20)
    one.signal(signal.SIGKILL)
    feed(20)
    three = started.start(database, kafka_topics, session_timeout_s=1, batch_records=20)
    eventually(lambda: three.log().count("ingest.assigned") >= 1)
    feed(20)
    two.signal(signal.SIGTERM)
    assert two.exit_code() == Exit.DONE
    feed(10)
    eventually(lambda: taken(database).totals["read"] == sent * 30, within_s=30)
    assert taken(database).identities == {identity(each) for each in events(0, sent * 20 + 10)}
    assert "Traceback" not in one.log() + two.log() + three.log()


@pytest.mark.kafka
def test_records_of_many_megabytes_are_refused_in_bounded_memory(
    database: str, kafka_topics: KafkaConfig, started: Processes
) -> None:
    admin = clients.admin(kafka_topics)
    larger = ConfigEntry("max.message.bytes", "20000000", incremental_operation=AlterConfigOpType.SET)
    name = kafka_topics.physical(topics.USER)
    resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[larger])
    admin.incremental_alter_configs([resource])[resource].result(10)
    sender = Sender(kafka_topics)
    small = started.start(database, kafka_topics, "--once", "--json")
    assert small.exit_code() == Exit.DONE
    for _ in range(80):  # random bytes: Kafka's limits count compressed ones, and lz4 packs a constant 250 to 1
        sender.put(topics.USER, b"ann", os.urandom(6_000_000), partition=0)
    sender.send(*events(0))
    large = started.start(database, kafka_topics, "--once", "--json")
    assert large.exit_code(within_s=60) == Exit.DONE
    assert accepted(database, 30)
    assert query(database, "SELECT count(*), sum(length(value)) FROM dead_letter") == [(80, 80 * 65_536)]
    grown = [json.loads(run.log().splitlines()[-1])["peak_rss_bytes"] for run in (large, small)]
    assert grown[0] - grown[1] < 300_000_000, "480 MB were read"
