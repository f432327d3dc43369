"""Faults tried on this machine: ``python deploy/run.py chaos``."""
