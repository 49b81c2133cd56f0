"""Users whose records are no longer accepted, remembered by a keyed hash and not by name (protocol, rule 10)."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from sqlalchemy import Connection, text


@dataclass(frozen=True, kw_only=True)
class Suppression:
    """The suppressed users as of a version. `stream_offset` rows carry the version they were read with."""

    key: bytes
    version: int
    hashes: frozenset[bytes]

    def __contains__(self, user: str) -> bool:
        return bool(self.hashes) and user_hash(self.key, user) in self.hashes


_LOAD = text("SELECT user_hash, version FROM suppression")
_KEY = text("SELECT suppression_key FROM installation")


def load(connection: Connection) -> Suppression:
    """All suppressed users."""
    rows = connection.execute(_LOAD).all()
    return Suppression(
        key=bytes(connection.scalar(_KEY)),
        version=max((row.version for row in rows), default=0),
        hashes=frozenset(bytes(row.user_hash) for row in rows),
    )


def user_hash(key: bytes, user: str) -> bytes:
    """BLAKE2b-256 of a user id, keyed by the installation."""
    return blake2b(user.encode(), key=key, digest_size=32).digest()
