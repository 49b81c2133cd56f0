"""What was known of every user as of one moment of a run: it must stay so, whatever comes and is compacted later."""

from __future__ import annotations

from collections.abc import Sequence

from storage.engine import open_engine
from storage.log import offsets
from storage.log.offsets import Cursor
from storage.sequences import user_sequences
from storage.sequences.user_sequences import HistoryAsk, SequenceEvent

LAST = 10_000
_ALWAYS = 2**63 - 1


class Memory:
    """`driftline user ID --as-of CURSOR` of all users, at a cursor in the middle of the stream."""

    def __init__(self, database: str, users: Sequence[str], *, enough: int) -> None:
        """:param enough: records that must be in before it looks."""
        self._engine = open_engine(database, application_name="chaos")
        self._asks = [HistoryAsk(user=user, before=_ALWAYS, last_n=LAST) for user in users]
        self._enough = enough
        self._cursor: Cursor = {}
        self._then: list[list[SequenceEvent]] = []

    def look(self) -> None:
        """Remembers, once there is enough."""
        if self._cursor:
            return
        with self._engine.begin() as connection:
            cursor = offsets.watermark(connection)
            if sum(cursor.values()) >= self._enough:
                self._cursor, self._then = cursor, user_sequences.histories(connection, self._asks, cursor)

    def trouble(self) -> str:
        """What differs now; "" = nothing."""
        if not any(self._then):
            return "no history was remembered"
        with self._engine.begin() as connection:
            now = user_sequences.histories(connection, self._asks, self._cursor)
        changed = [ask.user for ask, one, other in zip(self._asks, self._then, now, strict=True) if one != other]
        return f"as of the same cursor {len(changed)} users have another past: {changed[:5]}" if changed else ""

    def close(self) -> None:
        self._engine.dispose()
