"""`driftline drift` as a process: alarms on Kafka, the same ones whenever it is killed, orderly ends."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts import topics
from contracts.codec import encode
from contracts.records import DriftAlarm, Label, LossSum, Progress
from runtime.kafka import KafkaConfig, create_topics
from streams.signals import of_progress
from streams.watch import OpenBlock, Watch, added, closed, emptied
from tests.conftest import SHARED
from tests.integration.feeding import REPOSITORY, Sender, read_topic

START = datetime(2026, 1, 1, tzinfo=UTC)
CHANGE, END = 400, 600


def step(number: int) -> Progress:
    """The loss grows at `CHANGE`, and another type takes over."""
    rng = random.Random(number)
    mean, buys = (2.0, 8) if number < CHANGE else (2.6, 20)
    return Progress(
        learner="markov",
        branch=1,
        step=number,
        rows=32,
        late=0,
        first_event_at=START + timedelta(minutes=number),
        last_event_at=START + timedelta(minutes=number + 1),
        front=START,
        losses={"learner": {"type": LossSum(sum=32 * rng.gauss(mean, 0.2), rows=32)}},
        types={"buy": buys + rng.randrange(4), "look": 32 - buys - rng.randrange(4)},
    )


def send(config: KafkaConfig, *numbers: int) -> None:
    """Steps as `train` sends them."""
    sender = Sender(config)
    for number in numbers:
        sender.put(topics.PROGRESS, b"markov", encode(step(number)), flush=False)
    sender.flush()


def expected(numbers: Iterator[int] | range) -> dict[str, DriftAlarm]:
    """What steps sent once and in order give, computed here."""
    watch, block, found = Watch(), OpenBlock(), dict[str, DriftAlarm]()
    for offset, number in enumerate(numbers):
        seen = of_progress(step(number))
        block = added(block, seen, offset)
        if block.full:
            watch, alarms = closed(watch, block, seen.subject, partition=0)
            block = emptied(block)
            found |= {alarm.id: alarm for alarm in alarms}
    return found


class Running:
    """A `driftline drift`."""

    def __init__(self, config: KafkaConfig, folder: Path, port: int) -> None:
        self.port = port
        self.log = folder / f"drift-{time.monotonic_ns()}.log"
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE_")},
            "PYTHONPATH": str(REPOSITORY),
            "DRIFTLINE_KAFKA_BOOTSTRAP": config.bootstrap,
            "DRIFTLINE_TOPIC_PREFIX": config.prefix,
            "DRIFTLINE_DRIFT__SESSION_TIMEOUT_S": "6",
            "DRIFTLINE_DRIFT__PORT": str(port),
        }
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "driftline", "drift", "--json"],
                stdout=subprocess.PIPE,
                stderr=out,
                env=environment,
                cwd=folder,
                text=True,
            )

    def page(self, path: str) -> str:
        """A page, or "" while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = [line for line in self.page("/metrics").splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def until(self, condition: Callable[[], bool], *, within_s: float = 60) -> None:
        """Waits."""
        deadline = time.monotonic() + within_s
        while not condition():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.1)

    def until_step(self, number: int) -> None:
        """Until it has seen a step."""
        self.until(lambda: self.metric("driftline_drift_step") >= number)

    def kill(self) -> None:
        """As a machine dies."""
        self.process.kill()
        self.process.communicate()

    def end(self) -> dict[str, Any]:
        """Asks it to end; what it says it did."""
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=20)
        assert self.process.returncode == 0, self.log.read_text()[-3000:]
        return dict(json.loads(out))


Start = Callable[[KafkaConfig], Running]


@pytest.fixture
def start(tmp_path: Path, free_port: int) -> Iterator[Start]:
    """Starts processes and ends them."""
    made: list[Running] = []

    def begin(config: KafkaConfig) -> Running:
        made.append(Running(config, tmp_path, free_port))
        return made[-1]

    yield begin
    for each in made:
        if each.process.poll() is None:
            each.kill()


def alarms(config: KafkaConfig, *, at_least: int) -> list[DriftAlarm]:
    """What stands on `drift.alarms`, repetitions included."""
    messages = read_topic(config, topics.ALARMS, at_least=at_least)
    found = [msgspec.json.decode(message.value() or b"", type=DriftAlarm) for message in messages]
    assert [alarm.id.encode() for alarm in found] == [message.key() for message in messages]
    return found


def firsts(found: list[DriftAlarm]) -> dict[str, DriftAlarm]:
    """As a reader that keeps the first of an id."""
    kept: dict[str, DriftAlarm] = {}
    for alarm in found:
        assert kept.setdefault(alarm.id, alarm) == alarm, "a repeated alarm is the same"
    return kept


def test_alarms_arrive_and_the_process_ends_in_order(topics: KafkaConfig, start: Start) -> None:
    config = topics
    send(config, *range(END))
    running = start(config)
    running.until_step(END - 1)
    running.until(lambda: '"ready": true' in running.page("/readyz"))
    told = running.end()
    wanted = expected(range(END))
    assert {alarm.series for alarm in wanted.values()} == {"learner/type", "types"}
    assert alarms(config, at_least=len(wanted)) == list(wanted.values())
    assert told["records"] == END
    assert told["alarms"] == len(wanted)


def test_a_process_killed_at_any_time_tells_the_same_alarms_once_to_who_keeps_the_first(
    topics: KafkaConfig, start: Start
) -> None:
    config = topics
    sent, wanted = 0, expected(range(END))
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
    wanted = expected(range(END))
    assert [alarm.id for alarm in alarms(config, at_least=len(wanted))] == list(wanted)


def test_records_that_cannot_be_read_are_passed_over_and_labels_are_watched(
    tansu_topics: KafkaConfig, start: Start
) -> None:
    config, sender = tansu_topics, Sender(tansu_topics)
    sender.put(topics.PROGRESS, b"x", b"no json")
    for number in range(60 * 128):
        value = float(number % 20 == 0 or (number > 45 * 128 and number % 4 == 0))
        label = Label(
            event_id=f"l-{number}",
            user_id="ann",
            task="fraud",
            ref_time=START + timedelta(minutes=number),
            known_at=START + timedelta(minutes=number),
            value=value,
            source="bank",
        )
        sender.put(topics.LABELS, b"ann", encode(label), partition=0, flush=False)
    sender.flush()
    running = start(config)
    running.until(lambda: running.metric("driftline_drift_records_total") == 60 * 128 + 1)
    told = running.end()
    assert told["unreadable"] == 1
    [alarm] = alarms(config, at_least=1)
    assert (alarm.source, alarm.subject, alarm.series) == (topics.LABELS, "fraud", "rate")
    assert abs(alarm.after.first_offset - 45 * 128) <= 2 * 128


@pytest.mark.kafka
def test_a_broker_that_goes_away_is_told_of_and_read_on_from_when_it_is_back(tmp_path: Path, start: Start) -> None:
    script, folder = SHARED / "kafka" / "kafka", tmp_path / "kafka"
    if not script.exists() or shutil.which("java") is None:
        pytest.skip(f"a Kafka that may be killed needs {script} and Java 17")

    def kafka(verb: str) -> str:
        return subprocess.run([script, verb, folder], check=True, capture_output=True, text=True).stdout.strip()

    try:
        config = KafkaConfig(kafka("start"))
        create_topics(config, topics.ALL)
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
        wanted = expected(range(END))
        assert firsts(alarms(config, at_least=len(wanted))) == wanted
    finally:
        kafka("kill")


def test_without_the_topics_it_refuses_and_says_what_to_do(tansu: str, start: Start) -> None:
    running = start(KafkaConfig(tansu, prefix="nobody-made-these."))
    running.process.communicate(timeout=30)
    assert running.process.returncode == 3
    assert "driftline topics create" in running.log.read_text()
