"""The page's server: a socket bound at once, uvicorn in a thread, everything gone at the end."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn

from deploy.watch.page.app import make_app
from deploy.watch.page.connections import BACKLOG, HEADERS_S, LimitedProtocol
from deploy.watch.page.gate import Address, Gate
from medisseg.errors import UserError

if TYPE_CHECKING:
    from deploy.pipeline.live import Live
    from deploy.watch.page.session import Player

log = logging.getLogger(__name__)
START_S, STOP_S = 10.0, 3.0


@dataclass(frozen=True)
class Served:
    """A page that is being served; ``url`` carries the token where one is demanded."""

    url: str
    port: int
    token: str | None


@contextlib.contextmanager
def serve(
    live: Live,
    address: str,
    token: str | None = None,
    player: Player | None = None,
    names: str | None = None,
) -> Iterator[Served]:
    """Serve the page until the block ends.

    Args:
        live: What to show, and the controls.
        address: "HOST:PORT"; port 0 takes a free one.
        token: What the page demands; off loopback one is made where none is given.
        names: Further host names of the page, with commas between them.
        player: What a recorded run is shown with: position, play, pause.

    Raises:
        UserError: The address cannot be read, is taken, or is not this machine's.
    """
    where = Address.parse(address)
    gate = Gate(where, token, names)
    listener = bind(where)
    gate.port = listener.getsockname()[1]
    gate.look_up_names()
    config = uvicorn.Config(
        make_app(live, gate, player),
        log_config=None,  # its own would close the handlers of the whole process
        log_level="warning",
        access_log=False,  # it would write the token down
        lifespan="off",
        server_header=False,
        ws_per_message_deflate=False,  # pictures are compressed already
        ws_max_size=4096,
        ws_ping_interval=5.0,
        ws_ping_timeout=10.0,
        http=LimitedProtocol,
        backlog=BACKLOG,
        timeout_keep_alive=int(HEADERS_S),
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=_work, args=(server, listener), name="live page", daemon=True)
    thread.start()
    try:
        until = time.monotonic() + START_S
        while not server.started and thread.is_alive() and time.monotonic() < until:
            time.sleep(0.005)
        if not server.started:
            raise UserError(f"the live page could not be started on {address}")
        yield Served(gate.url, gate.port, gate.token)
    finally:
        server.should_exit = True
        thread.join(STOP_S)
        listener.close()


def _work(server: uvicorn.Server, listener: socket.socket) -> None:
    try:
        server.run(sockets=[listener])
    except Exception:  # the page is gone, the video goes on
        log.exception("the live page ended")


def bind(where: Address) -> socket.socket:
    """Return a listening socket.

    Raises:
        UserError: The address is taken or not this machine's.
    """
    try:
        found = socket.getaddrinfo(
            where.host, where.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, place = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"--serve: {where.host} is no address ({error.strerror})") from error
    try:
        if os.name == "posix":  # a port that a run has just left may be used again at once
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        what = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            what = "another program listens there; choose another port"
        shown = where.netloc(where.port) if not where.everywhere else f"port {where.port}"
        raise UserError(f"--serve {shown}: {what}") from error
    return listener
