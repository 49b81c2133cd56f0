"""What must stand in users' sequences, and what stands there, as arrays that can be compared.

An entry is a code (its log offset and kind) and a fingerprint of all it says, 16 bytes together, so that
millions are compared in memory. Strings are compared by their 64-bit hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contracts import topics

Ints = NDArray[np.int64]
Codes = NDArray[np.uint64]

USER_SPACE, NAME_SPACE, ITEM_SPACE, PARTY_SPACE = 1, 2, 3, 4
KINDS = {topics.USER: 1, topics.PAYMENT: 2, topics.RELATIONAL: 3}
COUNTERPART = 4
NO_AMOUNT = np.iinfo(np.int64).min

# One row of the binary COPY in `audit.py`, its eleven columns each behind its length.
WIRE = np.dtype(
    [
        ("columns", ">i2"),
        *(
            pair
            for name, kind in (
                ("stream", ">i4"),
                ("position", ">i8"),
                ("kind", ">i2"),
                ("user", ">i8"),
                ("at", ">i8"),
                ("type", ">i8"),
                ("item", ">i8"),
                ("amount", ">i8"),
                ("currency", ">i8"),
                ("other", ">i8"),
                ("event", ">u8"),
            )
            for pair in ((f"{name}_size", ">i4"), (name, kind))
        ),
    ]
)
WIRE_HEADER = 19
"""Bytes before the first row: signature, flags, length of the extension."""
WIRE_END = b"\xff\xff"


class Strings:
    """The vocabulary: id -> hash of (space, string)."""

    def __init__(self, entries: Iterable[tuple[int, int, str]]) -> None:
        rows = list(entries)
        ids = np.array([row[0] for row in rows], np.int64)
        hashes = np.fromiter((hash((space, value)) for _, space, value in rows), np.int64, len(rows)).view(np.uint64)
        order = np.argsort(ids)
        self._ids, self._hashes = ids[order], hashes[order]

    def hashes(self, ids: Ints) -> Codes:
        """0 for id 0 (NULL in the table) and for an id that names nothing."""
        if not len(self._ids):
            return np.zeros(len(ids), np.uint64)
        at = np.searchsorted(self._ids, ids)
        at[at == len(self._ids)] = 0
        return np.where(self._ids[at] == ids, self._hashes[at], np.uint64(0))


@dataclass
class Entries:
    """Entries of one stream's events."""

    codes: list[Ints] = field(default_factory=list)
    prints: list[Codes] = field(default_factory=list)

    def add(self, codes: Ints, prints: Codes) -> None:
        """More of them."""
        self.codes.append(codes)
        self.prints.append(prints)

    def split(self, offset: int) -> tuple[Entries, int]:
        """Those from a log offset on, and how many there are before."""
        kept, older = Entries(), 0
        for codes, prints in zip(self.codes, self.prints, strict=True):
            here = codes >> 3 >= offset
            older += int((~here).sum())
            kept.add(codes[here], prints[here])
        return kept, older

    def sorted(self) -> tuple[Ints, Codes]:
        """All, by code; equal codes by fingerprint."""
        if not self.codes:
            return np.empty(0, np.int64), np.empty(0, np.uint64)
        codes, prints = np.concatenate(self.codes), np.concatenate(self.prints)
        order = np.lexsort((prints, codes))
        return codes[order], prints[order]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Codes that are not as they must be."""

    missing: Ints
    twice: Ints
    extra: Ints
    wrong: Ints


def compare(expected: Entries, actual: Entries) -> Difference:
    """Each expected entry must be there once, and nothing else."""
    wanted, wanted_prints = expected.sorted()
    found, found_prints = actual.sorted()
    first = np.ones(len(found), bool)
    first[1:] = found[1:] != found[:-1]
    once, once_prints = found[first], found_prints[first]
    unique, at = np.unique(wanted, return_index=True)  # a log row twice is the log's finding, not the sequences'
    _, in_wanted, in_found = np.intersect1d(unique, once, assume_unique=True, return_indices=True)
    wrong = wanted_prints[at][in_wanted] != once_prints[in_found]
    return Difference(
        missing=np.setdiff1d(unique, once, assume_unique=True),
        twice=found[~first],
        extra=np.setdiff1d(once, unique, assume_unique=True),
        wrong=unique[in_wanted][wrong],
    )


def expected_entries(topic: str, rows: pa.Table) -> tuple[Ints, Codes]:
    """What log rows of a topic of events put into sequences."""
    offsets, kind = rows["offset"].to_numpy(), KINDS[topic]
    relational = topic == topics.RELATIONAL
    user = _text_hashes(rows["user"], USER_SPACE)
    other = _text_hashes(rows["other"], USER_SPACE if relational else PARTY_SPACE)
    events = [
        int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in rows["event_id"].to_pylist()
    ]
    said = (
        np.asarray(rows["at"].cast(pa.int64())).view(np.uint64),
        _text_hashes(rows["type"], NAME_SPACE),
        _text_hashes(rows["item"], ITEM_SPACE),
        rows["amount"].fill_null(NO_AMOUNT).to_numpy().view(np.uint64),
        _text_hashes(rows["currency"], NAME_SPACE),
        np.array(events, np.uint64),
    )
    codes, prints = code(offsets, np.full(len(offsets), kind)), _mixed(user, other, *said)
    if not relational:
        return codes, prints
    mirrored = code(offsets, np.full(len(offsets), COUNTERPART))
    return np.concatenate([codes, mirrored]), np.concatenate([prints, _mixed(other, user, *said)])


def actual_entries(wire: NDArray[np.void], strings: Strings) -> tuple[Ints, Codes]:
    """The same of rows as the database sends them."""
    columns = {
        name: wire[name].astype(np.int64) for name in ("user", "at", "type", "item", "amount", "currency", "other")
    }
    prints = _mixed(
        strings.hashes(columns["user"]),
        strings.hashes(columns["other"]),
        columns["at"].view(np.uint64),
        strings.hashes(columns["type"]),
        strings.hashes(columns["item"]),
        columns["amount"].view(np.uint64),
        strings.hashes(columns["currency"]),
        wire["event"].astype(np.uint64),
    )
    return code(wire["position"].astype(np.int64), wire["kind"]), prints


def code(offsets: Ints, kinds: NDArray[np.integer]) -> Ints:
    """Offset and kind in one number; the inverse of the offset is `>> 3`."""
    return (offsets << 3) | kinds.astype(np.int64)


def _text_hashes(column: pa.ChunkedArray, space: int) -> Codes:
    """0 for null."""
    encoded = column.combine_chunks().dictionary_encode()
    values = encoded.dictionary.to_pylist()
    hashes = np.fromiter((hash((space, value)) for value in values), np.int64, len(values)).view(np.uint64)
    indices = encoded.indices.fill_null(len(values)).to_numpy()
    found: Codes = np.concatenate([hashes, np.zeros(1, np.uint64)])[indices]
    return found


def _mixed(*columns: Codes) -> Codes:
    """A fingerprint of each row; the order of the columns matters."""
    mixed = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
    return mixed
