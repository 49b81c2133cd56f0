"""`driftline maintain`: compaction, retention and collection of snapshots."""
