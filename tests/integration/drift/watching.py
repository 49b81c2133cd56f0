"""A `driftline drift` to watch and to kill, records to feed it, and what it must say of them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import msgspec

from contracts import topics
from contracts.codec import encode
from contracts.records import DriftAlarm, Label, LossSum, Progress
from runtime import kafka
from runtime.kafka import KafkaConfig, PartitionOfTopic
from streams.drift.drift_series import Signals, WatchedSubject, of_label, of_progress
from streams.drift.subject_state import OpenBlock, Watch, added, closed, emptied
from tests.integration.feeding import REPOSITORY, Sender, read_topic

START = datetime(2026, 1, 1, tzinfo=UTC)
CHANGE, END = 400, 600
SESSION_S = 6.0


def step(number: int, learner: str = "markov") -> Progress:
    """The loss grows at `CHANGE`, and another type takes over."""
    rng = random.Random(number)
    mean, buys = (2.0, 8) if number < CHANGE else (2.6, 20)
    return Progress(
        learner=learner,
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


def send(config: KafkaConfig, *numbers: int, learners: Sequence[str] = ("markov",)) -> None:
    """Steps as each learner's `train` sends them."""
    sender = Sender(config)
    for number, learner in product(numbers, learners):
        sender.put(topics.PROGRESS, learner.encode(), encode(step(number, learner)), flush=False)
    sender.flush()


def label(number: int, change: int) -> Label:
    """An outcome: 1 in 20, and from `change` on 3 in 4."""
    return Label(
        event_id=f"l-{number}",
        user_id="ann",
        task="fraud",
        ref_time=START + timedelta(minutes=number),
        known_at=START + timedelta(minutes=number),
        value=float(number % 4 > 0 if number >= change else number % 20 == 0),
        source="bank",
    )


def send_labels(config: KafkaConfig, numbers: Iterable[int], partitions: Iterable[int], *, change: int) -> None:
    """The same ones to each of the partitions."""
    sender = Sender(config)
    for number, partition in product(numbers, partitions):
        sender.put(topics.LABELS, b"ann", encode(label(number, change)), partition=partition, flush=False)
    sender.flush()


def streams_of(config: KafkaConfig, topic: str) -> tuple[PartitionOfTopic, ...]:
    """A topic's partitions, as they are now."""
    return kafka.describe(config, [topic])[topic].streams


def expected(config: KafkaConfig, numbers: Iterable[int]) -> dict[str, DriftAlarm]:
    """What steps sent once and in order give, computed here."""
    steps = enumerate(of_progress(step(number)) for number in numbers)
    return alarmed(streams_of(config, topics.PROGRESS)[0], steps)


def expected_of_labels(stream: PartitionOfTopic, numbers: Iterable[int], *, change: int) -> dict[str, DriftAlarm]:
    """The same of labels in a partition."""
    placed = enumerate(numbers)
    return alarmed(
        stream, ((at, of_label(label(n, change), partition=stream.partition, offset=at)) for at, n in placed)
    )


def alarmed(stream: PartitionOfTopic, records: Iterable[tuple[int, Signals]]) -> dict[str, DriftAlarm]:
    """What the records of a partition give, each with its offset."""
    state: dict[WatchedSubject, tuple[Watch, OpenBlock]] = {}
    found: dict[str, DriftAlarm] = {}
    for offset, seen in records:
        watch, block = state.get(seen.subject, (Watch(), OpenBlock()))
        block = added(block, seen, offset)
        if block.full:
            watch, alarms = closed(watch, block, seen.subject, stream=stream)
            block = emptied(block)
            found |= {alarm.id: alarm for alarm in alarms}
        state[seen.subject] = watch, block
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
            "DRIFTLINE_DRIFT__SESSION_TIMEOUT_S": str(SESSION_S),
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

    @property
    def records(self) -> float:
        """How many it has taken in."""
        return self.metric("driftline_drift_records_total")

    def until(self, condition: Callable[[], bool], *, within_s: float = 120) -> None:
        """Waits."""
        deadline = time.monotonic() + within_s
        while not condition():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.1)

    @property
    def steps(self) -> dict[tuple[str, int], int]:
        """(subject, branch or partition) -> the newest step (or offset) it has seen."""
        lines = [line for line in self.page("/metrics").splitlines() if line.startswith("driftline_drift_step{")]
        return {
            (line.split('subject="')[1].split('"')[0], int(line.split('branch="')[1].split('"')[0])): int(
                float(line.rpartition(" ")[2])
            )
            for line in lines
        }

    def until_ready(self) -> None:
        """Until it has its partitions and tables."""
        self.until(lambda: '"ready": true' in self.page("/readyz"))

    def until_step(self, number: int, *, learners: Sequence[str] = ("markov",)) -> None:
        """Until it has seen a step of each learner."""
        self.until(lambda: all(self.steps.get((learner, 1), -1) >= number for learner in learners))

    def freeze(self) -> None:
        """As a machine that swaps, or a container that is paused."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on."""
        self.process.send_signal(signal.SIGCONT)

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
