"""Sessions of Postgres: who is addressed, what is set and read back, what each error means."""
