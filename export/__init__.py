"""Engines: from a checkpoint to a verified bundle, and back to an engine that answers."""

from medisseg.cli import Command

COMMAND = Command(
    "export.build_engine", "build an engine from a checkpoint, inspect or verify one", "main"
)
