"""What a rule of the protocol is here: a clause, its tests, and how to switch it off."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One clause of a rule of the protocol."""

    number: int
    says: str
    tests: tuple[str, ...]
    """Each must pass as is, and fail with the rule off."""
    file: str
    off: tuple[tuple[str, str], ...]
    """(text that stands exactly once in the file, what replaces it): together they turn the clause off."""
    kafka: bool = False
    """Its tests need a real Kafka."""
