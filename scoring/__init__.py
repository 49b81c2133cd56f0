"""From snapshots to answers: `score` serves, `export` writes bundles."""
