"""Users' signature tables on their way from `train` to scoring: written behind, whole rows (protocol, rule 17).

Scoring serves the version inside the newest live snapshot, so rows of that version are written, while the learner
may have published others since. A row says up to where it goes; who dies before it is written leaves an older one.
Nothing is read back: what is lost here is built again from sequences, and changes no weight.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Sequence
from typing import Final

from sqlalchemy import Connection

from contexts.batch_builder import context_of
from learners.arms.group import ArmGroup
from learners.models.sdim.embedding_version import EmbeddingVersion, SignatureRow
from learners.models.sdim.learner import SDIM
from storage.learning import journal, signature_rows
from storage.learning.journal import WriterLease
from storage.learning.signature_rows import StoredSignature, TableVersion
from storage.log.offsets import Cursor
from storage.sequences import history_reader
from storage.sequences.user_sequences import HistoryAsk

EVERY_S: Final = 5.0
"""Seconds between two portions."""
PORTION: Final = 256
"""Rows of one transaction: some 4 MiB."""
_FOREVER: Final = 2**62


class SignatureWriter:
    """Which users' rows are due, the users touched last first."""

    def __init__(self, lease: WriterLease, learner: SDIM) -> None:
        self._lease = lease
        self._learner = learner
        self._touched: OrderedDict[str, Cursor] = OrderedDict()
        """User -> cursor at the end of the newest step that touched them; as many users as the learner holds."""
        self._due: set[str] = set()
        """Of these, the ones whose row is older, or not of the version that serves."""
        self._serving: EmbeddingVersion | None = None
        self._dropped = True
        """Rows of versions that serve no more are gone."""
        self._kept: tuple[str, ...] = ()
        self._next_at = 0.0

    def learnt(self, cursor: Cursor) -> None:
        """Call it after each step.

        :param cursor: at the step's end.
        """
        if users := self._learner.touched:
            end = dict(cursor)
            for user in sorted(users):
                self._touched[user] = end
                self._touched.move_to_end(user)
            self._due |= users
        while len(self._touched) > self._learner.config.table_users:
            self._due.discard(self._touched.popitem(last=False)[0])

    def forget(self, users: Container[str]) -> None:
        """Writes no row of these users any more."""
        for user in [user for user in self._touched if user in users]:
            del self._touched[user]
            self._due.discard(user)

    def serves(self) -> None:
        """What the learner publishes now is in the newest live snapshot: from now on it is what rows are made of."""
        version, before = self._learner.published, self._serving
        if before is None or version.embedding != before.embedding:
            self._serving = version
            self._kept = (version.embedding, *(() if before is None else (before.embedding,)))
            self._due, self._dropped = set(self._touched), False

    def write_if_due(self, connection: Connection, cursor: Cursor, *, now: float) -> int:
        """Writes a portion where the last one is `EVERY_S` ago; how many rows.

        :param now: seconds of a clock that only goes forward.
        """
        if now < self._next_at:
            return 0
        self._next_at = now + EVERY_S
        return self.write(connection, cursor)

    def write(self, connection: Connection, cursor: Cursor) -> int:
        """Writes one portion in a transaction of its own; how many users are dealt with, 0 = none is due.

        :param cursor: at the newest step's end.
        :raises Fenced: another process trains this learner now.
        """
        serving, users = self._serving, self._portion()
        if serving is None or not users:
            return 0
        with connection.begin():
            journal.check_lease(connection, self._lease)
            ends = {user: self._touched[user] for user in users}
            ends |= dict.fromkeys(self._take(connection, self._learner.without_window(users), cursor), cursor)
            rows = [_stored(row, ends[row.user]) for row in self._learner.signature_rows(users, serving)]
            learner = self._lease.learner
            version = TableVersion(learner=learner, embedding=serving.embedding, hash_id=serving.hash_id)
            signature_rows.put(connection, version, rows)
            if not self._dropped:
                signature_rows.drop_others(connection, learner, self._kept)
        self._due.difference_update(users)
        self._dropped = True
        return len(users)

    def _portion(self) -> list[str]:
        found: list[str] = []
        for user in reversed(self._touched):
            if len(found) == min(PORTION, len(self._due)):
                break
            if user in self._due:
                found.append(user)
        return found

    def _take(self, connection: Connection, users: Sequence[str], cursor: Cursor) -> Sequence[str]:
        """Gives the learner the sequences of users it does not hold: a late row was the first it saw of them."""
        if users:
            last_n = self._learner.config.last_n
            asks = [HistoryAsk(user=user, before=_FOREVER, last_n=last_n) for user in users]
            self._learner.take_sequences(
                users, context_of(history_reader.read(connection, asks, cursor, items_only=True))
            )
        return users


def writer_for(lease: WriterLease, arm_group: ArmGroup) -> SignatureWriter | None:
    """None: the learner keeps no such tables."""
    learner = arm_group.learner
    return SignatureWriter(lease, learner) if isinstance(learner, SDIM) else None


def _stored(row: SignatureRow, cursor: Cursor) -> StoredSignature:
    return StoredSignature(
        user=row.user,
        cursor=cursor,
        events=row.events,
        last_at=row.last_at,
        oldest=row.oldest,
        sums=row.table.sums,
        counts=row.table.counts,
    )
