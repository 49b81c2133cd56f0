"""How old what Postgres holds is."""

from __future__ import annotations

from sqlalchemy import Connection, text

from storage.log.offsets import Cursor

_NEWEST = text("""
    SELECT extract(epoch FROM clock_timestamp() - max(received_at))::float8
    FROM log_segment s JOIN unnest(CAST(:streams AS int[]), CAST(:offsets AS bigint[])) AS c(stream, next_offset)
         ON c.stream = s.stream_id AND s.next_offset = c.next_offset
""")


def staleness_s(connection: Connection, cursor: Cursor) -> float | None:
    """Seconds since the newest log segment below the cursor arrived; None = nothing has.

    The cursor must lie on segment ends, as a watermark does.
    """
    age: float | None = connection.scalar(_NEWEST, {"streams": list(cursor), "offsets": list(cursor.values())})
    return age
