"""Engines: from a checkpoint to a verified bundle, and back to an engine that answers."""
