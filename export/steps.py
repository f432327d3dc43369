"""Says what a build does and how long each step took."""

from __future__ import annotations

import time
from typing import Any


class Steps:
    """Says each step with the time it took, and shows bars on a terminal."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._last = time.perf_counter()

    def __call__(self, text: str) -> None:
        now = time.perf_counter()
        if not self.quiet:
            print(f"{now - self._last:6.1f} s  {text}", flush=True)
        self._last = now

    def track(self, items: Any, text: str) -> Any:
        """Iterate with a bar."""
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        silent = self.quiet or not console.is_terminal
        return track(items, text, console=console, transient=True, disable=silent)

    def task(self) -> Any:
        """Return a bar for a build of several phases, as a context manager."""
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        silent = self.quiet or not console.is_terminal
        return Progress(console=console, transient=True, disable=silent)
