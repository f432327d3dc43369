"""Limits on connections, so that silent ones use up neither viewers nor file descriptors.

A connection has ``HEADERS_S`` to send a whole request and ``ANSWER_S`` to take the answer; a
WebSocket then has the session's own time limits. At most ``MOST_CONNECTIONS`` are open, and at most
a quarter of the files that this process may open: at that limit a new connection takes the place
of the oldest idle one. Without this, 1,100 silent sockets took every descriptor, and the video of a
camera stopped with "Too many open files".
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_S = 5.0
ANSWER_S = 30.0
MOST_CONNECTIONS = 64
BACKLOG = 16  # connections that are accepted at once, before the limit is looked at again


class LimitedProtocol(H11Protocol):
    """uvicorn's HTTP protocol with limits on connections and on their time."""

    since = 0.0  # monotonic seconds: since when it is idle, or its answer is due

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection; at the limit close the oldest idle one, or else refuse."""
        super().connection_made(transport)
        self.since = time.monotonic()
        if len(self.connections) > most_connections():
            oldest = min(filter(_gives_way, self.connections), key=_since, default=self)
            oldest.transport.abort()
            self.connections.discard(oldest)
        self.loop.call_later(HEADERS_S, self._check)

    def handle_websocket_upgrade(self, event: Any) -> None:
        """Hand over to the WebSocket and cancel the time limit of the request."""
        super().handle_websocket_upgrade(event)
        self.since = float("inf")

    def on_response_complete(self) -> None:
        """Start the time limit of the next request."""
        self.since = time.monotonic()
        super().on_response_complete()

    @property
    def answering(self) -> bool:
        """Whether a request has come whole and its answer is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    def _check(self) -> None:
        if self.transport.is_closing() or self.since == float("inf"):
            return
        allowed = ANSWER_S if self.answering else HEADERS_S
        if time.monotonic() - self.since >= allowed:
            self.transport.abort()
        else:
            self.loop.call_later(HEADERS_S, self._check)


def _gives_way(one: object) -> bool:
    """Whether a connection waits for a request, or is a WebSocket that was told to go."""
    if isinstance(one, LimitedProtocol):
        return not one.answering
    return getattr(one, "close_timer", None) is not None


def _since(one: object) -> float:
    return one.since if isinstance(one, LimitedProtocol) else 0.0


def most_connections() -> int:
    """Return how many connections may be open: most files are kept for the video."""
    try:
        import resource
    except ImportError:  # Windows
        return MOST_CONNECTIONS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(MOST_CONNECTIONS, max(4, files // 4)) if files > 0 else MOST_CONNECTIONS
