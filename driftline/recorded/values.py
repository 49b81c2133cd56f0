"""Values of a column: times in microseconds since 1970, money in millionths, ids and texts."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from contracts.records import MAX_AMOUNT, MILLIONTHS
from runtime.lifecycle import ConfigurationError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
UNKNOWN = np.iinfo(np.int64).min
"""A time that is missing or unreadable; sorts first."""

_UNITS_US = {"s": 1_000_000, "ms": 1_000, "us": 1}
_FIRST_US, _LAST_US = ((datetime(year, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1) for year in (1, 9999))


def texts(table: pa.Table, column: str) -> list[str | None]:
    """A column as text; "=X" is X in every row.

    :raises Usage: a column of lists, structures or the like.
    """
    if column.startswith("="):
        return [column[1:]] * len(table)
    try:
        return _as_text(table[column])
    except pa.ArrowException as error:
        raise ConfigurationError(
            f"column {column} holds no plain values: {error}", hint="name another column"
        ) from None


def ids(source: str, table: pa.Table, column: str) -> list[str | None]:
    """A column as ids "SOURCE:value"."""
    return [None if text is None else f"{source}:{text}" for text in texts(table, column)]


def times(column: pa.ChunkedArray, unit: Literal["s", "ms", "us"]) -> NDArray[np.int64]:
    """Microseconds since 1970, `UNKNOWN` where there is none; `unit` is that of a column of numbers."""
    kind, unit_us = column.type, _UNITS_US[unit]
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        seconds = pc.cast(column, pa.float64(), safe=False).to_numpy()
        exact = np.rint(seconds * unit_us)
        fit = (exact >= _FIRST_US) & (exact <= _LAST_US)  # False for NaN
        return np.where(fit, np.where(fit, exact, 0).astype(np.int64), UNKNOWN)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        cast = pc.cast(pc.cast(column, pa.timestamp("us", getattr(kind, "tz", None)), safe=False), pa.int64())
        us = np.asarray(pc.fill_null(cast, UNKNOWN).to_numpy(), np.int64)
        return np.where((us >= _FIRST_US) & (us <= _LAST_US), us, UNKNOWN)
    return np.array([_parsed_time(text, unit_us) for text in _as_text(column)], np.int64)


def millionths(text: str | None) -> int | None:
    """A decimal number of currency units in millionths; None = no number, or beyond what a record holds."""
    try:
        amount = Decimal(text or "") * MILLIONTHS
        return int(amount.to_integral_value(ROUND_HALF_EVEN)) if abs(amount) <= MAX_AMOUNT else None
    except InvalidOperation:  # NaN too: it does not compare
        return None


def number(text: str | None) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def time(us: int) -> datetime:
    """Microseconds since 1970 as a time."""
    return EPOCH + timedelta(microseconds=us)


def record_ms(at: datetime) -> int:
    """A record time, in milliseconds. To Kafka clients 0 means now, and before 1970 there is none."""
    return max((at - EPOCH) // timedelta(milliseconds=1), 1)


def _as_text(column: pa.ChunkedArray) -> list[str | None]:
    """Shortest decimals for floats; nulls and empty texts are None."""
    return [text or None for text in pc.cast(column, pa.string()).to_pylist()]


def _parsed_time(text: str | None, unit_us: int) -> int:
    try:
        us = int((Decimal(text or "") * unit_us).to_integral_value(ROUND_HALF_EVEN))
    except (InvalidOperation, OverflowError, ValueError):
        try:
            at = datetime.fromisoformat(text or "")
        except ValueError:
            return UNKNOWN
        us = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - EPOCH) // timedelta(microseconds=1)
    return us if _FIRST_US <= us <= _LAST_US else UNKNOWN
