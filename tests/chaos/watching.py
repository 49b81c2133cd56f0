"""`drift` as a victim, and what a reader of its alarms sees who keeps the first of each id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from contracts import topics
from contracts.records import DriftAlarm
from runtime import kafka
from runtime.kafka import BrokerAway, KafkaConfig
from streams.drift.drift_series import Signals
from streams.drift.topic_agent import read
from tests.chaos.plan import Ends
from tests.chaos.process import Doomed
from tests.chaos.reading import Group, Taken, whole
from tests.integration.drift.watching import alarmed

GROUP = "driftline-drift"
SOURCES = (topics.PROGRESS, topics.LABELS)


class Watcher(Doomed):
    """The process. A kill of it bites when it falls behind its first and before its last record."""

    def __init__(self, config: KafkaConfig, environment: dict[str, str], log: Path, ends: Ends) -> None:
        super().__init__(["drift"], environment, log, ends)
        self._group = Group(config, GROUP, SOURCES)
        self._places: list[int] = []

    def look(self) -> bool:
        if self.doomed:
            self._places.append(self._position())
        return super().look()

    def has_read(self, ends: int) -> bool:
        """Whether it has told the broker that it is behind `ends` records."""
        return self._position() >= ends

    def bites(self, ends: int) -> int:
        """Kills after which it had to go on from the middle."""
        return sum(0 < place < ends for place in self._places)

    def close(self) -> None:
        self._group.close()

    def _position(self) -> int:
        try:
            return self._group.position()
        except BrokerAway:
            return 0


class Alarms:
    """The alarms of a run."""

    def __init__(self, values: list[bytes], due: Mapping[str, DriftAlarm]) -> None:
        """
        :param due: what its topics, as they are now, must lead to, by id.
        """
        self.due = due
        self.first: dict[str, DriftAlarm] = {}
        self.different: list[str] = []
        """Ids that came with different bytes."""
        self.repeated = 0
        seen: dict[str, bytes] = {}
        for value in values:
            alarm = msgspec.json.decode(value, type=DriftAlarm)
            known = seen.setdefault(alarm.id, value)
            self.first.setdefault(alarm.id, alarm)
            self.repeated += known is not value
            if known != value:
                self.different.append(alarm.id)

    @property
    def trouble(self) -> str:
        """What is wrong; "" = a reader cannot tell that `drift` was ever killed."""
        if self.different:
            return f"alarms with one id and different bytes: {self.different}"
        if not self.first:
            return "the planted change of the labels raised no alarm"
        if other := sorted(name for name in {*self.first, *self.due} if self.first.get(name) != self.due.get(name)):
            return f"alarms differ from those of one process that reads the topics undisturbed: {other}"
        return ""

    def __str__(self) -> str:
        counted = Counter(alarm.source for alarm in self.first.values())
        return ", ".join(f"{topic} {count}" for topic, count in sorted(counted.items()))


def alarms_of(config: KafkaConfig) -> Alarms:
    """All that was said so far; answers' alarms are left out, for when `score` answers is a matter of time."""
    said = [taken.value for taken in whole(config, topics.ALARMS)]
    due = {name: alarm for topic in SOURCES for name, alarm in _due(config, topic).items()}
    return Alarms([value for value in said if msgspec.json.decode(value, type=DriftAlarm).source in SOURCES], due)


def _due(config: KafkaConfig, topic: str) -> dict[str, DriftAlarm]:
    """What a topic leads to, computed here. Not that of another run: a broker that is killed may keep what it was
    sent twice, idempotent producer or not, and where `train` repeats a step its progress stands twice.
    """
    records = whole(config, topic)
    found: dict[str, DriftAlarm] = {}
    for stream in kafka.describe(config, [topic])[topic].streams:
        found |= alarmed(stream, _signals(topic, sorted(one for one in records if one.partition == stream.partition)))
    return found


def _signals(topic: str, records: Iterable[Taken]) -> Iterator[tuple[int, Signals]]:
    for partition, offset, value in records:
        with suppress(msgspec.MsgspecError):  # `drift` passes over what it cannot read
            if (seen := read(topic, value, partition, offset)) is not None:
                yield offset, seen
