"""What Postgres says, in one transaction a batch (protocol, rules 11 and 19)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine

from scoring.refusals import NotReady
from storage import sequences, serving
from storage.engine import mapped_errors
from storage.sequences import HistoryAsk, SequenceEvent
from storage.serving import Standing


@dataclass(frozen=True, kw_only=True)
class Seen:
    """User state as of one watermark."""

    standing: Standing
    histories: list[list[SequenceEvent]]
    """One for each ask."""


class StateReader:
    """Reads user state from the primary."""

    def __init__(self, postgres: Engine, *, learner: str) -> None:
        self._postgres = postgres.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._learner = learner

    def read(self, asks: Sequence[HistoryAsk]) -> Seen:
        """Watermark, registry, staleness and histories as one REPEATABLE READ READ ONLY transaction sees them.

        :raises Unavailable: Postgres is out of reach.
        :raises NotReady: the server is a standby.
        """
        with mapped_errors(), self._postgres.connect() as connection:
            standing = serving.standing(connection, self._learner)
            cursor = {row.stream_id: row.next_offset for row in standing.streams}
            histories = sequences.histories(connection, asks, cursor) if asks else []
        if standing.standby:
            self._postgres.dispose()  # the next try shall ask anew who is the primary
            raise NotReady(
                "user state cannot be read: this Postgres is a standby",
                where="Postgres",
                todo="let DRIFTLINE_POSTGRES_URL lead to the primary; then ask again",
            )
        return Seen(standing=standing, histories=histories)
