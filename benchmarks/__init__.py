"""Measurements, each beside an alternative in the same run."""
