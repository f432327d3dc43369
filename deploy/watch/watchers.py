"""Who watches a run: the terminal, the live page, a window, a file for Prometheus.

None of them can hurt it: a closed terminal, a missing display or a full disk ends the watcher.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from typing import TYPE_CHECKING

from deploy.options import Options
from deploy.pipeline.live import Live
from deploy.status import accounts
from medisseg.errors import UserError
from medisseg.files import replacing
from medisseg.text import console

if TYPE_CHECKING:
    from rich.live import Live as Lines

    from deploy.watch.window import Window

log = logging.getLogger(__name__)
TICK_S = 0.1
METRICS_EVERY_S = 1.0


class Watchers:
    """Opened around a run; :meth:`tick` is called by the main thread again and again."""

    def __init__(self, live: Live, options: Options) -> None:
        self._live, self._options = live, options
        self._stack = contextlib.ExitStack()
        self._window: Window | None = None
        self._terminal: Lines | None = None
        self._metrics_at = 0.0

    def __enter__(self) -> Watchers:
        with contextlib.ExitStack() as stack:
            self._serve(stack)
            self._window = self._open_window(stack)
            self._terminal = self._open_terminal(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._write_metrics()
        with contextlib.suppress(OSError):  # the terminal is gone
            self._stack.close()

    def tick(self) -> bool:
        """Show what is new, wait a moment; return False when the window was closed."""
        if self._terminal is not None:
            try:
                self._terminal.update(status_lines(self._live))
            except OSError:
                self._terminal = None
        if time.monotonic() - self._metrics_at > METRICS_EVERY_S:
            self._write_metrics()
        if self._window is not None:
            try:
                return bool(self._window.tick(TICK_S))
            except Exception as error:  # Tk's own kind: the display is gone, a picture is too large
                log.warning("the window is gone: %s", error)
                self._window = None
        time.sleep(TICK_S)
        return True

    def _serve(self, stack: contextlib.ExitStack) -> None:
        if self._options.serve is None:
            return
        from deploy.watch.page import serve

        token, names = self._options.token, self._options.host_name
        page = stack.enter_context(serve(self._live, self._options.serve, token, names=names))
        print(f"live page: {page.url}", file=sys.stderr)

    def _open_window(self, stack: contextlib.ExitStack) -> Window | None:
        wanted = self._options.window
        if wanted == "off" or (wanted == "auto" and not has_display()):
            return None
        from deploy.watch.window import Window

        try:
            return stack.enter_context(contextlib.closing(Window(self._live)))
        except RuntimeError as error:
            if wanted == "on":
                raise UserError(f"--window on: {error}; use --serve 127.0.0.1:8080") from error
            log.warning("no window: %s", error)
            return None

    def _open_terminal(self, stack: contextlib.ExitStack) -> Lines | None:
        if not sys.stderr.isatty():
            return None
        from rich.live import Live as Lines

        return stack.enter_context(
            Lines("", console=console(stderr=True), refresh_per_second=4, transient=True)
        )

    def _write_metrics(self) -> None:
        self._metrics_at = time.monotonic()
        if self._options.metrics is None:
            return
        try:
            with replacing(self._options.metrics) as tmp_path:
                tmp_path.write_bytes(self._live.metrics())
                tmp_path.chmod(0o644)  # for another user's collector, whatever the umask
        except (OSError, UserError) as error:
            log.error("metrics: %s", error)


def status_lines(live: Live) -> str:
    """Return one line a stream: state, accounts, latency."""
    lines = []
    for stream in range(live.streams):
        status = live.status(stream)
        if status.frames:
            alarms = f"   {'; '.join(status.alarms)}" if status.alarms else ""
            lines.append(f"{status.state:8s} {accounts(status)}   {status.source}{alarms}")
    return "\n".join(lines)


def has_display() -> bool:
    """Return whether a window could open."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
