"""Shuffled histories of payments and labels on their way through a broker, an `ingest` and a `train`, each at its own
pace: what foreign.md, W5, asks to be tried. The broker is a list a partition; log, journal and predictions are real.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Connection, text

from contracts.topics import LABELS, PAYMENT, USER
from learners.arms.group import LossTotal
from learners.learner_config import LearnerConfig
from storage.dictionary import Dictionary
from storage.learning import journal
from storage.learning.journal import Step
from storage.log import event_log
from streams.train.merge import Row, runs_of
from streams.train.silences import SilenceWatch
from streams.train.step_runner import StepRunner
from tests.integration.learning import Given, Place, Scribe, Told, streams_of
from tests.unit.streams.label_oracle import Taken

HOUR: Final = 3_600_000_000
DAY: Final = 24 * HOUR
JUNE: Final = 1_780_272_000_000_000
"""1 June 2026."""
TODAY: Final = JUNE + 180 * DAY
FAR: Final = 4_102_444_800_000_000
"""The year 2100."""
HORIZON: Final = 10 * DAY
PLACES: Final[list[Place]] = [(PAYMENT, 0), (PAYMENT, 1), (PAYMENT, 2), (USER, 0), (LABELS, 0), (LABELS, 1)]
TROUBLES: Final = (
    "none",
    "today",
    "payment of 2100",
    "label of 2100",
    "labels first",
    "labels late",
    "empty partition",
)
PLAN: Final = LearnerConfig(
    learner="risk", seed=0, options={"last_n": 4, "prior": 0.1}, resolution_us=1_000_000, horizon_us=HORIZON,
    correction_us=10_000 * DAY,
)  # fmt: skip


@dataclass
class World:
    """What will be sent, partition by partition, and in which order."""

    records: dict[Place, list[Given | Told]] = field(default_factory=lambda: {place: [] for place in PLACES})
    order: list[Place] = field(default_factory=list)
    """Whose next record is sent."""
    pause: int = -1
    """Before this record all that was sent is read, and learnt."""


def world_of(seed: int, trouble: str) -> World:
    """Forty payments in hours, labels of half of them from an hour to twelve days later, some told twice."""
    dice, world = random.Random(seed), World()
    backfilled = dice.random() < 0.5  # records bear the time when they were sent
    pays = (0, 1) if trouble == "empty partition" else (0, 1, 2)
    sent: list[tuple[float, Place, Given | Told]] = []
    for n in range(40):
        at = JUNE + n * 12 * HOUR + dice.randrange(11) * HOUR
        user, place = f"user {dice.randrange(5)}", (PAYMENT, dice.choice(pays))
        number = sum(place == other for _, other, _ in sent)
        given = Given(
            number, TODAY + n if backfilled else at, at, user, "paid", dice.choice(["deli", "books"]), amount=10**7
        )
        sent.append((at, place, given))
        for _ in range(dice.choice([0, 0, 1, 1, 2])):
            known_at = at + dice.choice([1, 20, 60, 150, 230, 290]) * HOUR
            late = {"labels first": -400, "labels late": 400 if n > 3 else 0}.get(trouble)
            when = known_at if not late else at + late * DAY
            label = Told(
                0, TODAY + 50 + n if backfilled else known_at, known_at, user, f"{place[0]}-{place[1]}-{number}", at,
                float(dice.random() < 0.4),
            )  # fmt: skip
            sent.append((when, (LABELS, dice.randrange(2)), label))
    sent += _troubled(trouble, dice)
    sent.sort(key=lambda one: one[0])
    last_payment = max(n for n, (_, place, _) in enumerate(sent) if place[0] == PAYMENT)
    world.pause = last_payment + 1 if trouble == "labels late" else -1
    for _, place, record in sent:
        here = world.records[place]
        if isinstance(record, Told) or place[0] == USER:
            record = record._replace(offset=len(here))
        here.append(record)
        world.order.append(place)
    return world


def _troubled(trouble: str, dice: random.Random) -> list[tuple[float, Place, Given | Told]]:
    """Records that disturb; a payment is sent behind the others of its partition, so that their ids stay."""
    if trouble == "today":
        return [(0, (USER, 0), Given(0, TODAY, TODAY, "anna"))]
    if trouble == "payment of 2100":
        return [(FAR, (PAYMENT, dice.randrange(3)), Given(99, FAR, FAR, "mallory", "paid", "deli", amount=10**7))]
    if trouble == "label of 2100":
        when = JUNE + dice.randrange(20) * DAY
        return [(when, (LABELS, dice.randrange(2)), Told(0, FAR, FAR, "mallory", "payments-0-0", FAR, 1.0))]
    return []


class Clock:
    """Seconds that pass as the test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Passage:
    """One history on its way; `run` brings it to its end."""

    def __init__(
        self, connection: Connection, vocabulary: Dictionary, world: World, seed: int, *, plan: LearnerConfig = PLAN
    ) -> None:
        self.connection, self.world, self._dice = connection, world, random.Random(seed + 1)
        self.streams = streams_of(*PLACES)
        self.scribe = Scribe(connection, vocabulary, self.streams)
        self.broker: dict[Place, int] = dict.fromkeys(PLACES, 0)
        """Partition -> its end."""
        self.lease = journal.acquire_lease(connection, learner="risk", version="2", config=plan.as_json())[0]
        self.runner = StepRunner(plan, plan.fresh(), {}, front=None, lease=self.lease)
        self.clock = Clock()
        self.watch = SilenceWatch(self.runner, asked=self.ends, now=self.clock)
        self.taken: list[Taken] = []
        self.losses: dict[str, LossTotal] = {}
        """Of the learner, over all steps."""
        self.lagging: frozenset[Place] = frozenset()
        """Partitions that `ingest` does not come to."""

    def ends(self) -> Mapping[tuple[str, str, int], int] | None:
        """What the broker says; now and then nothing."""
        if self._dice.random() < 0.05:
            return None
        return {
            (self.streams[place].topic_id, place[0], place[1]): end
            for place, end in self.broker.items()
            if place[0] in (PAYMENT, LABELS)
        }

    def run(self) -> None:
        """Until everything is sent, taken in and learnt."""
        for number, place in enumerate(self.world.order):
            if number == self.world.pause or self._dice.random() < 0.02:
                self.settle()
            self.broker[place] += 1
            if self._dice.random() < 0.2:
                self.ingest(all_of_it=False)
                for _ in range(self._dice.randrange(3)):
                    self.step()
        self.settle()

    def settle(self) -> None:
        """All that was sent is read and learnt, and the silences that are due with it."""
        self.ingest(all_of_it=True)
        idle = 0
        while idle < 3:
            idle = 0 if self.step() else idle + 1
            self.clock.now += 2.0

    def ingest(self, *, all_of_it: bool) -> None:
        """Brings what the broker holds into the log: of some partitions, not always all of it."""
        for place in PLACES:
            first = self.scribe.next[place]
            there = self.world.records[place][first : self.broker[place]]
            if there and place not in self.lagging and (all_of_it or self._dice.random() < 0.6):
                self.scribe.write(place, there if all_of_it else there[: self._dice.randrange(1, len(there) + 1)])

    def step(self) -> bool:
        """What `train` does next; False: nothing."""
        self.clock.now += self._dice.choice([0.0, 0.3, 1.5])
        merge = self.runner.merge
        merge.refresh(self.connection)
        found = self.watch.live(self.connection, len(self.taken))
        rows: list[Row] = []
        while len(rows) < 8:
            if (row := merge.pop()) is not None:
                rows.append(row)
            elif not merge.refresh(self.connection):
                if not merge.has_rows():
                    break
                merge.mark_idle(merge.behind())
        if not rows and not found.ticks:
            return False
        clock = None if found.clock is None else event_log.time_of(found.clock)
        step = Step(
            number=len(self.taken), rows=runs_of(rows), front=None, idle=tuple(sorted(merge.idle)), late=0,
            snapshot=False, actions=(), ticks=found.ticks, cursor=dict(self.runner.cursor), task_clock=clock,
            drained=found.drained,
        )  # fmt: skip
        journal.append(self.connection, self.lease, step)
        report = self.runner.learn(
            self.connection, rows, number=step.number, ticks=step.ticks, task_clock=step.task_clock
        )
        self.taken.append(Taken(rows, frozenset(subject for _, subject in found.ticks), found.clock))
        for name, tally in report.losses["learner"].items() if report is not None else ():
            self.losses[name] = self.losses.get(name, LossTotal()) + tally
        return True

    def fates(self) -> dict[tuple[int, int], str]:
        """What came of each label, by its place."""
        found = self.connection.execute(text("SELECT stream_id, position, resolution FROM label_resolution"))
        return {(row.stream_id, row.position): row.resolution or "waiting" for row in found}
