"""Per-user sequences: appended batch by batch, read as of a cursor, compacted and trimmed."""
