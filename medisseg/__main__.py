"""``python -m medisseg``."""

from medisseg.cli import entry

entry()
