"""Everything on one machine: embedded Postgres and broker, child processes, the file that says where they are."""
