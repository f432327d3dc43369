"""Faults tried on this machine: ``medisseg run chaos``."""
