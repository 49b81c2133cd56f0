"""The first acts: a stream is sent, taken in and learnt, over two deaths; then it is proven."""

from __future__ import annotations

import signal
import time

import msgspec

from contracts import topics
from contracts.records import Progress
from driftline.cli_context import Session
from driftline.demo.processes import Actor, Broken
from driftline.demo.results import LEARNERS
from driftline.demo.stage import Play
from driftline.demo.topic_values import values
from driftline.demo.watching import watch
from storage import overview


def prepare(play: Play) -> None:
    """Tables, topics and a stream."""
    plot, players = play.plot, play.players
    (play.folder / "driftline.toml").write_text("# The demo's settings come by environment.\n")
    players.ask("migrate")
    players.ask("topics create")
    play.facts.sent = players.ask(
        "simulate",
        *("--users", str(plot.users), "--days", str(plot.days), "--seed", str(plot.seed)),
        *("--change-after-days", str(plot.change_after_days), "--label-delay-days", str(plot.label_delay_days)),
        *("--malformed", str(plot.malformed), "--duplicates", str(plot.duplicates)),
    )
    sent = sum(play.facts.sent["sent"].values())
    play.say(f"{plot.users} simulated users sent {sent:,} records; some are broken, some are sent twice")


def take_in(play: Play) -> None:
    """`ingest` dies in a batch; PromptTPP learns meanwhile, `drift` watches, `maintain` compacts."""
    facts, plot, began = play.facts, play.plot, time.monotonic()
    first = play.players.start("ingest", "--port", "0", name="ingest-1", failpoint=plot.ingest_dies_at)
    _start_the_others(play)
    _ends(play, first, "ingest")
    play.say(
        f"[red]ingest was killed with -9[/] in a batch, before its commit; {_read(play.call):,} records were in by then"
    )
    second = play.players.start("ingest", "--port", "0", "--json", name="ingest-2")
    play.say("ingest starts again; the group waits some seconds for the dead member")
    sent = sum(facts.sent["sent"].values())
    play.players.until(f"{sent:,} records are read", lambda: _read(play.call) >= sent, seconds=plot.patience_s)
    facts.ingest_s = time.monotonic() - began
    facts.ingest = second.drained()
    facts.status = play.players.ask("status")
    play.say(f"all {sent:,} records are in; ingest drained and ended")


def learn(play: Play) -> None:
    """`train` of PromptTPP dies in a step; those of the others live."""
    facts, began = play.facts, time.monotonic()
    for name in ("sdim", "risk"):  # not sooner: Tansu may report the ends too low that a bounded run goes to
        play.running[name] = play.players.start(
            "train", "--learner", name, "--port", "0", "--once", "--json", name=f"train-{name}"
        )
    _ends(play, play.running["prompttpp"], "train")
    with play.call.reading() as connection:
        learner = next(one for one in overview.learners(connection) if one.learner == "prompttpp")
    facts.steps_when_killed = learner.next_step
    play.say(f"[red]train was killed with -9[/] in step {learner.next_step - 1}; newest snapshot: {learner.snapshot}")
    play.say("train starts again: it repeats the journal since that snapshot, then learns the rest")
    again = play.players.start("train", "--port", "0", "--once", "--json", name="train-2")
    facts.train = again.done(play.plot.patience_s)
    facts.train_s = time.monotonic() - began
    facts.sdim, facts.risk = (play.running[name].done(play.plot.patience_s) for name in ("sdim", "risk"))
    facts.snapshots = play.players.ask("snapshots list")
    decode = msgspec.json.Decoder(Progress).decode
    for value in values(play.call.kafka, topics.PROGRESS):
        record = decode(value)
        facts.progress[record.learner].append(record)
    play.say(f"all learners have caught up; newest snapshots: {', '.join(newest(play).values())}")


def repeat(play: Play) -> None:
    """Each learner's newest snapshot is learnt again from its parent and the journal."""
    for learner, snapshot in newest(play).items():
        play.facts.rebuilt[learner] = play.players.ask("replay-journal", snapshot, seconds=play.plot.patience_s)
    play.say("replay-journal learnt the newest snapshots again from their parents and the journal")


def newest(play: Play) -> dict[str, str]:
    """Learner -> its newest snapshot."""
    last = (play.facts.train, play.facts.sdim, play.facts.risk)
    return {learner: str(said["snapshot_id"]) for learner, said in zip(LEARNERS, last, strict=True)}


def _start_the_others(play: Play) -> None:
    start, port = play.players.start, ("--port", "0")
    play.running["prompttpp"] = start("train", *port, name="train-1", failpoint=play.plot.train_dies_at)
    watch(play)
    play.running["maintain"] = start("maintain", *port, "--json")


def _ends(play: Play, actor: Actor, name: str) -> None:
    """Waits for its fail point.

    :raises Broken: it ended otherwise.
    """
    code = actor.wait(play.plot.patience_s)
    play.facts.exits[name] = code
    if code != -signal.SIGKILL:
        raise Broken(f"{name} was to be killed, and ended with exit code {code}", where=str(actor.log))


def _read(call: Session) -> int:
    """Records that committed batches have covered."""
    with call.reading() as connection:
        return sum(taken.read for taken in overview.taken(connection).values())
