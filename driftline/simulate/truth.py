"""What is so in a simulated world, whatever anybody detects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import numpy as np

from contracts.codec import Reason
from driftline.simulate.scenario import TYPES, Drift, Scenario
from driftline.simulate.world import FRAUD, Regime


@dataclass(frozen=True, kw_only=True)
class PlantedChange:
    """A planted change of behaviour, in event time."""

    kind: Drift
    starts_at: datetime
    ends_at: datetime
    """When no trace of what was is left; as `starts_at`, unless it is gradual."""
    to: str
    """"after" or "before": the behaviour from then on."""


@dataclass(frozen=True, kw_only=True)
class RiskyPayment:
    """A payment at a dangerous merchant, by a vulnerable user, or both."""

    event_id: str
    user_id: str
    occurred_at: datetime
    probability: float
    """Of fraud, before it was drawn."""
    fraud: bool
    label_at: datetime | None
    """When its label is sent; None = not before the end."""


@dataclass(frozen=True, kw_only=True)
class RetiredItem:
    """An item taken off sale: its tombstone is sent, and it is never bought again."""

    item_id: str
    at: datetime
    replaced_by: str


@dataclass(frozen=True, kw_only=True)
class Truth:
    """All that was planted, and how many records of what there are."""

    scenario: Scenario
    changes: tuple[PlantedChange, ...]
    """In the order of time."""
    before: Regime
    """The behaviour until the first change."""
    after: Regime
    friendships: tuple[tuple[str, str], ...]
    vulnerable_users: tuple[str, ...]
    dangerous_merchants: Mapping[str, tuple[str, ...]]
    """"before" and "after" -> ids."""
    risky_payments: tuple[RiskyPayment, ...]
    """In the order of time. All others are fraud with probability FRAUD[0][0]."""
    retired_items: tuple[RetiredItem, ...]
    valid: Mapping[str, int]
    """Topic -> records that must be accepted; tombstones among them."""
    duplicates: Mapping[str, int]
    """Topic -> records that repeat a valid one."""
    malformed: Mapping[Reason, int]

    @property
    def change_at(self) -> datetime | None:
        """When the first change begins."""
        return self.changes[0].starts_at if self.changes else None

    def json(self) -> bytes:
        """As JSON: matrices as lists of rows, times as ISO 8601."""
        named = {"types": TYPES, "fraud_probability": FRAUD, "change_at": self.change_at}
        return msgspec.json.format(msgspec.json.encode(named | msgspec.to_builtins(self, enc_hook=_plain)))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise NotImplementedError(type(value))
