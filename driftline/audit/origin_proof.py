"""The audit's own reading of the header by which a replayed dead letter names and proves itself (protocol, rule 5)."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

from confluent_kafka import Message

from contracts import topics
from runtime.headers import UNREADABLE, headers_of

_HASH_BYTES = 32


@dataclass
class Headers:
    """What a range of records says in its headers."""

    origins: dict[int, str] = field(default_factory=dict)
    """Offset -> id of the dead letter that the record there proves to repeat."""
    unproven: list[int] = field(default_factory=list)
    """Offsets of records with a header of that name that proves nothing."""
    unreadable: list[int] = field(default_factory=list)
    """Offsets of records whose headers the client cannot give."""

    def take(self, messages: list[Message], topic: str, secret: bytes) -> None:
        """Looks at records that nobody looked at before.

        :param topic: logical name. :param secret: the installation's key.
        """
        for message, headers in zip(messages, headers_of(messages), strict=True):
            if headers is UNREADABLE:
                self.unreadable.append(message.offset() or 0)
            elif headers and (contents := [said for name, said in headers if name == topics.ORIGIN_HEADER]):
                self._judge(message, contents, topic, secret)

    def _judge(self, message: Message, contents: list[str | bytes | None], topic: str, secret: bytes) -> None:
        at = message.offset() or 0
        content = _content(topic, message)
        for letter, proof in filter(None, map(_parts, contents)):
            expected = hashlib.blake2b(
                content + letter, digest_size=_HASH_BYTES, key=secret, person=topics.ORIGIN_HEADER.encode()
            )
            if hmac.compare_digest(expected.hexdigest().encode(), proof):
                self.origins[at] = letter.decode()
                return
        self.unproven.append(at)

    def between(self, first: int, end: int) -> Headers:
        """Of the offsets [first, end)."""
        return Headers(
            {at: origin for at, origin in self.origins.items() if first <= at < end},
            [at for at in self.unproven if first <= at < end],
            [at for at in self.unreadable if first <= at < end],
        )

    def add(self, other: Headers) -> None:
        """Those of other offsets, too."""
        self.origins |= other.origins
        self.unproven += other.unproven
        self.unreadable += other.unreadable


def _parts(content: object) -> tuple[bytes, bytes] | None:
    """(letter id, proof) of a header that is spelt as Driftline spells it."""
    parts = content.split(b":") if isinstance(content, bytes) else []
    if len(parts) != 3 or len(parts[0]) > 9 or len(parts[1]) > 18 or len(parts[2]) != 2 * _HASH_BYTES:
        return None
    if not all(part.isdigit() and str(int(part)).encode() == part for part in parts[:2]):
        return None
    return b":".join(parts[:2]), parts[2]


def _content(topic: str, message: Message) -> bytes:
    """Hash of topic, key and value, each behind its length."""
    pieces: list[bytes] = []
    for part in (topic.encode(), message.key(), message.value()):
        if part is None:
            pieces.append(b"-")
        else:
            pieces += [str(len(part)).encode(), b":", part if isinstance(part, bytes) else part.encode()]
    return hashlib.blake2b(b"".join(pieces), digest_size=_HASH_BYTES).digest()
