"""Prints the steps of a build, with the seconds that each took."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from medisseg.progress import bars

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")


class Steps:
    """Prints each step with the seconds that it took, and shows bars on a terminal.

    Entered as a context, it remembers Ctrl-C: a library that is interrupted in a callback loses
    the exception, and the next step raises it again.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._last = time.perf_counter()
        self._before: Callable[[int, FrameType | None], object] | None = None
        self._stopped = False

    def __enter__(self) -> Steps:
        handler = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(handler):
            self._before = handler
            signal.signal(signal.SIGINT, self._stop)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped = True
        if self._before is not None:
            self._before(number, frame)

    def __call__(self, text: str) -> None:
        if self._stopped:
            raise KeyboardInterrupt
        now = time.perf_counter()
        if not self.quiet:
            print(f"{now - self._last:6.1f} s  {text}", flush=True)
        self._last = now

    def track(self, items: Iterable[Item], text: str) -> Iterator[Item]:
        """Iterate with a bar."""
        with self.task() as shown:
            yield from shown.track(items, description=text)

    def task(self) -> Progress:
        """Return bars for a build of several phases, as a context manager."""
        return bars(self.quiet, transient=True)
