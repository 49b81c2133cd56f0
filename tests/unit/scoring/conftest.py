"""A model without a file."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from contracts.scoring import ModelInfo
from learners.contract.needs import TaskSpec
from learners.contract.protocol import Learner
from scoring.serve.live_model import Model
from storage.learning.snapshot_registry import Snapshot

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MakeModel = Callable[[Learner], Model]


@pytest.fixture
def make_model() -> MakeModel:
    """Call it with a learner: the model of its first snapshot."""
    return _model


def _model(learner: Learner) -> Model:
    snapshot = Snapshot(
        id=f"{learner.name}-1-0000000001",
        learner=learner.name,
        branch=1,
        step=1,
        parent=None,
        status="live",
        pinned=False,
        irreproducible=False,
        cursor={},
        front=None,
        sha256="0",
        manifest=None,
        created_at=NOW,
        live_at=NOW,
    )
    info = ModelInfo(
        learner=learner.name,
        learner_version=learner.version,
        snapshot_id=snapshot.id,
        snapshot_step=1,
        snapshot_created_at=NOW,
        device="cpu",
        sha256="0",
        answers="next_event",
        embedding=None,
    )
    return Model(
        learner=learner, snapshot=snapshot, info=info, task=TaskSpec(name="next_event", kind="next_event", cost="time")
    )
