"""The first half of a run: the stream is sent while two ingest processes are killed, frozen and rebalanced."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.chaos.plan import UNCOMMITTED, IngestPlan
from tests.chaos.process import Victim
from tests.chaos.servers import Strikes
from tests.chaos.stage import PRODUCE_S

LIMIT_S = 480.0


class Ingesting:
    """Two processes of one group."""

    def __init__(self, plan: IngestPlan, first: Victim, second: Victim) -> None:
        self._plan, self.first, self.second = plan, first, second
        self._lives, self._kills = list(plan.lives), list(plan.kill_s)
        self._armed = ""
        self._thaw_at: dict[int, float] = {}
        self._joined = self._left = self._froze = False
        self.uncommitted = 0
        """Kills while a batch's rows were written and not committed."""

    def run(self, send: Callable[[], None], strikes: Strikes, look: Callable[[], None]) -> None:
        """Until all is sent and done; then the first one goes on undisturbed.

        :param look: called all the time, for those who stand beside.
        :raises AssertionError: one of them ended by itself, or not all could be sent.
        """
        began = time.monotonic()
        self._next_life()
        sender = ThreadPoolExecutor(1, "sending")
        sending = sender.submit(send)
        while (now := time.monotonic() - began) < LIMIT_S:
            self._revive(now)
            self._strike(now)
            self._thaw(now)
            look()
            # At last nobody waits for a fail point that no batch comes to any more.
            if sending.done() and strikes.over and (self._done() or now > 3 * PRODUCE_S):
                break
            time.sleep(0.05)
        sender.shutdown()
        sending.result()
        strikes.finish()
        self._end_the_last_armed_life()

    def _done(self) -> bool:
        froze = self._froze or self._plan.freeze_s == float("inf")
        return not self._lives and not self._kills and froze and not self.first.frozen

    def _next_life(self) -> None:
        self._armed = self._lives.pop(0) if self._lives else ""
        self.first.start(self._armed)

    def _revive(self, now: float) -> None:
        first = self.first
        if (status := first.ended()) is not None:
            self._killed(status)
            self._next_life()
        if first.stopped_itself():
            first.frozen, self._armed = True, ""
            self._thaw_at[id(first)] = now + self._plan.frozen_s
            self._somebody_else()

    def _killed(self, status: int) -> None:
        if status != -signal.SIGKILL:
            raise AssertionError(f"ingest ended by itself with {status}; see {self.first.log}")
        self.first.kills += 1
        self.uncommitted += self._armed.startswith(UNCOMMITTED)

    def _somebody_else(self) -> None:
        """Takes over from one that is frozen."""
        if not self.second.alive:
            self.second.start()
            self._joined = True

    def _strike(self, now: float) -> None:
        plan, first, second = self._plan, self.first, self.second
        if self._kills and now >= self._kills[0] and not first.frozen:
            self._kills.pop(0)
            if self._armed:  # its end came before its fail point: the next life gets another try
                self._lives.insert(0, self._armed)
                self._armed = ""
            first.kill()
            first.kills -= 1  # counted when it is seen to have ended
        if not self._joined and now >= plan.second_joins_s:
            self._somebody_else()
        frozen = first.frozen or second.frozen
        if not self._left and second.alive and now >= plan.second_leaves_s and not frozen:
            second.kill()
            self._left = True
        if not self._froze and now >= plan.freeze_s and first.alive and not first.frozen:
            self._froze = True
            first.freeze()
            self._thaw_at[id(first)] = now + plan.frozen_s
            if not second.alive:
                self._left = False
            self._somebody_else()

    def _thaw(self, now: float) -> None:
        for victim in (self.first, self.second):
            if victim.frozen and now >= self._thaw_at.get(id(victim), 0.0):
                victim.thaw()

    def _end_the_last_armed_life(self) -> None:
        if self.first.frozen:
            self.first.thaw()
        if (status := self.first.drain()) == -signal.SIGKILL:  # a fail point still armed came first
            self._killed(status)
        self._armed = ""
        self.first.start()
