"""What the demo sets out with, and what it saw."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from contracts.records import DriftAlarm, Progress
from contracts.scoring import RankingAnswer, ScoreAnswer

LEARNERS = ("prompttpp", "sdim", "risk")
"""Whose processes run: what comes next and when; which items; what comes of payments."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """How large the world is, and where the processes die."""

    users: int = 300
    days: float = 2.4
    change_after_days: float = 1.6
    """`drift` compares with what it saw of the first 4,096 events, so the change comes later than these."""
    label_delay_days: float = 0.5
    malformed: float = 0.02
    duplicates: float = 0.02
    seed: int = 7
    batch_records: int = 2_000
    ingest_dies_at: str = "ingest.before_commit:3"
    """In its third batch: the rows are written, nothing is committed."""
    train_dies_at: str = "train.after_step:150"
    """In its 150th step: it is in the journal and has changed the weights in memory; nothing else knows of it."""
    warmup_events: int = 4_000
    snapshot_every_s: float = 8.0
    compact_rows: int = 4
    """A user's rows are compacted when `ingest` has added so many: few, since the world is small."""
    asked: str = "sim:user-7"
    """The user of whom is asked what comes next, and which items."""
    erased: str = "sim:user-211"
    """The one who asks to be forgotten; no other id begins like that."""
    forgotten_within_s: float = 30.0
    """Of the last learner that had to forget: `maintain` passes every 2 seconds."""
    patience_s: float = 300.0


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
    """What the second life of PromptTPP's `train` said of itself."""
    sdim: dict[str, Any] = field(default_factory=dict)
    risk: dict[str, Any] = field(default_factory=dict)
    steps_when_killed: int = 0
    progress: dict[str, list[Progress]] = field(default_factory=lambda: {learner: [] for learner in LEARNERS})
    """Learner -> what it told, in the order of the topic, repetitions included."""
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    alarms: list[DriftAlarm] = field(default_factory=list)
    drift: dict[str, Any] = field(default_factory=dict)
    maintain: dict[str, Any] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    rebuilt: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Learner -> what `replay-journal` said of its newest snapshot."""
    user: dict[str, Any] = field(default_factory=dict)
    answer: ScoreAnswer | None = None
    answer_ms: float = 0.0
    ranking: RankingAnswer | None = None
    ranking_ms: float = 0.0
    exported: dict[str, Any] = field(default_factory=dict)
    bundles: list[dict[str, Any]] = field(default_factory=list)
    """What `bundle check` said of each."""
    late: dict[str, Any] = field(default_factory=dict)
    """The label that came last, and what became of it."""
    erasure: dict[str, Any] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    total_s: float = 0.0
