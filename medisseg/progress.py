"""Progress bars on standard error, and nothing where that is no terminal.

Standard output stays clean: a table or JSON may be written there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def bars(quiet: bool = False, transient: bool = False) -> Progress:
    """Return a set of bars, as a context manager: text, bar, count done of all, time left.

    Args:
        quiet: Show nothing on a terminal either.
        transient: Leave nothing behind when it ends.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),  # it may hold a file's name
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        disable=quiet or not console.is_terminal,
    )


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show one bar for ``total`` images; yields a function that is told how many more are done."""
    with bars() as shown:
        task = shown.add_task(what, total=total)
        yield lambda images: shown.advance(task, images)
