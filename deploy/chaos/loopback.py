"""A live source on this machine that can be killed: H.264 in MPEG-TS over HTTP, endless.

For ``medisseg run chaos`` and for tests: no camera, no network beyond 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase

import numpy as np
import numpy.typing as npt

from medisseg.video import add_h264

Picture = npt.NDArray[np.uint8]
FPS = 25
GOP = 10  # frames between key frames: a viewer that comes back sees a picture soon


class LoopbackSource:
    """Serves pictures at 25 a second to whoever connects, until killed.

    Args:
        picture: Returns frame ``i``, uint8 RGB [H, W, 3] of even size; the count runs on over
            :meth:`kill` and :meth:`start`.

    Example:
        >>> source = LoopbackSource(lambda i: np.full((240, 320, 3), i % 256, np.uint8))
        >>> source.start()
        >>> source.url
        'http://127.0.0.1:40123/stream.ts'
        >>> source.kill()
    """

    def __init__(self, picture: Callable[[int], Picture]) -> None:
        self.picture = picture
        self.number = 0
        self.port = 0
        self._dead = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Where it is, also while it is dead."""
        return f"http://127.0.0.1:{self.port}/stream.ts"

    def start(self) -> None:
        """Begin, or begin again on the same port."""
        source, dead = self, threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "video/mp2t")
                self.end_headers()
                import av

                with contextlib.suppress(OSError, av.FFmpegError):  # the viewer left
                    source._send(self.wfile, dead)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._dead = dead
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def kill(self) -> None:
        """Cut off every viewer and refuse new ones."""
        self._dead.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _send(self, file: BufferedIOBase, dead: threading.Event) -> None:
        import av

        first = self.picture(self.number)
        with av.open(file, "w", format="mpegts", options={"flush_packets": "1"}) as container:
            options = {"g": str(GOP), "preset": "ultrafast", "tune": "zerolatency", "threads": "1"}
            stream = add_h264(container, (first.shape[0], first.shape[1]), FPS, **options)
            began, index = time.monotonic(), 0
            while not dead.wait(max(0.0, began + index / FPS - time.monotonic())):
                frame = av.VideoFrame.from_ndarray(self.picture(self.number), "rgb24")
                frame.pts, frame.time_base = index, Fraction(1, FPS)
                container.mux(stream.encode(frame))
                index, self.number = index + 1, self.number + 1
