"""Tests: unit (no servers), integration (real servers), contract, reference, e2e, rules (each rule switched off)."""
