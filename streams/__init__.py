"""The processes along the stream, a folder each: ingest, train, drift, maintain."""
