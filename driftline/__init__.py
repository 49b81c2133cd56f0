"""The command line and what stands around the processes: local stack, simulator, replay, audit."""
