"""The plan of what is sent: one row a record, before it is encoded."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ITEM, GONE, EVENT, REPEATED, LABEL, BROKEN = range(6)
"""`what` a record is: an item on sale, one taken off, an event, its repetition, a label of a payment, no event."""

Rows = NDArray[np.void]
"""Rows of `_ROW`."""

_ROW = np.dtype(
    [
        ("sent_us", np.int64),  # record time, microseconds since 1970
        ("what", np.uint8),
        ("number", np.int64),  # of the event (a label: of its payment), the item, or the broken record
        ("user", np.int64),
        ("at_us", np.int64),  # event time, microseconds since 1970
        ("kind", np.uint8),  # place in TYPES or MESSAGE_KIND; of a broken record place in MALFORMED
        ("item", np.int64),
        ("cents", np.int64),
        ("party", np.int64),  # merchant of a payment, friend of a message
        ("risk", np.uint8),  # of a payment: 2 if its merchant is dangerous, plus 1 if its user is vulnerable
        ("fraud", np.bool_),
    ]
)


def empty(count: int) -> Rows:
    """Rows of zeros."""
    return np.zeros(count, _ROW)


def made(**columns: Any) -> Rows:
    """Rows of these columns, all of one length; the others are zeros."""
    rows = empty(max(np.size(column) for column in columns.values()))
    for name, column in columns.items():
        rows[name] = column
    return rows
