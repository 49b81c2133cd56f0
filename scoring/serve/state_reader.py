"""What Postgres says, in one transaction a batch (protocol, rules 11 and 19)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from sqlalchemy import Connection, Engine

from learners.models.sdim.embedding_version import EmbeddingVersion
from scoring.errors import NotReady
from scoring.heads import user_state
from scoring.heads.request_decoding import Question
from scoring.heads.user_state import Interest
from storage import read_point
from storage.engine import mapped_errors
from storage.log.offsets import Cursor
from storage.read_point import Standing
from storage.sequences import history_reader
from storage.sequences.user_sequences import HistoryAsk, SequenceEvent

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Seen(Generic[T]):
    """User state as of one watermark."""

    standing: Standing
    found: list[T]
    """One for each ask."""


class StateReader:
    """Reads user state from the primary, each time with watermark, registry and staleness as the same REPEATABLE READ
    READ ONLY transaction sees them.

    :raises Unavailable: Postgres is out of reach.
    :raises NotReady: the server is a standby.
    """

    def __init__(self, postgres: Engine, *, learner: str) -> None:
        self._postgres = postgres.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._learner = learner

    def histories(self, asks: Sequence[HistoryAsk], *, items_only: bool = False) -> Seen[Sequence[SequenceEvent]]:
        """Sequences; `items_only` as in `storage.sequences.history_reader.read`."""

        def read(connection: Connection, cursor: Cursor) -> list[Sequence[SequenceEvent]]:
            return [*history_reader.read(connection, asks, cursor, items_only=items_only)] if asks else []

        return self._seen(read)

    def interests(self, published: EmbeddingVersion, questions: Sequence[Question]) -> Seen[Interest]:
        """Signature tables of one version of the item vectors, brought to the watermark."""
        read = partial(user_state.read, published=published, learner=self._learner, questions=questions)
        return self._seen(lambda connection, _: read(connection))

    def _seen(self, read: Callable[[Connection, Cursor], list[T]]) -> Seen[T]:
        with mapped_errors(), self._postgres.connect() as connection:
            standing = read_point.standing(connection, self._learner)
            found = read(connection, {row.stream_id: row.next_offset for row in standing.streams})
        if standing.standby:
            self._postgres.dispose()  # the next try shall ask anew who is the primary
            raise NotReady(
                "user state cannot be read: this Postgres is a standby",
                where="Postgres",
                hint="let DRIFTLINE_POSTGRES_URL lead to the primary; then ask again",
            )
        return Seen(standing=standing, found=found)


class Read(Protocol):
    """Has a reader asked, and what it saw noted; see `StateReader` for what is raised."""

    def __call__(self, ask: Callable[[StateReader], Seen[T]]) -> Seen[T]: ...
