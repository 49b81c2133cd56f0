"""`driftline export`: snapshots as bundles that answer by themselves."""
