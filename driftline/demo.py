"""`make demo`: the whole story on one machine, with real processes, in a few minutes.

A small world is simulated on an embedded Kafka and an embedded Postgres. `ingest` is killed with -9 in the
middle of a batch and `train` in the middle of a step; both are started again. Then everything is counted.
Exit code 0 only if every check holds. The numbers are in build/demo/report.json, the logs beside it.
"""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape

from contracts import topics
from contracts.records import Progress
from contracts.scoring import ScoreAnswer
from driftline import demo_told as told
from driftline.cast import Actor, Broken, Cast, Known, alive, cast, descendants
from driftline.local import LocalStack, local_stack
from driftline.session import Session
from runtime import kafka
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit, Trouble
from runtime.settings import Settings
from storage import overview

FOLDER = Path("build/demo")
_SILENCE_S = 1.5


@dataclass(frozen=True, kw_only=True)
class Plot:
    """How large the world is, and where the processes die."""

    users: int = 300
    days: float = 2.0
    malformed: float = 0.02
    duplicates: float = 0.02
    seed: int = 7
    batch_records: int = 2_000
    ingest_dies_at: str = "ingest.before_commit:3"
    """In its third batch: the rows are written, nothing is committed."""
    train_dies_at: str = "train.after_step:150"
    """In its 150th step: it is in the journal and has changed the weights in memory; nothing else knows of it."""
    warmup_events: int = 2_000
    snapshot_every_s: float = 8.0
    patience_s: float = 240.0


@dataclass(kw_only=True)
class Facts:
    """What was seen."""

    started_at: float = field(default_factory=time.monotonic)
    sent: dict[str, Any] = field(default_factory=dict)
    exits: dict[str, int] = field(default_factory=dict)
    ingest_s: float = 0.0
    ingest: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    train_s: float = 0.0
    train: dict[str, Any] = field(default_factory=dict)
    steps_when_killed: int = 0
    progress: list[Progress] = field(default_factory=list)
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    audit: dict[str, Any] = field(default_factory=dict)
    rebuilt: dict[str, Any] = field(default_factory=dict)
    user: dict[str, Any] = field(default_factory=dict)
    answer: ScoreAnswer | None = None
    answer_ms: float = 0.0
    left: list[str] = field(default_factory=list)
    total_s: float = 0.0


class Story:
    """The acts, in their order. Each leaves what it saw in `facts`."""

    def __init__(self, plot: Plot, folder: Path, console: Console) -> None:
        self.plot, self.folder, self.console = plot, folder, console
        self.facts = Facts()
        self._seen: Known = {}
        """All processes that were ever started on the way."""

    def run(self) -> Facts:
        """Plays it.

        :raises Trouble: it could not be played to the end.
        """
        self._say("starting an embedded PostgreSQL and an embedded Kafka-compatible broker (Tansu)")
        with local_stack() as parts, cast(self.folder, self._settings(parts)) as players:
            call = Session.of(
                Settings.model_construct(
                    postgres_url=SecretStr(parts.postgres_url), kafka_bootstrap=parts.kafka_bootstrap
                )
            )
            self._prepare(players)
            self._take_in(players, call)
            self._learn(players, call)
            self._verify(players, call)
            self._score(players, call)
        self.facts.left = alive(self._seen | descendants())
        self.facts.total_s = time.monotonic() - self.facts.started_at
        return self.facts

    def _settings(self, parts: LocalStack) -> dict[str, str]:
        plot = self.plot
        return {
            "DRIFTLINE_POSTGRES_URL": parts.postgres_url,
            "DRIFTLINE_KAFKA_BOOTSTRAP": parts.kafka_bootstrap,
            "DRIFTLINE_DATA_DIR": str(self.folder / "data"),
            "DRIFTLINE_CONFIG": str(self.folder / "driftline.toml"),
            "DRIFTLINE_LOG_FORMAT": "console",
            "DRIFTLINE_INGEST__BATCH_RECORDS": str(plot.batch_records),
            "DRIFTLINE_TRAIN__WARMUP_EVENTS": str(plot.warmup_events),
            "DRIFTLINE_TRAIN__SNAPSHOT_EVERY_S": str(plot.snapshot_every_s),
            # `ingest` is away for a while: do not go on without the partitions it has not brought yet.
            "DRIFTLINE_TRAIN__MERGE_WAIT_S": "60",
        }

    def _prepare(self, players: Cast) -> None:
        (self.folder / "driftline.toml").write_text("# The demo's settings come by environment.\n")
        players.ask("migrate")
        players.ask("topics create")
        plot = self.plot
        self.facts.sent = players.ask(
            "simulate",
            *("--users", str(plot.users), "--days", str(plot.days), "--seed", str(plot.seed)),
            *("--malformed", str(plot.malformed), "--duplicates", str(plot.duplicates)),
        )
        sent = sum(self.facts.sent["sent"].values())
        self._say(f"{plot.users} simulated users sent {sent:,} records; some are broken, some are sent twice")

    def _take_in(self, players: Cast, call: Session) -> None:
        """`ingest` dies in a batch; `train` learns meanwhile."""
        facts, began = self.facts, time.monotonic()
        first = players.start("ingest", "--port", "0", name="ingest-1", failpoint=self.plot.ingest_dies_at)
        self._train = players.start("train", "--port", "0", name="train-1", failpoint=self.plot.train_dies_at)
        self._train_began = began
        self._ends(first, "ingest")
        read = _read(call)
        self._say(f"[red]ingest was killed with -9[/] in a batch, before its commit; {read:,} records were in by then")
        second = players.start("ingest", "--port", "0", "--json", name="ingest-2")
        self._say("ingest starts again; the group waits some seconds for the dead member")
        sent = sum(facts.sent["sent"].values())
        players.until(f"{sent:,} records are read", lambda: _read(call) >= sent, seconds=self.plot.patience_s)
        facts.ingest_s = time.monotonic() - began
        facts.ingest = second.drained()
        facts.status = players.ask("status")
        self._say(f"all {sent:,} records are in; ingest drained and ended")

    def _learn(self, players: Cast, call: Session) -> None:
        facts = self.facts
        self._ends(self._train, "train")
        with call.reading() as connection:
            (learner,) = overview.learners(connection)
        facts.steps_when_killed = learner.next_step
        self._say(
            f"[red]train was killed with -9[/] in step {learner.next_step - 1}; newest snapshot: {learner.snapshot}"
        )
        self._say("train starts again: it repeats the journal since that snapshot, then learns the rest")
        facts.train = players.start("train", "--port", "0", "--once", "--json", name="train-2").done(
            self.plot.patience_s
        )
        facts.train_s = time.monotonic() - self._train_began
        facts.snapshots = players.ask("snapshots list")
        facts.progress = _progress(call.kafka)
        self._say(f"the learner has caught up; newest snapshot: {facts.train['snapshot_id']}")

    def _verify(self, players: Cast, call: Session) -> None:
        facts = self.facts
        facts.audit = players.ask("verify", seconds=self.plot.patience_s)
        self._say("verify read every topic and table again with code of its own")
        facts.rebuilt = players.ask("replay-journal", str(facts.train["snapshot_id"]), seconds=self.plot.patience_s)
        self._say("replay-journal learnt the newest snapshot again from its parent and the journal")

    def _score(self, players: Cast, call: Session) -> None:
        facts, port = self.facts, _free_port()
        worker = players.start("score", "--port", str(port))
        url = f"http://127.0.0.1:{port}"
        players.until("score is ready", lambda: _answers(f"{url}/readyz"), seconds=60)
        facts.user = players.ask("user", "sim:user-7")
        body = msgspec.json.encode({"user_id": facts.user["user_id"], "request_id": "demo", "types": 3})
        began = time.perf_counter()
        request = urllib.request.Request(f"{url}/v1/score", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as reply:
            facts.answer = msgspec.json.decode(reply.read(), type=ScoreAnswer)
        facts.answer_ms = (time.perf_counter() - began) * 1e3
        self._say(f"score answered for user {facts.user['user_id']}")
        worker.kill()

    def _ends(self, actor: Actor, name: str) -> None:
        """Waits for its fail point.

        :raises Broken: it ended otherwise.
        """
        code = actor.wait(self.plot.patience_s)
        self.facts.exits[name] = code
        if code != -signal.SIGKILL:
            raise Broken(f"{name} was to be killed, and ended with exit code {code}", where=str(actor.log))

    def _say(self, line: str) -> None:
        self._seen |= descendants()
        self.console.print(f"[dim]{time.monotonic() - self.facts.started_at:5.0f} s[/]  {line}", highlight=False)


def _read(call: Session) -> int:
    """Records that committed batches have covered."""
    with call.reading() as connection:
        return sum(taken.read for taken in overview.taken(connection).values())


def _progress(config: KafkaConfig) -> list[Progress]:
    """All of `learning.progress`, in order, repetitions included."""
    decode = msgspec.json.Decoder(Progress).decode
    with _consumer(config) as next_values:
        return [decode(value) for value in next_values]


@contextmanager
def _consumer(config: KafkaConfig) -> Iterator[Iterator[bytes]]:
    from confluent_kafka import TopicPartition

    client = kafka.consumer(config, group="driftline-demo")
    try:
        client.assign([TopicPartition(config.physical(topics.PROGRESS), 0, 0)])

        def values() -> Iterator[bytes]:
            heard = time.monotonic()
            while time.monotonic() - heard < _SILENCE_S:
                for message in client.consume(500, timeout=0.2):
                    if message.error() is None and (value := message.value()) is not None:
                        heard = time.monotonic()
                        yield value

        yield values()
    finally:
        client.close()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main(arguments: Sequence[str] = ()) -> int:
    """Plays the story, prints it, writes the report; the exit code."""
    folder = (Path(arguments[0]) if arguments else FOLDER).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    console = Console(width=118 if not sys.stdout.isatty() else None)
    story = Story(Plot(), folder, console)
    try:
        facts = story.run()
    except Trouble as trouble:
        console.print(f"[red]the demo could not be played to its end:[/] {escape(str(trouble))}", highlight=False)
        return trouble.code
    except KeyboardInterrupt:
        console.print("interrupted; everything it started was ended")
        return 130
    report = told.report(story.plot, facts)
    (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    told.show(report, console)
    console.print(f"\n{folder / 'report.json'} has all of this and more; the logs are beside it", highlight=False)
    return Exit.DONE if report["ok"] else Exit.FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
