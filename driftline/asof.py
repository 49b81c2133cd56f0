"""As-of, as people write it: a cursor, an event time, or both as CURSOR@TIME.

A cursor is "stream:offset,stream:offset,..." with the stream ids and next offsets of `driftline offsets show`.
A time alone is resolved to the cursor of this moment, which is printed with it: with both, the same question
has the same answer for ever, whatever comes in later.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from driftline.output import time
from runtime.lifecycle import ConfigurationError
from storage.log.event_log import time_of
from storage.log.offsets import Cursor

_CURSOR = re.compile(r"\d{1,9}:\d{1,18}(,\d{1,9}:\d{1,18})*", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ALWAYS = 2**63 - 1


@dataclass(frozen=True)
class AsOf:
    """What may be seen: what lies below the cursor and strictly before the event time."""

    cursor: Cursor
    before: int = _ALWAYS
    """Event time, microseconds since 1970."""

    def __str__(self) -> str:
        cursor = ",".join(f"{stream}:{offset}" for stream, offset in sorted(self.cursor.items()))
        return cursor if self.before == _ALWAYS else f"{cursor}@{time(time_of(self.before))}"


def parse(text: str | None, watermark: Cursor) -> AsOf:
    """:param watermark: the cursor of this moment; it stands in where none is given.

    :raises Usage: that is no as-of, or it lies ahead of the watermark.
    """
    if text is None:
        return AsOf(watermark)
    cursor, separator, at = text.partition("@")
    if not separator and not _CURSOR.fullmatch(text):
        cursor, at = "", text
    if not at and (separator or not cursor):
        raise _unfit(text)
    return AsOf(_cursor(cursor, watermark) if cursor else watermark, _time(at) if at else _ALWAYS)


def _cursor(text: str, watermark: Cursor) -> Cursor:
    if not _CURSOR.fullmatch(text):
        raise _unfit(text)
    cursor = {int(stream): int(offset) for stream, _, offset in (pair.partition(":") for pair in text.split(","))}
    for stream, offset in cursor.items():
        if stream not in watermark:
            raise ConfigurationError(f"no stream {stream}", where="--as-of", hint="`driftline offsets show` lists them")
        if offset > watermark[stream]:
            raise ConfigurationError(
                f"stream {stream} has been read up to {watermark[stream]} only, not to {offset}",
                where="--as-of",
                hint="ask for what is there, or let `driftline ingest` go on",
            )
    return cursor


def _time(text: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise _unfit(text) from None
    return ((at if at.tzinfo else at.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)


def _unfit(text: str) -> ConfigurationError:
    return ConfigurationError(
        f"{text[:80]!r} is neither a cursor nor a time",
        where="--as-of",
        hint="e.g. 1:345,2:77 or 2013-06-01T00:00:00Z (UTC where no zone is given), or both as CURSOR@TIME",
    )
