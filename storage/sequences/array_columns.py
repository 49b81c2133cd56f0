"""Columns of Postgres' arrays as they come over the wire: many rows at once, no Python object an element.

In binary form an array is five int32 (dimensions, whether it holds NULLs, type, length, lower bound), then of each
element its length as int32 and its bytes (`array_send` in PostgreSQL's src/backend/utils/adt/arrayfuncs.c).
Integers without NULLs are therefore a table of two columns, which numpy reads as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import pq
from psycopg.abc import AdaptContext
from psycopg.adapt import Transformer

_HEADER_BYTES = 20
_LENGTH_BYTES = 4
_TEXT_ARRAY_OID = 1009

Ints = NDArray[np.int64]
Strings = NDArray[np.object_]


def lengths(values: Sequence[bytes | None], width: int) -> Ints:
    """[R] how many integers of `width` bytes each of the arrays holds."""
    sizes = np.array([len(value or b"") for value in values], np.int64)
    return np.maximum(sizes - _HEADER_BYTES, 0) // (_LENGTH_BYTES + width)


def integers(values: Sequence[bytes | None], counts: Ints, width: int) -> Ints:
    """[E] the elements of arrays of integers of `width` bytes, one after the other.

    :param values: [R] arrays without NULLs; None = `counts` of zeros, one element = `counts` of it.
    :param counts: [R] how many elements each stands for.
    """
    element = _LENGTH_BYTES + width
    parts = [
        bytes(count * element) if value is None else _repeated(memoryview(value)[_HEADER_BYTES:], count, element)
        for value, count in zip(values, counts.tolist(), strict=True)
    ]
    table = np.frombuffer(b"".join(parts), [("length", ">i4"), ("value", f">i{width}")])
    return table["value"].astype(np.int64)


def _repeated(part: memoryview, count: int, element: int) -> bytes | memoryview:
    return bytes(part) * count if len(part) == element else part


class Texts:
    """Elements of arrays of text, decoded when somebody wants to see them: most readers never do."""

    def __init__(self, values: Sequence[bytes | None], counts: Ints, context: AdaptContext) -> None:
        """
        :param values: [R] arrays without NULLs.
        :param counts: [R] how many elements each has.
        :param context: the connection they came over, which knows their encoding.
        """
        self._whole = _Whole(values, context)
        self._index = np.arange(counts.sum())

    def __getitem__(self, chosen: Any) -> Texts:
        part = copy(self)
        part._index = self._index[chosen]
        return part

    @property
    def strings(self) -> Strings:
        """[E] one after the other."""
        found: Strings = self._whole.strings[self._index]
        return found


class _Whole:
    """What parts of the same `Texts` share."""

    def __init__(self, values: Sequence[bytes | None], context: AdaptContext) -> None:
        self._values = values
        self._reader = Transformer(context)

    @cached_property
    def strings(self) -> Strings:
        self._reader.set_loader_types([_TEXT_ARRAY_OID] * len(self._values), pq.Format.BINARY)
        return strings(list(chain.from_iterable(self._reader.load_sequence(self._values))))


def strings(values: Sequence[str | None]) -> Strings:
    """An array of objects: numpy would cut or pad its own string type."""
    array = np.empty(len(values), np.object_)
    array[:] = values
    return array
