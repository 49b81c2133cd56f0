"""The identity of an event: (topic, record key, event id), and its 64-bit digest."""

from __future__ import annotations

from xxhash import xxh3_64_intdigest

_SIGN = 1 << 63


def event_key(topic: str, key: str, event_id: str) -> int:
    """Digest of an event's identity as a signed 64-bit integer (Postgres and numpy have no unsigned one).

    Ids may hold any character but U+0000 (see `codec`), so U+0000 separates them without ambiguity.
    """
    return xxh3_64_intdigest(f"{topic}\0{key}\0{event_id}".encode()) - _SIGN
