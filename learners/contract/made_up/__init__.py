"""Seeded streams for conformance tests and benchmarks: nothing here is read from a file, the clock or the network."""
