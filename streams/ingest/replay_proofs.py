"""Which records repeat a dead letter: by a header that proves itself, of a letter that exists (protocol, rule 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from confluent_kafka import Message
from numpy.typing import NDArray
from sqlalchemy import Connection

from contracts.origins import OriginClaim, read_origin, record_digest
from contracts.topics import ORIGIN_HEADER
from runtime.headers import Headers
from storage.log import dead_letters
from storage.log.dead_letters import LetterId
from storage.log.offsets import Claim
from storage.privacy import suppression

Believed = Mapping[int, tuple[LetterId, bool]]
"""Offset -> (the dead letter that the record there repeats, whether it came in before)."""


@dataclass(frozen=True)
class Claimed:
    """The headers by which a record says that it repeats dead letters."""

    record: bytes
    """`record_digest` of the record; b"" where no claim could be proven anyway."""
    claims: tuple[OriginClaim, ...]
    """Those in a form that Driftline writes; often none."""


def claimed_by(message: Message, headers: Headers, topic: str) -> Claimed | None:
    """What a record says it repeats; None: nothing.

    :param topic: logical name.
    """
    contents = [content for name, content in headers if name == ORIGIN_HEADER]
    if not contents:
        return None
    claims = tuple(claim for content in contents if (claim := read_origin(content)) is not None)
    return Claimed(record_digest(topic, message.key(), message.value()) if claims else b"", claims)


class Replays:
    """Judges the claims of one batch after another, inside their transactions."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._secret = b""

    def believed(self, topic: str, origins: Mapping[int, Claimed]) -> Believed:
        """The claims that prove themselves, of dead letters that stand in the table."""
        proven = {offset: letter for offset, claimed in origins.items() if (letter := self._proven(claimed))}
        if not proven:
            return {}
        there = dead_letters.origins(self._connection, topic, set(proven.values()))
        return {offset: (letter, there[letter]) for offset, letter in proven.items() if letter in there}

    def drop_known(
        self,
        believed: Believed,
        rows: pa.Table,
        digests: NDArray[np.int64],
        claim: Claim,
        duplicate: NDArray[np.bool_],
    ) -> None:
        """Marks in `duplicate` the rows whose dead letter came in before, and notes those that bring one in.

        A row that is marked already, or repeats one of the batch that passes, brings nothing in and uses no letter up.
        """
        offsets = rows["offset"].to_numpy()
        replayed = np.flatnonzero(np.isin(offsets, list(believed)))
        if not len(replayed):
            return
        letters = {int(row): believed[int(offsets[row])][0] for row in replayed}
        near = np.flatnonzero(np.isin(digests, digests[replayed]) & ~duplicate)
        names = zip(rows["user"].take(near).to_pylist(), rows["event_id"].take(near).to_pylist(), strict=True)
        identities = dict(zip(near.tolist(), names, strict=True))
        known, ours = {letter for letter, before in believed.values() if before}, dict[LetterId, int]()
        while True:
            brought, dropped = _in_order(identities, letters, known)
            new = {letter: int(offsets[row]) for letter, row in brought.items() if letter not in ours}
            noted = dead_letters.claim_origins(self._connection, claim, new) if new else set()
            if len(noted) == len(new):
                break
            ours |= {letter: new[letter] for letter in noted}
            known |= new.keys() - noted  # another owner brought them in meanwhile: who passes is seen anew
        duplicate[dropped] = True

    def _proven(self, claimed: Claimed) -> LetterId | None:
        if claimed.claims and not self._secret:
            self._secret = suppression.installation_key(self._connection)
        return next((each.letter for each in claimed.claims if each.proven(self._secret, claimed.record)), None)


def _in_order(
    identities: Mapping[int, tuple[str, str]], letters: Mapping[int, LetterId], known: set[LetterId]
) -> tuple[dict[LetterId, int], Sequence[int]]:
    """Row by row: (letter -> the row that brings it in, rows whose letter is in)."""
    brought: dict[LetterId, int] = {}
    dropped = []
    passed = set()
    for row, identity in identities.items():
        if identity in passed:
            continue
        letter = letters.get(row)
        if letter is not None:
            if letter in known or letter in brought:
                dropped.append(row)
                continue
            brought[letter] = row
        passed.add(identity)
    return brought, dropped
