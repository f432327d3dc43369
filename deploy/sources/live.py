"""Sources that reconnect: cameras and network streams.

They reconnect with growing, jittered delays for as long as they are wanted; while lost they yield
nothing. Every read from a network has a timeout, so that a host that swallows packets cannot hold
a thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import random
import threading
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from deploy.sources.decoding import LIMITS, choose_track, decode, describe, paced
from deploy.sources.source import Arrival, Link, Notes
from deploy.sources.stillness import Stillness
from medisseg.errors import UserError
from medisseg.text import without_password

if TYPE_CHECKING:
    from av.container import InputContainer

FIRST_DELAY_S, LONGEST_DELAY_S = 0.25, 8.0


class LiveSource:
    """Reconnects until the run stops; a subclass implements one connection."""

    live = True
    finished = False  # a subclass says so when what ended had an end of its own

    def __init__(self, name: str) -> None:
        self.name = name
        self.notes = Notes(name)

    def connect(self, stop: threading.Event, link: Link) -> Iterator[Arrival]:
        """Yield the arrivals of one connection; return or raise when it is lost."""
        raise NotImplementedError

    def frames(self, stop: threading.Event, link: Link) -> Generator[Arrival, None, None]:
        import av

        start, connection, base, tries = time.monotonic(), 0, 0, 0
        while not stop.is_set():
            began: float | None = None
            reason = "the stream ended"
            try:
                for arrival in self.connect(stop, link):
                    if began is None:
                        # A new connection starts its own clock: continue ours.
                        began = time.monotonic() - start - arrival.time
                        base = connection
                        tries = 0
                    connection = base + arrival.connection
                    yield dataclasses.replace(
                        arrival, time=began + arrival.time, connection=connection
                    )
            except (OSError, av.FFmpegError, UserError) as error:
                reason = describe(error)
                if not connection and began is None and is_permanent(error):
                    raise UserError(
                        reason if self.name in reason else f"{self.name}: {reason}"
                    ) from error
            if stop.is_set() or self.finished:
                return
            link(False, reason)
            connection += began is not None
            stop.wait(reconnect_delay(tries))
            tries += 1


class NetworkSource(LiveSource):
    """An address that FFmpeg reads: RTSP, RTMP, HTTP, UDP, TCP, RTP."""

    def __init__(self, url: str, timeout_s: float, deinterlace: str) -> None:
        super().__init__(without_password(url))
        self._url, self._timeout_s, self._deinterlace = url, timeout_s, deinterlace

    def connect(self, stop: threading.Event, link: Link) -> Iterator[Arrival]:
        # No "nobuffer": it throws away what was read to find out about the stream, the first key
        # frame with it, and the picture would come one key frame later.
        options = {**LIMITS, "analyzeduration": "1000000"}
        if self._url.lower().startswith("rtsp"):
            options["rtsp_transport"] = "tcp"
        # PyAV ends every blocking call through FFmpeg's interrupt callback after these times.
        timeout = (max(self._timeout_s, 5.0), self._timeout_s)
        with self._opened(options, timeout) as container:
            choose_track(container, self.notes)
            link(True, "")
            # A recording behind http:// knows its length and comes as fast as it can; a stream
            # that ends was cut off.
            recording = bool(container.duration) and self._url.lower().startswith("http")
            arrivals = decode(container, self.notes, True, self._deinterlace)
            for arrival in paced(arrivals, stop) if recording else arrivals:
                if stop.is_set():
                    return
                yield arrival
            self.finished = recording

    def _opened(self, options: dict[str, str], timeout: tuple[float, float]) -> InputContainer:
        import av

        try:
            return av.open(self._url, options=options, timeout=timeout, metadata_errors="replace")
        except av.error.InvalidDataError as error:
            if not self._url.lower().startswith("http"):
                raise  # a lost packet, perhaps
            raise UserError(f"{self.name} sends no video that FFmpeg knows") from error
        except av.FFmpegError as error:
            # 461: a server that speaks RTSP over UDP only.
            if "rtsp_transport" not in options or error.errno != errno.EPROTONOSUPPORT:
                raise
            self.notes("the server speaks RTSP over UDP only")
            options = {**options, "rtsp_transport": "udp"}
            return av.open(self._url, options=options, timeout=timeout, metadata_errors="replace")


def is_permanent(error: BaseException) -> bool:
    """Whether no retry can mend an error: the address, the password or the codec is wrong."""
    from av import error as av

    kinds = (
        av.ProtocolNotFoundError,
        av.DecoderNotFoundError,
        av.HTTPBadRequestError,
        av.HTTPUnauthorizedError,
        av.HTTPForbiddenError,
        av.HTTPNotFoundError,
        UserError,
    )
    return isinstance(error, kinds)


class CameraSource(LiveSource):
    """A camera or capture card of this machine.

    Args:
        device: Its number, or its path such as /dev/video0.
        size: (height, width) to ask it for.
        fps: Frames a second to ask it for.
        pixels: Four characters (FOURCC) to ask it for: MJPG, YUYV, ...
    """

    def __init__(
        self,
        device: int | str,
        size: tuple[int, int] | None = None,
        fps: float | None = None,
        pixels: str | None = None,
    ) -> None:
        super().__init__(f"camera {device}" if isinstance(device, int) else device)
        self._device, self._size, self._fps, self._pixels = device, size, fps, pixels

    def connect(self, stop: threading.Event, link: Link) -> Iterator[Arrival]:
        import av
        import cv2

        camera = cv2.VideoCapture(self._device)
        with contextlib.closing(_Released(camera)):
            if not camera.isOpened():
                raise ConnectionError("no camera there, or another program holds it")
            self._ask(camera)
            link(True, "")
            start, stillness = time.monotonic(), Stillness()
            while not stop.is_set():
                read: bool
                pixels: Any
                read, pixels = camera.read()
                if not read:
                    raise ConnectionError("the camera gives no frames")
                picture = av.VideoFrame.from_ndarray(pixels, "bgr24")
                moment = time.monotonic() - start
                yield Arrival(picture, moment, still=stillness(picture))

    def _ask(self, camera: Any) -> None:
        """Set what was asked for; what the camera makes of it is said."""
        import cv2

        camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        if self._pixels:  # first: the sizes and rates that there are depend on it
            camera.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*self._pixels))
        if self._size:
            camera.set(cv2.CAP_PROP_FRAME_HEIGHT, self._size[0])
            camera.set(cv2.CAP_PROP_FRAME_WIDTH, self._size[1])
        if self._fps:
            camera.set(cv2.CAP_PROP_FPS, self._fps)
        if self._size:
            given = tuple(
                round(camera.get(side))
                for side in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)
            )
            if given != self._size:
                self.notes(f"asked for {_by(self._size)}, the camera gives {_by(given)}")
        if self._fps and abs(camera.get(cv2.CAP_PROP_FPS) - self._fps) > 0.5:
            given_fps = camera.get(cv2.CAP_PROP_FPS)
            self.notes(f"asked for {self._fps:g} frames a second, the camera says {given_fps:g}")


def _by(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


class _Released:
    def __init__(self, camera: Any) -> None:
        self._camera = camera

    def close(self) -> None:
        self._camera.release()


def reconnect_delay(tries: int) -> float:
    """Return the seconds to wait before try number ``tries``: doubling, jittered, bounded."""
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(tries, 10)) * random.uniform(0.5, 1.0)
