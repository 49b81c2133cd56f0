"""What a file of recorded events is: which column holds what, and what else is known beside its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import pyarrow as pa

from contracts import topics
from runtime.produce import Outgoing


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column holds what. A value that starts with "=" is no column but the value itself: "=EUR".

    With `amount` rows are payments, else with `with_` relational events, else user events.
    """

    user: str
    time: str
    """Seconds since 1970 (see `time_unit`), ISO 8601 text or a timestamp column; without a zone it is UTC."""
    time_unit: Literal["s", "ms", "us"] = "s"
    type: str = "=event"
    item: str | None = None
    amount: str | None = None
    """Currency units. A float counts as its shortest decimal ("57.16"), rounded half-even to millionths."""
    currency: str = "=EUR"
    with_: str | None = None
    """The other side: payee of a payment, counterpart of a relational event."""
    id: str | None = None
    """Identity of the event; None = the row's number in the file, from 0."""

    @property
    def named(self) -> list[str]:
        """The columns read, without repeats."""
        given = (self.user, self.time, self.type, self.item, self.amount, self.currency, self.with_, self.id)
        return list(dict.fromkeys(name for name in given if name and not name.startswith("=")))

    @property
    def topic(self) -> str:
        """Where the rows go."""
        return topics.PAYMENT if self.amount else topics.RELATIONAL if self.with_ else topics.USER


@dataclass(frozen=True, kw_only=True)
class LateLabel:
    """A column with an outcome that became known some time after the event. A null is no label."""

    column: str
    task: str
    delay: timedelta


@dataclass(frozen=True, kw_only=True)
class Reshape:
    """Columns that the file does not hold as they are needed, made out of those that it does hold."""

    reads: tuple[str, ...]
    """Columns of the file, in place of those that `Columns` names."""
    make: Callable[[Iterator[pa.Table]], Iterator[pa.Table]]
    """The file's batches, in its order -> batches with the columns that `Columns` names. Asked more than once."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of events."""

    name: str
    """Stands before every id."""
    file: Path
    """*.parquet, else CSV with a header line."""
    columns: Columns
    type_names: Mapping[str, str] = field(default_factory=dict)
    """Value of the type column -> name; other values keep their text."""
    label: LateLabel | None = None
    reshape: Reshape | None = None
    beside: Callable[[datetime, datetime], Iterable[Outgoing]] | None = None
    """Times of the first and the last event -> records that are no rows of the file (items, labels of users,
    friendships), in the order of their times."""
    stated: str | None = None
    """What `source` says in the records; None = the name."""

    @property
    def says(self) -> str:
        """`source` of its records."""
        return self.stated or self.name
