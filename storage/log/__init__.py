"""The event log by stream: what was accepted, how far each stream has been read, what was refused."""
