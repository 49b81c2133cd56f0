"""The identity of an event: (topic, record key, event id), and its 64-bit digest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest as digest

__all__ = ["SEPARATOR", "digest", "event_key", "signed"]

SEPARATOR = "\0"
"""Between the parts of an identity. Ids may hold any character but this one (see `codec`), so it is unambiguous."""
_SIGN = 1 << 63


def event_key(topic: str, key: str, event_id: str) -> int:
    """Digest of an event's identity as a signed 64-bit integer (Postgres and numpy have no unsigned one)."""
    return digest(f"{topic}{SEPARATOR}{key}{SEPARATOR}{event_id}".encode()) - _SIGN


def signed(digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    """`digest`s of many identities as `event_key` gives them."""
    return (digests ^ np.uint64(_SIGN)).view(np.int64)
