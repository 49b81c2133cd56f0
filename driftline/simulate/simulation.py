"""A simulated stream: rows block by block, merged with what is still to be sent, as records."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from driftline.simulate import faults
from driftline.simulate.arrivals import blocks
from driftline.simulate.behaviour import Behaviour
from driftline.simulate.catalogue import Catalogue
from driftline.simulate.encoding import Encoder, item_id, merchant_id, user_id
from driftline.simulate.planned_rows import GONE, ITEM, LABEL, Rows, made
from driftline.simulate.scenario import BUY, Scenario, time
from driftline.simulate.schedule import Schedule, changes
from driftline.simulate.truth import PlantedChange, RetiredItem, Truth
from driftline.simulate.truth_counts import Tally
from driftline.simulate.world import World
from runtime.produce import Outgoing


class Simulation:
    """A simulated world. `records` may be called again and gives the same bytes.

    Memory: one block, and what of it is sent later; not the whole stream.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self._world, self._catalogue = World.of(scenario), Catalogue.of(scenario)
        self._schedule, self._encoder = Schedule.of(scenario), Encoder(scenario)

    def records(self) -> Iterator[Outgoing]:
        """All records in the order of their times."""
        for rows in self._rows():
            yield from self._encoder.records(rows)

    @property
    def changes(self) -> tuple[PlantedChange, ...]:
        """The planted changes, in the order of time."""
        start_us = self.scenario.start_us
        return tuple(
            PlantedChange(
                kind=self.scenario.drift,
                starts_at=time(start_us + round(span.begins_s * 1e6)),
                ends_at=time(start_us + round(span.ends_s * 1e6)),
                to="after" if span.to_new else "before",
            )
            for span in changes(self.scenario)
        )

    @cached_property
    def truth(self) -> Truth:
        """What is so. Counting takes a pass over the rows, a fraction of the time of encoding them."""
        tally = Tally(self.scenario, self._encoder)
        for rows in self._rows():
            tally.add(rows)
        world = self._world
        regimes = {"before": world.before, "after": world.after if self.changes else world.before}
        return Truth(
            scenario=self.scenario,
            changes=self.changes,
            before=regimes["before"],
            after=regimes["after"],
            friendships=tuple((user_id(one), user_id(other)) for one, other in world.friends.pairs),
            vulnerable_users=tuple(map(user_id, np.flatnonzero(world.vulnerable).tolist())),
            dangerous_merchants={
                name: tuple(map(merchant_id, np.flatnonzero(regime.dangerous).tolist()))
                for name, regime in regimes.items()
            },
            risky_payments=tuple(tally.risky),
            retired_items=tuple(self._retired()),
            valid=tally.valid,
            duplicates=tally.duplicates,
            malformed=tally.malformed,
        )

    def _retired(self) -> Iterator[RetiredItem]:
        for at_s, old, new in self._catalogue.retired(0.0, self.scenario.duration_s):
            at = time(self.scenario.start_us + round(at_s * 1e6))
            yield RetiredItem(item_id=item_id(old), at=at, replaced_by=item_id(new))

    def _rows(self) -> Iterator[Rows]:
        """All that is sent, by record time; a block's rows once nothing earlier can come."""
        scenario, schedule = self.scenario, self._schedule
        behaviour = Behaviour(scenario, self._world, self._catalogue)
        places = np.arange(scenario.items)
        waiting = made(what=ITEM, number=places, sent_us=scenario.start_us)
        numbered, last_clock = 0, schedule.clock(np.array([scenario.duration_s]))[0]
        for block in blocks(scenario, self._world.friends):
            if block.begins >= last_clock:
                break
            at_s = schedule.seconds(block.occasions.clock)
            events = behaviour.rows(block, at_s, schedule.share(at_s))
            events["number"] = numbered + np.arange(len(events))
            events = events[events["at_us"] < scenario.end_us]
            numbered += len(events)
            begins_s, ends_s = schedule.seconds(np.array([block.begins, block.ends])).tolist()
            waiting = np.concatenate([waiting, *self._sent(block.rng, events, begins_s, ends_s)])
            waiting = waiting[np.argsort(waiting["sent_us"], kind="stable")]
            ready = int(np.searchsorted(waiting["sent_us"], scenario.start_us + int(ends_s * 1e6)))
            yield waiting[:ready]
            waiting = waiting[ready:]
        yield waiting

    def _sent(self, rng: np.random.Generator, events: Rows, begins_s: float, ends_s: float) -> Iterator[Rows]:
        """What a block adds to what is sent; of several at one instant items come first."""
        scenario = self.scenario
        yield from self._turnover(begins_s, min(ends_s, scenario.duration_s))
        yield events
        yield faults.repeated(rng, scenario, events)
        yield faults.broken(scenario, events)
        labels = events[events["kind"] == BUY]
        labels["what"] = LABEL
        labels["sent_us"] += round(scenario.label_delay_s * 1e6)
        yield labels[labels["sent_us"] < scenario.end_us]

    def _turnover(self, begins_s: float, ends_s: float) -> Iterator[Rows]:
        for at_s, old, new in self._catalogue.retired(begins_s, ends_s):
            at_us = self.scenario.start_us + round(at_s * 1e6)
            yield made(what=np.array([GONE, ITEM]), number=np.array([old, new]), sent_us=at_us)
