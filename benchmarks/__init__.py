"""Driftline measured beside what a demanding user would otherwise choose. Nothing imports this folder."""
