"""One run: a stream is sent and learnt while everything that works on it is disturbed; then everything is proven."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime.kafka import KafkaConfig
from tests.chaos.asking import Asker
from tests.chaos.ingesting import LIMIT_S, Ingesting
from tests.chaos.outcome import Outcome
from tests.chaos.plan import LEARNERS, QUIET, Plan
from tests.chaos.process import Doomed, Victim
from tests.chaos.proofs import driftline, newest, repeated_steps, replay, uncompacted, undone, unfit, unlike
from tests.chaos.reading import Tail
from tests.chaos.remembering import Memory
from tests.chaos.servers import Strikes
from tests.chaos.stage import Stage, environment
from tests.chaos.watching import SOURCES, Watcher, alarms_of


class Run:
    """One run under a plan."""

    def __init__(self, stage: Stage, plan: Plan, config: KafkaConfig, database: str, folder: Path) -> None:
        self.stage, self.plan, self.config, self.database = stage, plan, config, database
        self.settings = environment(config, database, folder)
        victims = [Victim(["ingest"], self.settings, folder / f"ingest-{n}.log") for n in (1, 2)]
        self.ingest = Ingesting(plan.ingest, *victims)
        self.train = {
            learner: self._doomed(["train", "--learner", learner, "--once"], f"train-{learner}") for learner in LEARNERS
        }
        self.score, self.maintain, self.export = (self._doomed([verb]) for verb in ("score", "maintain", "export"))
        self.drift = Watcher(config, self.settings, folder / "drift.log", plan.drift)
        self.strikes = Strikes(plan, stage.broker, database)
        self.asker = Asker(config, stage.users, plan.seed)
        self.memory = Memory(database, stage.users, enough=len(stage.records) // 3)
        self.read_by_drift = 0

    def play(self) -> None:
        """:raises AssertionError: a process ended by itself, or something took for ever."""
        for beside in self._beside():
            beside.live()
        self.asker.start()
        self.ingest.run(lambda: self.stage.send(self.config), self.strikes, self._look)
        self.strikes.enter("train")
        for learner in self.train.values():
            learner.live()
        self._until("both learners have learnt", self._learnt)
        self.strikes.finish()
        self.asker.stop()
        self._until("all questions are answered", self.asker.listen)
        self.read_by_drift = sum(self._ends(topic) for topic in SOURCES)
        self._until("drift has read everything", lambda: self.drift.has_read(self.read_by_drift))
        for victim in (self.ingest.first, self.ingest.second, self.score, self.drift):
            if victim.alive and (status := victim.drain()) != 0:
                raise AssertionError(f"{victim.log.name}: exit {status} after SIGTERM")

    def kill_all(self) -> dict[str, int]:
        """Nobody stays; returns how often each was killed until then."""
        victims = self._victims()
        kills = {name: sum(victim.kills for victim in those) for name, those in victims.items()}
        for victim in (one for those in victims.values() for one in those):
            victim.kill()
        self.strikes.finish()
        self.asker.close()
        self.drift.close()
        return {**kills, "backends": self.strikes.ended.total(), "broker": self.strikes.bounces}

    def bites(self) -> dict[str, int]:
        """What shows that the kills mattered."""
        ingest = (self.ingest.first, self.ingest.second)
        in_transaction = ("maintain.before_compact_commit", "maintain.before_trim_commit")
        return {
            "ingest batches rolled back": self.ingest.uncommitted,
            "ingest commits fenced": sum(victim.count("ingest.fenced") for victim in ingest),
            "ingest rebalances": sum(victim.count("ingest.assigned") for victim in ingest) - 1,
            **{f"{name} steps repeated": repeated_steps(one.log) for name, one in self.train.items()},
            "drift gone on from the middle": self.drift.bites(self.read_by_drift),
            "score questions answered again": self.asker.repeated,
            "maintain killed in a transaction": sum(self.maintain.points[point] for point in in_transaction),
            "export killed while it published": self.export.points.total(),
            "sessions of Postgres ended": self.strikes.ended.total(),
            "broker killed": self.strikes.bounces,
        }

    def _doomed(self, verb: list[str], name: str = "") -> Doomed:
        kind = verb[0]
        ends = self.plan.train.get(verb[2], ()) if kind == "train" else getattr(self.plan, kind)
        return Doomed(verb, self.settings, Path(self.settings["DRIFTLINE_DATA_DIR"]) / f"{name or kind}.log", ends)

    def _beside(self) -> tuple[Doomed, ...]:
        """Those that work all the time, whoever else does."""
        return self.drift, self.score, self.maintain, self.export

    def _victims(self) -> dict[str, Sequence[Victim]]:
        return {
            "ingest": (self.ingest.first, self.ingest.second),
            **{name: (one,) for name, one in self.train.items()},
            **{one.log.stem: (one,) for one in self._beside()},
        }

    def _look(self) -> None:
        for beside in self._beside():
            beside.look()
        self.strikes.look()
        self.memory.look()

    def _learnt(self) -> bool:
        ended = [learner.look() for learner in self.train.values()]  # each is looked at, whatever the others do
        return all(ended)

    def _until(self, what: str, true: Callable[[], bool]) -> None:
        until = time.monotonic() + LIMIT_S
        while not true():
            if time.monotonic() > until:
                raise AssertionError(f"waited {LIMIT_S:.0f} s in vain until {what}")
            self._look()
            time.sleep(0.05)

    def _ends(self, topic: str) -> int:
        tail = Tail(self.config, topic)
        try:
            return sum(tail.ends())
        finally:
            tail.close()


def run(stage: Stage, plan: Plan) -> Outcome:
    """One run under a plan."""
    folder = stage.folder / f"seed-{plan.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    began, trouble = time.monotonic(), []
    with stage.database() as database:
        one = Run(stage, plan, stage.topics(), database, folder)
        try:
            one.play()
        except Exception as error:  # the table must show every run, failed ones too
            trouble.append(f"{type(error).__name__}: {error}")
        finally:
            kills = one.kill_all()
        trouble += filter(None, [unlike(one.config, stage.records)])
        trouble += filter(None, [undone(one.settings, verb) for verb in ("maintain", "export")])
        alarms = alarms_of(one.config)
        verify = driftline(["verify"], one.settings)
        if verify.returncode != 0:
            trouble.append("verify is not clean")
        replayed = replay(one.settings, database, trouble)
        wrong = (alarms.trouble, one.asker.trouble(), one.memory.trouble(), uncompacted(database))
        trouble += filter(None, (*wrong, unfit(one.settings)))
        one.memory.close()
        return Outcome(
            seed=plan.seed,
            seconds=time.monotonic() - began,
            trouble=tuple(trouble),
            verify=verify.stdout.decode() + verify.stderr.decode(),
            sha256={learner: next(iter(newest(database, learner)), ("", "none"))[1] for learner in LEARNERS},
            replayed=replayed,
            kills=kills,
            bites=one.bites() if plan != QUIET else {},
            alarms=str(alarms),
            alarms_repeated=alarms.repeated,
            questions=len(one.asker.answered),
        )
