"""Recorded runs: shown again, and compared."""
