"""Counts over the rows of a simulation, for its truth."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from contracts import topics
from contracts.codec import Reason
from driftline.simulate.behaviour import MESSAGE_KIND
from driftline.simulate.encoding import Encoder, user_id
from driftline.simulate.faults import MALFORMED
from driftline.simulate.planned_rows import BROKEN, EVENT, GONE, ITEM, LABEL, REPEATED, Rows
from driftline.simulate.scenario import BUY, Scenario, time
from driftline.simulate.truth import RiskyPayment
from driftline.simulate.world import FRAUD


class Tally:
    """What the rows seen so far come to; `Truth` says what the counts mean."""

    def __init__(self, scenario: Scenario, encoder: Encoder) -> None:
        self._scenario, self._encoder = scenario, encoder
        self.valid, self.duplicates, self.malformed = Counter[str](), Counter[str](), Counter[Reason]()
        self.risky: list[RiskyPayment] = []

    def add(self, rows: Rows) -> None:
        """Counts rows, each once."""
        what, kind = rows["what"], rows["kind"]
        self.valid += _per_topic(kind[what == EVENT])
        self.valid[topics.ITEMS] += int(((what == ITEM) | (what == GONE)).sum())
        self.valid[topics.LABELS] += int((what == LABEL).sum())
        self.duplicates += _per_topic(kind[what == REPEATED])
        self.malformed.update(MALFORMED[place] for place in kind[what == BROKEN].tolist())
        risky = (what == EVENT) & (kind == BUY) & (rows["risk"] > 0)
        self.risky += map(self._risky, rows[risky])

    def _risky(self, row: Any) -> RiskyPayment:
        at_us = int(row["at_us"])
        label_us = at_us + round(self._scenario.label_delay_s * 1e6)
        return RiskyPayment(
            event_id=self._encoder.event_id(int(row["number"])),
            user_id=user_id(int(row["user"])),
            occurred_at=time(at_us),
            probability=float(np.ravel(FRAUD)[row["risk"]]),
            fraud=bool(row["fraud"]),
            label_at=time(label_us) if label_us < self._scenario.end_us else None,
        )


def _per_topic(kinds: np.ndarray[Any, np.dtype[np.uint8]]) -> Counter[str]:
    paid, sent = int((kinds == BUY).sum()), int((kinds == MESSAGE_KIND).sum())
    return Counter({topics.USER: len(kinds) - paid - sent, topics.PAYMENT: paid, topics.RELATIONAL: sent})
