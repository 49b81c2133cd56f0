"""`driftline verify`: proves from topics and tables, by code of its own, that each record counted once."""
