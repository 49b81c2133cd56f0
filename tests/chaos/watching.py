"""`drift` as a victim, and what a reader of its alarms sees who keeps the first of each id."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
from msgspec.structs import replace

from contracts import topics
from contracts.records import DriftAlarm
from runtime.kafka import BrokerAway, KafkaConfig
from tests.chaos.plan import Ends
from tests.chaos.process import Doomed
from tests.chaos.reading import Group, Tail

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

    def __init__(self, values: list[bytes]) -> None:
        self.first: dict[str, str] = {}
        """What an alarm is about -> what the first one of its id says: see `told`."""
        self.different: list[str] = []
        """Ids that came with different bytes."""
        self.repeated = 0
        seen: dict[str, bytes] = {}
        for value in values:
            alarm = msgspec.json.decode(value, type=DriftAlarm)
            known = seen.setdefault(alarm.id, value)
            self.first.setdefault(about(alarm), told(alarm))
            self.repeated += known is not value
            if known != value:
                self.different.append(alarm.id)

    def trouble(self, quiet: Alarms | None) -> str:
        """What is wrong; "" = a reader cannot tell this run from the quiet one."""
        if self.different:
            return f"alarms with one id and different bytes: {self.different}"
        if not self.first:
            return "the planted change of the labels raised no alarm"
        if quiet is not None and (other := dict(set(quiet.first.items()) ^ set(self.first.items()))):
            return f"alarms differ from those of the quiet run: {sorted(other)}"
        return ""

    def __str__(self) -> str:
        counted = Counter(what.partition("/")[0] for what in self.first)
        return ", ".join(f"{topic} {count}" for topic, count in sorted(counted.items()))


def about(alarm: DriftAlarm) -> str:
    """Its id without the id of its topic, which each run makes anew."""
    named = (alarm.source, alarm.subject, alarm.branch, alarm.series, alarm.detector, alarm.step)
    return "/".join(map(str, named))


def told(alarm: DriftAlarm) -> str:
    """What must be the same in every run: all but the id of the topic, and but for places in `learning.progress`. A
    step that was repeated stands there twice, so offsets behind it are larger than in a run without kills.
    """
    alarm = replace(alarm, id=about(alarm))
    if alarm.source == topics.PROGRESS:
        windows = {name: replace(getattr(alarm, name), first_offset=0, next_offset=0) for name in ("before", "after")}
        alarm = replace(alarm, **windows)
    return msgspec.json.encode(alarm).decode()


def alarms_of(config: KafkaConfig) -> Alarms:
    """All that was said so far; answers' alarms are left out, for when `score` answers is a matter of time."""
    tail = Tail(config, topics.ALARMS)
    try:
        values: list[bytes] = []
        while len(values) < sum(tail.ends()):
            values.extend(tail.take())
    finally:
        tail.close()
    return Alarms([value for value in values if msgspec.json.decode(value, type=DriftAlarm).source in SOURCES])
