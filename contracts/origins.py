"""The header of a replayed dead letter: which one it repeats, and the proof (protocol, rule 5).

    driftline-origin: <stream id>:<offset>:<proof, 64 hexadecimal digits>

Producers, Streams, Connect and mirror tools copy headers on, and anybody may write one. So it proves itself: a keyed
hash, with the installation's key, over the letter's id and the whole record (topic, key and value). A copy of it on
any other record, another event of the same user included, proves nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from hmac import compare_digest

# Decimal as Postgres prints it and nothing else: "077", "+1", blanks and other scripts' digits are no numbers here.
_CONTENT = re.compile(rb"(0|[1-9][0-9]{0,8}):(0|[1-9][0-9]{0,17}):([0-9a-f]{64})")
_PURPOSE = b"driftline-origin"
"""Keeps this hash apart from others under the same key; 16 bytes, all that BLAKE2 takes."""


@dataclass(frozen=True)
class OriginClaim:
    """What a header of that name says, believed or not."""

    stream_id: int
    position: int
    """Offset of the dead letter."""
    proof: bytes
    """32 bytes."""

    @property
    def letter(self) -> tuple[int, int]:
        """The dead letter: (stream id, offset)."""
        return self.stream_id, self.position

    def proven(self, secret: bytes, record: bytes) -> bool:
        """Whether this installation wrote it for this record.

        :param secret: the installation's key. :param record: `record_digest` of the record that carries it.
        """
        return compare_digest(self.proof, _proof(secret, f"{self.stream_id}:{self.position}", record))


def origin_header(secret: bytes, letter_id: str, record: bytes) -> bytes:
    """The header's content for a record that repeats a dead letter.

    :param letter_id: "<stream id>:<offset>", as `dlq list` prints it.
    """
    return f"{letter_id}:{_proof(secret, letter_id, record).hex()}".encode()


def read_origin(content: object) -> OriginClaim | None:
    """What a header says; None: it is in no form that Driftline writes."""
    found = _CONTENT.fullmatch(content) if isinstance(content, bytes) else None
    if found is None:
        return None
    stream_id, position, proof = found.groups()
    return OriginClaim(int(stream_id), int(position), bytes.fromhex(proof.decode()))


def record_digest(topic: str, key: bytes | None, value: bytes | None) -> bytes:
    """The record, as the proof covers it: 32 bytes. No two records share one, null and empty included.

    :param topic: logical name.
    """
    found = blake2b(digest_size=32)
    for part in (topic.encode(), key, value):
        found.update(b"-" if part is None else b"%d:" % len(part))
        found.update(part or b"")
    return found.digest()


def _proof(secret: bytes, letter_id: str, record: bytes) -> bytes:
    return blake2b(record + letter_id.encode(), key=secret, digest_size=32, person=_PURPOSE).digest()
