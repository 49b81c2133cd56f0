"""`driftline ingest`: Kafka topics into the event log and per-user sequences."""
