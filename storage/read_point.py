"""What the scoring process asks of the whole database beside histories."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from storage.log.offsets import StreamRow, streams


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far the database is, as one transaction sees it."""

    standby: bool
    """It replays another server's log: what it shows may be old, and a failover may take it back."""
    newest_live: str | None
    """Id of the learner's newest live snapshot."""
    streams: list[StreamRow]
    """The watermark, retired streams among it (their events still count)."""
    staleness_s: float | None
    """Seconds since the newest log segment below the watermark arrived; None = nothing has."""


# The newest segment of each stream ends at the watermark, so its key finds it: a log of any length costs
# one index look-up a stream.
_STANDING = text("""
    SELECT pg_is_in_recovery() AS standby,
           (SELECT id FROM snapshot WHERE learner = :learner AND status = 'live'
            ORDER BY branch DESC, step DESC LIMIT 1) AS newest_live,
           (SELECT extract(epoch FROM clock_timestamp() - max(newest.received_at))::float8
            FROM stream_offset s CROSS JOIN LATERAL (
                SELECT received_at FROM log_segment l WHERE l.stream_id = s.stream_id
                ORDER BY l.first_offset DESC, l.epoch DESC LIMIT 1) newest) AS staleness_s
""")


def standing(connection: Connection, learner: str) -> Standing:
    """Call it in the transaction that reads the histories."""
    row = connection.execute(_STANDING, {"learner": learner}).one()
    return Standing(
        standby=row.standby,
        newest_live=row.newest_live,
        streams=streams(connection),
        staleness_s=row.staleness_s,
    )
