"""`driftline drift` as a process: alarms on Kafka, the same ones whenever it is killed, orderly ends."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from contracts.topics import ALL
from runtime.kafka import KafkaConfig, create_topics
from tests.conftest import SHARED
from tests.integration.drift.watching import END, Start, alarms, expected, firsts, send

pytestmark = pytest.mark.timeout(300)  # many processes are started


def test_alarms_arrive_and_the_process_ends_in_order(topics: KafkaConfig, start: Start) -> None:
    config = topics
    send(config, *range(END))
    running = start(config)
    running.until_step(END - 1)
    running.until_ready()
    told = running.end()
    wanted = expected(config, range(END))
    assert {alarm.series for alarm in wanted.values()} == {"learner/type", "types"}
    assert alarms(config, at_least=len(wanted)) == list(wanted.values())
    assert told["records"] == END
    assert told["alarms"] == len(wanted)


def test_a_process_killed_at_any_time_tells_the_same_alarms_once_to_who_keeps_the_first(
    topics: KafkaConfig, start: Start
) -> None:
    config = topics
    sent, wanted = 0, expected(config, range(END))
    steps = sorted({alarm.step for alarm in wanted.values()})
    for kill_after in (120, steps[0] - 2, steps[0] + 1, 500):
        running = start(config)
        send(config, *range(sent, kill_after))
        sent = kill_after
        running.until_step(sent - 1)
        running.kill()
    running = start(config)
    send(config, *range(sent, END))
    running.until_step(END - 1)
    running.end()
    assert firsts(alarms(config, at_least=len(wanted))) == wanted


def test_steps_repeated_by_train_change_nothing(topics: KafkaConfig, start: Start) -> None:
    config = topics
    send(config, *range(300), *range(250, END))
    running = start(config)
    running.until_step(END - 1)
    told = running.end()
    assert told["repeated"] == 50
    wanted = expected(config, range(END))
    assert [alarm.id for alarm in alarms(config, at_least=len(wanted))] == list(wanted)


@pytest.mark.kafka
def test_a_broker_that_goes_away_is_told_of_and_read_on_from_when_it_is_back(tmp_path: Path, start: Start) -> None:
    script, folder = SHARED / "kafka" / "kafka", tmp_path / "kafka"
    if not script.exists() or shutil.which("java") is None:
        pytest.skip(f"a Kafka that may be killed needs {script} and Java 17")

    def kafka(verb: str) -> str:
        return subprocess.run([script, verb, folder], check=True, capture_output=True, text=True).stdout.strip()

    try:
        config = KafkaConfig(kafka("start"))
        create_topics(config, ALL)
        send(config, *range(100))
        running = start(config)
        running.until_step(99)
        kafka("kill")
        running.until(lambda: running.metric("driftline_ready") == 0)
        config = replace(config, bootstrap=kafka("start"))
        send(config, *range(100, END))
        running.until_step(END - 1)
        running.until(lambda: running.metric("driftline_ready") == 1)
        assert running.end()["records"] == END
        wanted = expected(config, range(END))
        assert firsts(alarms(config, at_least=len(wanted))) == wanted
    finally:
        kafka("kill")


def test_without_the_topics_it_refuses_and_says_what_to_do(tansu: str, start: Start) -> None:
    running = start(KafkaConfig(tansu, prefix="nobody-made-these."))
    running.process.communicate(timeout=30)
    assert running.process.returncode == 3
    assert "driftline topics create" in running.log.read_text()
