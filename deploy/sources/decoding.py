"""From packets to frames, with what is wrong with them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.sources.fields import AUTO, Deinterlacer
from deploy.sources.source import SQUARE, Arrival
from medisseg.errors import UserError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)
JUMP_S = 5.0  # a step of a source's clock that is no step of time
MOST_PIXELS = 64_000_000  # 8K has 33 million; a file can claim any number
TOO_LARGE = "too large"
# Formats without time stamps: FFmpeg makes them up at 25 frames a second.
UNTIMED = ("mpjpeg", "mjpeg", "h264", "hevc", "m4v", "mpegvideo", "jpeg_pipe", "png_pipe")
# What libswscale converts (ISO/IEC 23091-2): BT.709, none, FCC, BT.601, 240M, BT.2020.
KNOWN_MATRICES = (1, 2, 4, 5, 6, 7, 9, 10)
_said: set[tuple[str, str]] = set()  # what was said about a source, once


def decode(
    container: InputContainer, name: str, live: bool = False, deinterlace: str = AUTO
) -> Iterator[Arrival]:
    """Yield the frames of a container; a packet that cannot be decoded yields its error."""
    stream = choose_track(container, name)
    # Slices, not frames: threads that decode whole frames hold back as many frames as there are.
    stream.codec_context.thread_type = "SLICE"
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    clock = Clock(rate, untimed=live and container.format.name in UNTIMED)
    fields = Deinterlacer(deinterlace)
    packets = container.demux(stream)
    while True:
        packet = _next_packet(packets, name, live, clock)
        pictures, error = _decoded(stream, packet)
        if error:
            yield Arrival(None, clock.skipped(), error, clock.part)
        last = packet is None or packet.size == 0  # the packet that flushes the decoder is empty
        for picture in fields(pictures, last):
            fault = _fault(picture, name)
            moment = clock(picture.time)
            if fault.startswith(TOO_LARGE):
                yield Arrival(None, moment, fault, clock.part)
                continue
            aspect = stream.codec_context.sample_aspect_ratio or stream.sample_aspect_ratio
            yield Arrival(picture, moment, fault, clock.part, aspect or SQUARE)
        if last:
            return


def _next_packet(
    packets: Iterator[Packet[VideoStream]], name: str, live: bool, clock: Clock
) -> Packet[VideoStream] | None:
    import av

    try:
        return next(packets, None)
    except av.FFmpegError as error:
        if live:
            raise
        log.warning("%s: broken off after %.1f s: %s", name, max(clock.newest, 0), why(error))
        return None


def _decoded(
    stream: VideoStream, packet: Packet[VideoStream] | None
) -> tuple[list[av.VideoFrame], str]:
    import av

    try:
        return stream.decode(packet), ""
    except av.error.EOFError:
        return [], ""
    except (av.FFmpegError, ValueError) as error:
        return [], f"cannot be decoded: {why(error)}"


def _fault(picture: av.VideoFrame, name: str) -> str:
    """Return what is wrong with a picture; odd colour tags are mended and said once."""
    if picture.width * picture.height > MOST_PIXELS:
        return f"{TOO_LARGE}: {picture.width} x {picture.height} pixels"
    assumed = readable_colors(picture)
    if assumed and (name, assumed) not in _said:
        _said.add((name, assumed))
        log.warning("%s: %s", name, assumed)
    return "corrupt" if picture.is_corrupt else ""


class Clock:
    """The source's time in seconds, from its first frame on, that never jumps.

    A step back, or one forward of more than some seconds, is a break: a new part begins, and time
    goes on by the frame rate. Frames without a time count on by the rate, or, where a live stream
    carries no clock at all, have the time of their arrival.

    Args:
        rate: Frames a second.
        untimed: Whether the frames' times are made up by the demuxer.
    """

    def __init__(self, rate: float, untimed: bool = False) -> None:
        self._period = 1 / rate
        self._untimed = untimed
        self._jump = max(JUMP_S, 3 * self._period)
        self._offset: float | None = None
        self.newest = -self._period
        self.part = 0  # breaks so far

    def __call__(self, moment: float | None) -> float:
        """Return the time of a frame that carries ``moment``."""
        if self._untimed:
            moment = time.monotonic()
        if moment is None:
            return self.skipped()
        if self._offset is None:
            self._offset = moment
        step = moment - self._offset - self.newest
        if not -self._jump < step < self._jump and self.newest >= 0 and not self._untimed:
            self.part += 1
            self._offset = moment - self.newest - self._period
        elif step <= 0:  # broken streams go back a little: count on by the rate
            return self.skipped()
        self.newest = moment - self._offset
        return self.newest

    def skipped(self) -> float:
        """Return the time of a frame that carries none."""
        self.newest += self._period
        return self.newest


def readable_colors(picture: av.VideoFrame) -> str:
    """Give a picture whose colour matrix FFmpeg cannot convert one that it can, in place.

    Returns:
        What is assumed instead of what (BT.709 from 720 lines on, else BT.601); empty: nothing.
    """
    matrix = int(picture.colorspace)
    rgb = picture.format.name.startswith(("gbr", "rgb", "bgr"))
    if matrix in KNOWN_MATRICES or rgb:
        return ""
    high = picture.height >= 720
    picture.colorspace = 1 if high else 6
    return f"colour matrix {matrix} is not known here: read as BT.{709 if high else 601}"


def choose_track(container: InputContainer, name: str) -> VideoStream:
    """Return the video that a player would show: no cover picture; the default one, or the largest.

    Raises:
        UserError: No video, or none that can be decoded here.
    """
    from av.stream import Disposition

    tracks = [track for track in container.streams.video if track.codec_context is not None]
    if not tracks:
        what = "its video codec is not known here" if container.streams.video else "no video in it"
        raise UserError(f"{name}: {what}")
    moving = [
        track for track in tracks if not track.disposition & Disposition.attached_pic
    ] or tracks
    chosen = max(
        moving,
        key=lambda track: (
            bool(track.disposition & Disposition.default),
            (track.width or 0) * (track.height or 0),
        ),
    )
    text = f"{len(container.streams.video)} pictures or videos in it: track {chosen.index} is read"
    if len(container.streams.video) > 1 and (name, text) not in _said:
        _said.add((name, text))
        log.warning("%s: %s (%d x %d)", name, text, chosen.width, chosen.height)
    return chosen


def paced(arrivals: Iterator[Arrival], stop: threading.Event) -> Iterator[Arrival]:
    """Let every frame out at its own time."""
    start = time.monotonic()
    for arrival in arrivals:
        if stop.wait(max(0.0, start + arrival.time - time.monotonic())):
            return
        yield arrival


def hardware_decoder() -> Any:
    """Return FFmpeg's CUDA decoder where there is a GPU (it falls back to software), else None."""
    if not Path("/dev/nvidiactl").exists():  # asking PyTorch would load it, which takes seconds
        return None
    from av.codec.hwaccel import HWAccel

    return HWAccel(device_type="cuda", allow_software_fallback=True)


def why(error: BaseException) -> str:
    """Return an error in words."""
    import av

    if isinstance(error, av.error.ExitError):  # our own timeout, through the interrupt callback
        return "timed out"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
