"""A made-up world with known truth, as records: whatever is planted, `Truth` tells.

    scenario    what to simulate, in numbers
    schedule    when behaviour changes: abrupt, gradual or recurring
    world       who is whose friend, who likes what, which merchants are dangerous
    arrivals    when something happens: users excite themselves and their friends
    behaviour   what happens: types, items, baskets, payments
    catalogue   items that come and go
    faults      records sent twice, records that are broken
    encoding    rows to records
    simulation  all of it, block by block, in the order of time
    truth       what is so, whatever anybody detects

Everything follows from the scenario: the same one gives the same bytes. A longer simulation begins with the
records of a shorter one (but for duplicates that the shorter one's end brings forward).
"""

from __future__ import annotations

from driftline.simulate.scenario import DAY_S, MESSAGE, TYPES, Drift, Scenario
from driftline.simulate.simulation import Simulation
from driftline.simulate.truth import Truth

__all__ = ["DAY_S", "MESSAGE", "TYPES", "Drift", "Scenario", "Simulation", "Truth"]
