"""The processes along the stream, one file each: ingest, train."""
