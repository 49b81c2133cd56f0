"""Changes of the tables, in order; `storage.migrate` applies them."""
