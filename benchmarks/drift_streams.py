"""What `drift` reads, made without a broker: progress of the counting learner over simulated worlds and a recording,
and labels of these worlds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow.parquet as pq

from contexts.batch_builder import strings
from contracts import topics
from contracts.records import Label, LossSum, Progress
from driftline.simulate.scenario import Scenario
from driftline.simulate.simulation import Simulation
from learners.arms.frozen import WARMUP_EVENTS, Frozen
from learners.arms.group import ArmGroup
from learners.baselines.markov import MarkovCounts
from learners.contract.batch import Batch, Context, Origin, Query, Target, TargetKind
from streams.train.progress import confidence_of

STEP_ROWS = 32
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TICK_US = 1_000_000


class Seen(NamedTuple):
    """An event: time in microseconds, type."""

    at: int
    type: str


class Row(NamedTuple):
    """An event and those in whose sequences it stands, the actor first."""

    users: tuple[str, ...]
    event: Seen


def simulated(scenario: Scenario) -> Iterator[Row]:
    """A world's events."""
    for record in Simulation(scenario).records():
        if record.topic not in topics.EVENTS or record.value is None:
            continue
        fields = json.loads(record.value)
        at = (datetime.fromisoformat(fields["occurred_at"]) - EPOCH).total_seconds()
        users = (fields["actor_id"], fields["counterpart_id"]) if "actor_id" in fields else (fields["user_id"],)
        yield Row(users, Seen(round(at * 1e6), fields.get("type") or fields["relation"]))


def labels(scenario: Scenario) -> Iterator[Label]:
    """A world's labels of payments, in the order in which they become known."""
    for record in Simulation(scenario).records():
        if record.topic == topics.LABELS and record.value is not None:
            yield msgspec.json.decode(record.value, type=Label)


def stackoverflow(folder: Path) -> Iterator[Row]:
    """The recording's badges, in the order of time."""
    home = folder / "tpp_stackoverflow_badges"
    names = {row["type"]: row["name"] for row in pq.read_table(home / "types.parquet").to_pylist()}
    table = pq.read_table(home / "events.parquet").sort_by([("ts", "ascending"), ("user_id", "ascending")])
    for user, ts, kind in zip(*(table[name].to_pylist() for name in ("user_id", "ts", "type")), strict=True):
        yield Row((str(user),), Seen(round(ts * 1e6), names[kind]))


def progress(rows: Iterable[Row]) -> Iterator[Progress]:
    """What `train` would tell of the counting learner and of itself frozen after the warm-up."""
    arm_group = ArmGroup(MarkovCounts(), {"frozen": Frozen(MarkovCounts(), warmup_events=WARMUP_EVENTS)})
    sequences: dict[str, tuple[Seen, ...]] = {}
    iterator = iter(rows)
    for number in range(10**9):
        step = list(islice(iterator, STEP_ROWS))
        if not step:
            return
        report = arm_group.step(_batch(step, sequences))
        times = [datetime.fromtimestamp(row.event.at / 1e6, UTC) for row in step]
        types: dict[str, int] = {}
        for row in step:
            types[row.event.type] = types.get(row.event.type, 0) + 1
        yield Progress(
            learner="markov",
            branch=1,
            step=number,
            rows=len(step),
            late=0,
            first_event_at=min(times),
            last_event_at=max(times),
            front=max(times),
            losses={
                arm: {loss: LossSum(sum=tally.sum, rows=tally.count) for loss, tally in losses.items()}
                for arm, losses in report.losses.items()
            },
            types=types,
            confidence=confidence_of(report),
        )


def _batch(step: list[Row], sequences: dict[str, tuple[Seen, ...]]) -> Batch:
    """Each row behind its user's last event strictly before it; `sequences` keeps each user's last two instants."""
    before: list[Seen | None] = []
    timed = []
    for row in step:
        held = sequences.get(row.users[0], ())
        earlier = [seen for seen in held if seen.at < row.event.at]
        before.append(earlier[-1] if earlier else None)
        timed.append(bool(earlier) and all(seen.at != row.event.at for seen in held))
        for user in row.users:
            kept = [seen for seen in sequences.get(user, ()) if seen.at != row.event.at]
            sequences[user] = (*kept[-1:], row.event)
    stacks = [seen for seen in before if seen is not None]
    visible = np.array([seen is not None for seen in before], np.int64)
    at = np.array([row.event.at for row in step], np.int64)
    none = strings([None] * len(stacks))
    context = Context(
        offsets=np.concatenate([[0], np.cumsum(visible)]).astype(np.int64),
        at=np.array([seen.at for seen in stacks], np.int64),
        kind=strings(["user"] * len(stacks)),
        type=strings([seen.type for seen in stacks]),
        item=none,
        amount=np.zeros(len(stacks), np.int64),
        currency=none,
        other=none,
        role=strings(["actor"] * len(stacks)),
        key=np.zeros(len(stacks), np.int64),
    )
    return Batch(
        context=context,
        query=Query(
            stack=np.arange(len(step), dtype=np.int64),
            visible=visible,
            now=np.array([0 if seen is None else seen.at for seen in before], np.int64),
        ),
        target=Target(
            kind=TargetKind.EVENT,
            at=at,
            type=strings([row.event.type for row in step]),
            resolution=np.full(len(step), TICK_US, np.int64),
            timed=np.array(timed, np.bool_),
            weight=np.ones(len(step)),
        ),
        origin=Origin(key=np.zeros(len(step), np.int64)),
    )
