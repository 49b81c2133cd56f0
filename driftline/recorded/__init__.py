"""Recorded events in a CSV or Parquet file, as records in the order of the world: by (event time, row).

A record's time is its event's time. Ids become "SOURCE:id". A row that cannot become an event (no user, no
time, an amount that is none) becomes the malformed record it is. Labels come when they became known.

Memory: the file is read in batches where it is sorted by time; else the needed columns are held at once.
"""

from __future__ import annotations

from driftline.recorded.recording import Recording
from driftline.recorded.source import Columns, LateLabel, Reshape, Source

__all__ = ["Columns", "LateLabel", "Recording", "Reshape", "Source"]
