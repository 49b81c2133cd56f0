"""One run: a stream is produced while the processes that read it are disturbed; then everything is proven."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from contracts import topics
from driftline.simulate import Scenario, Simulation
from runtime import kafka
from runtime.kafka import KafkaConfig
from runtime.produce import Outgoing
from storage import migrate
from tests.chaos.plan import Plan
from tests.chaos.process import REPOSITORY, Victim

SESSION_S = 1.5
PRODUCE_S = 8.0
"""Seconds over which the stream is sent, so that the disturbances meet records on their way."""
LIMIT_S = 240.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run showed."""

    seed: int
    seconds: float
    clean: bool
    """`driftline verify` found every record exactly once."""
    verify: str
    sha256: str
    """Of the final snapshot's tensors."""
    snapshot: str
    ingest_kills: int
    rolled_back: int
    """Kills while a batch's rows were written and not committed."""
    fenced: int
    """Batches of a former owner that Postgres refused."""
    rebalances: int
    train_kills: int
    repeated_steps: int
    replayed: str
    """What `replay-journal` said of the newest three snapshots."""
    trouble: str = ""
    """Why it failed, if it did."""


class Stage:
    """The servers all runs share, and the stream: the same records each time."""

    def __init__(self, bootstrap: str, postgres: str, folder: Path, *, users: int, days: float) -> None:
        self.bootstrap = bootstrap
        self.postgres = postgres
        self.folder = folder
        scenario = Scenario(
            seed=7, users=users, duration_s=days * 86_400.0, change_after_s=days * 43_200.0,
            malformed_rate=0.02, duplicate_rate=0.03,
        )  # fmt: skip
        self.records = list(Simulation(scenario).records())

    @contextmanager
    def database(self) -> Iterator[str]:
        """A fresh, migrated database."""
        name = f"chaos_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.postgres, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        url = make_url(self.postgres).set(database=name).render_as_string(hide_password=False)
        migrate.upgrade(url)
        yield url
        with psycopg.connect(self.postgres, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def run(stage: Stage, plan: Plan) -> Outcome:
    """One run under a plan."""
    folder = stage.folder / f"seed-{plan.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    config = KafkaConfig(stage.bootstrap, prefix=f"chaos-{uuid.uuid4().hex[:8]}.")
    kafka.create_topics(config, topics.ALL)
    started = time.monotonic()
    with stage.database() as database:
        environment = _environment(config, database, folder)
        first = Victim(["ingest"], environment, folder / "ingest-1.log")
        second = Victim(["ingest"], environment, folder / "ingest-2.log")
        train = Victim(["train", "--once"], environment, folder / "train.log")
        kills_uncommitted = 0
        trouble = ""
        try:
            kills_uncommitted = _disturb_ingest(stage, config, plan, first, second)
            _disturb_train(plan, train)
            for victim in (first, second):
                if victim.alive and (status := victim.drain()) != 0:
                    trouble = f"{victim.log.name}: exit {status} after SIGTERM"
        except Exception as error:  # the table must show every run, failed ones too
            trouble = f"{type(error).__name__}: {error}"
        finally:
            ingest_kills, train_kills = first.kills + second.kills, train.kills
            for victim in (first, second, train):
                victim.kill()
        verify = _driftline(["verify"], environment)
        snapshot, sha256 = _newest_snapshot(database)
        replayed = "" if trouble else _replay_three(environment, database)
    fenced = sum(victim.count("ingest.fenced") for victim in (first, second))
    return Outcome(
        seed=plan.seed,
        seconds=time.monotonic() - started,
        clean=verify.returncode == 0,
        verify=verify.stdout.decode() + verify.stderr.decode(),
        sha256=sha256,
        snapshot=snapshot,
        ingest_kills=ingest_kills,
        rolled_back=kills_uncommitted,
        fenced=fenced,
        rebalances=first.count("ingest.assigned") + second.count("ingest.assigned") - 1,
        train_kills=train_kills,
        repeated_steps=sum(map(int, re.findall(r'"steps": ?(\d+)[^\n]*train.repeating', train.log.read_text())))
        or sum(map(int, re.findall(r'train.repeating[^\n]*"steps": ?(\d+)', train.log.read_text()))),
        replayed=replayed,
        trouble=trouble,
    )


def _disturb_ingest(stage: Stage, config: KafkaConfig, plan: Plan, first: Victim, second: Victim) -> int:
    """Sends the stream under the ingest processes' disturbances; returns the kills of uncommitted batches."""
    sending = threading.Thread(target=_send, args=(stage.records, config), name="sending")
    began = time.monotonic()
    lives = list(plan.ingest)
    armed = lives.pop(0) if lives else ""
    first.start(armed)
    sending.start()
    kills = list(plan.kill_s)
    thaw_at: dict[int, float] = {}
    uncommitted = 0
    second_started = second_killed = froze = False
    while time.monotonic() - began < LIMIT_S:
        now = time.monotonic() - began
        if first.ended() is not None:
            if first.ended() == -signal.SIGKILL:
                first.kills += 1
                uncommitted += armed.startswith(("ingest.after_rows", "ingest.before_commit"))
            else:
                raise AssertionError(f"ingest ended by itself with {first.ended()}; see {first.log}")
            armed = lives.pop(0) if lives else ""
            first.start(armed)
        if first.stopped_itself():
            first.frozen = True
            thaw_at[id(first)] = now + plan.frozen_s
            if not second.alive:  # somebody must be there to take over
                second.start()
                second_started = True
        if kills and now >= kills[0] and not first.frozen:
            kills.pop(0)
            armed = ""
            first.kill()
            first.kills -= 1  # counted when it is seen to have ended
        if not second_started and now >= plan.second_joins_s:
            second.start()
            second_started = True
        if (
            not second_killed
            and second.alive
            and now >= plan.second_leaves_s
            and not first.frozen
            and not second.frozen
        ):
            second.kill()
            second_killed = True
        if not froze and now >= plan.freeze_s and first.alive and not first.frozen:
            froze = True
            first.freeze()
            thaw_at[id(first)] = now + plan.frozen_s
            if not second.alive:
                second.start()
                second_started, second_killed = True, False
        for victim in (first, second):
            if victim.frozen and now >= thaw_at.get(id(victim), 0.0):
                victim.thaw()
        quiet = not lives and not kills and (froze or plan.freeze_s == float("inf")) and not first.frozen
        if quiet and not sending.is_alive() and now > PRODUCE_S:
            break
        if not sending.is_alive() and now > 3 * PRODUCE_S:
            break  # a fail point that no batch came to any more
        time.sleep(0.05)
    sending.join()
    if first.frozen:
        first.thaw()
    if first.drain() == -signal.SIGKILL:  # a fail point still armed came first
        first.kills += 1
        uncommitted += armed.startswith(("ingest.after_rows", "ingest.before_commit"))
    first.start()
    return uncommitted


def _disturb_train(plan: Plan, train: Victim) -> None:
    for failpoint in plan.train:
        train.start(failpoint)
        status = train.wait(LIMIT_S)
        if status == 0:
            return  # done before it came to the fail point so often
        if status != -signal.SIGKILL:
            raise AssertionError(f"train ended with {status}; see {train.log}")
        train.kills += 1
    train.start()
    if plan.train_kill_s != float("inf"):
        try:
            if train.wait(plan.train_kill_s) == 0:
                return
        except subprocess.TimeoutExpired:
            train.kill()
        train.start()
    if (status := train.wait(LIMIT_S)) != 0:
        raise AssertionError(f"train ended with {status}; see {train.log}")


def _send(records: list[Outgoing], config: KafkaConfig) -> None:
    """Sends the stream evenly over PRODUCE_S seconds."""
    producer = kafka.producer(config)
    began = time.monotonic()
    for number, record in enumerate(records):
        due = began + PRODUCE_S * number / len(records)
        while (early := due - time.monotonic()) > 0:
            producer.poll(min(early, 0.05))
        topic = config.physical(record.topic)
        producer.produce(topic, key=record.key, value=record.value, timestamp=record.at_ms)
    if left := producer.flush(60):
        raise AssertionError(f"{left} records did not reach Kafka")


def _environment(config: KafkaConfig, database: str, folder: Path) -> dict[str, str]:
    return {
        "DRIFTLINE_POSTGRES_URL": database,
        "DRIFTLINE_KAFKA_BOOTSTRAP": config.bootstrap,
        "DRIFTLINE_TOPIC_PREFIX": config.prefix,
        "DRIFTLINE_DATA_DIR": str(folder),
        "DRIFTLINE_INGEST__GROUP": config.prefix,
        "DRIFTLINE_INGEST__SESSION_TIMEOUT_S": str(SESSION_S),
        "DRIFTLINE_INGEST__BATCH_RECORDS": "100",
        "DRIFTLINE_INGEST__LINGER_S": "0.02",
        "DRIFTLINE_INGEST__PORT": "none",
        "DRIFTLINE_TRAIN__PORT": "none",
        "DRIFTLINE_TRAIN__SNAPSHOT_EVERY_S": "1",
        "DRIFTLINE_TRAIN__WARMUP_EVENTS": "1000",
    }


def _driftline(verb: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "driftline", *verb]
    whole = {**os.environ, **environment}
    return subprocess.run(command, env=whole, cwd=REPOSITORY, capture_output=True, timeout=LIMIT_S, check=False)


def _newest_snapshot(database: str) -> tuple[str, str]:
    with psycopg.connect(database) as connection:
        row = connection.execute(
            "SELECT id, sha256 FROM snapshot WHERE status = 'live' ORDER BY step DESC LIMIT 1"
        ).fetchone()
    return (str(row[0]), str(row[1])) if row else ("none", "none")


def _replay_three(environment: dict[str, str], database: str) -> str:
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT id FROM snapshot WHERE status = 'live' ORDER BY step DESC LIMIT 3").fetchall()
    said = []
    for (snapshot,) in rows:
        done = _driftline(["replay-journal", str(snapshot), "--json"], environment)
        said.append("equal" if done.returncode == 0 and json.loads(done.stdout)["equal"] else f"DIFFERENT {snapshot}")
    return ", ".join(said)
