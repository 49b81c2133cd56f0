"""Users whose records are no longer accepted, remembered by a keyed hash and not by name (protocol, rule 10).

An erasure and a batch in flight cannot miss each other, in two ways. A batch holds a shared lock from before it
looks who is suppressed until it ends, and an erasure takes the lock alone; so no batch that knows too few users
allocates a string or writes a row beside an erasure or after it. And `suppression_version` stands on every
`stream_offset` row and in the compare that ends a batch, should anybody write without the lock. A learner's step
takes the same lock on its way into the journal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from hashlib import blake2b

from sqlalchemy import Connection, text

_BATCHES = 0x64726C6572617365
"""Key of the advisory lock: shared by batches, taken alone by an erasure."""
_LOCK_TIMEOUT_S = 30
"""A batch ends within its transaction's 15 seconds, or when its successor claims the stream."""


@dataclass(frozen=True, kw_only=True)
class Suppression:
    """The suppressed users as of a version. `stream_offset` rows carry the version they were read with."""

    key: bytes
    version: int
    hashes: frozenset[bytes]

    def __contains__(self, user: object) -> bool:
        return bool(self.hashes) and isinstance(user, str) and user_hash(self.key, user) in self.hashes

    def named_in(self, content: bytes) -> bool:
        """Whether bytes that nobody could read name one of them: as a quoted string, or a word of some kind."""
        if not self.hashes:
            return False
        words = {word for pattern in _WORDS for word in pattern.findall(content)}
        return any(form in self for word in words for form in _forms(word))


NOBODY = Suppression(key=b"", version=0, hashes=frozenset())
"""Before anybody was erased."""

_WORDS = tuple(
    re.compile(pattern)
    for pattern in (rb'"((?:[^"\\]|\\.)*)"', rb"[^\s\"']+", rb"[^\s\"',:;=&|(){}\[\]<>]+", rb"[0-9A-Za-z_\x80-\xff]+")
)

_LOAD = text("SELECT user_hash, version FROM suppression")
_KEY = text("SELECT suppression_key FROM installation")
_SHARE = text("SELECT pg_advisory_xact_lock_shared(:lock)")
_ALONE = text("SELECT pg_advisory_xact_lock(:lock)")
_VERSION = text("SELECT coalesce(max(version), 0) FROM suppression")
# New streams are registered with the newest version there is: none may be on its way meanwhile.
_HOLD_STREAMS = text("LOCK TABLE stream_offset IN SHARE ROW EXCLUSIVE MODE")
_ADD = text("""
    INSERT INTO suppression (user_hash, version, found)
    SELECT hash, (SELECT coalesce(max(version), 0) + 1 FROM suppression), false
    FROM unnest(CAST(:hashes AS bytea[])) AS hash ON CONFLICT (user_hash) DO NOTHING
""")
_FOUND = text("UPDATE suppression SET found = true WHERE user_hash = ANY(CAST(:hashes AS bytea[])) AND NOT found")
_UNFOUND = text("SELECT user_hash FROM suppression WHERE user_hash = ANY(CAST(:hashes AS bytea[])) AND NOT found")
_RAISE = text("UPDATE stream_offset SET suppression_version = (SELECT coalesce(max(version), 0) FROM suppression)")


def load(connection: Connection) -> Suppression:
    """All suppressed users."""
    rows = connection.execute(_LOAD).all()
    return Suppression(
        key=installation_key(connection),
        version=max((row.version for row in rows), default=0),
        hashes=frozenset(bytes(row.user_hash) for row in rows),
    )


def installation_key(connection: Connection) -> bytes:
    """The secret of this installation's keyed hashes."""
    return bytes(connection.scalar(_KEY))


def share(connection: Connection) -> None:
    """No erasure begins or ends until the transaction ends."""
    connection.execute(_SHARE, {"lock": _BATCHES})


def current(connection: Connection, known: Suppression) -> Suppression:
    """`known`, or what is true now if somebody was erased since.

    After `share` it stays true until the transaction ends, whether or not that commits: who was erased is so
    by a transaction of the erasure's own.
    """
    return known if connection.scalar(_VERSION) == known.version else load(connection)


def suppress(connection: Connection, users: Collection[str]) -> list[bytes]:
    """Their records are no longer accepted once this transaction commits; returns their hashes.

    Waits for batches in flight. Suppressing a user again changes nothing.

    :raises sqlalchemy.exc.OperationalError: a batch in flight does not end within 30 seconds.
    """
    key = installation_key(connection)
    hashes = [user_hash(key, user) for user in users]
    alone(connection)
    connection.execute(_HOLD_STREAMS)
    connection.execute(_ADD, {"hashes": hashes})
    connection.execute(_RAISE)
    return hashes


def found(connection: Connection, users: Collection[str]) -> None:
    """Notes, in the transaction that takes it out, that there was something of these suppressed users."""
    if users:
        key = bytes(connection.scalar(_KEY))
        connection.execute(_FOUND, {"hashes": sorted(user_hash(key, user) for user in users)})


def unknown(connection: Connection, users: Collection[str]) -> list[str]:
    """Those of these suppressed users of whom no erasure ever found anything, sorted."""
    key = bytes(connection.scalar(_KEY))
    names = {user_hash(key, user): user for user in users}
    return sorted(names[bytes(row)] for row in connection.scalars(_UNFOUND, {"hashes": list(names)}))


def alone(connection: Connection) -> None:
    """No batch and no step of a learner is in flight until the transaction ends.

    :raises sqlalchemy.exc.OperationalError: one of those that are does not end within 30 seconds.
    """
    connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT_S}s'"))
    connection.execute(_ALONE, {"lock": _BATCHES})


def user_hash(key: bytes, user: str) -> bytes:
    """BLAKE2b-256 of a user id, keyed by the installation."""
    return blake2b(user.encode(), key=key, digest_size=32).digest()


def _forms(word: bytes) -> Iterator[str]:
    """The word as it stands, and without JSON's escapes."""
    plain = word.decode(errors="replace")
    yield plain
    if "\\" in plain:
        try:
            unescaped = json.loads(f'"{plain}"')
        except ValueError:
            return
        yield unescaped.encode(errors="replace").decode()
