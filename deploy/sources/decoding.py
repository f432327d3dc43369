"""Decoding of packets to frames; damaged packets become errors of their own frames."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.sources.clock import Clock
from deploy.sources.filters import AUTO, Deinterlacer, ToneMapper
from deploy.sources.source import SQUARE, Arrival, Notes
from deploy.sources.stillness import Stillness
from medisseg.errors import UserError

if TYPE_CHECKING:
    import av
    from av.codec.hwaccel import HWAccel
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

MOST_PIXELS = 40_000_000  # 8192 x 4320 has 35 million; a stream can claim any number
LIMITS = {"max_pixels": str(MOST_PIXELS)}  # decoders refuse more before they allocate it
NO_TIME_STAMPS = 0x80  # AVFMT_NOTIMESTAMPS: FFmpeg makes times up, at 25 frames a second
# What libswscale converts (ISO/IEC 23091-2): BT.709, none, FCC, BT.601, 240M, BT.2020 (not its
# form of constant luminance, 10).
KNOWN_MATRICES = (1, 2, 4, 5, 6, 7, 9)
FLATTEST, TALLEST = Fraction(1, 4), Fraction(4)  # aspects of a pixel; beyond, a tag is wrong


def decode(
    container: InputContainer, notes: Notes, live: bool = False, deinterlace: str = AUTO
) -> Iterator[Arrival]:
    """Yield the frames of a container; a packet that cannot be decoded yields its error."""
    stream = choose_track(container, notes)
    # Slices, not frames: threads that decode whole frames hold back as many frames as there are.
    stream.codec_context.thread_type = "SLICE"
    stream.codec_context.options = LIMITS
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    clock = Clock(rate, by_arrival=live and is_untimed(container))
    fields, tones = Deinterlacer(deinterlace, notes), ToneMapper(notes)
    stillness = Stillness()
    aspects, size = Aspects(stream), (stream.width, stream.height)
    packets = container.demux(stream)
    while True:
        packet = _next_packet(packets, notes, live, clock)
        pictures, error = _decoded(stream, packet)
        if error:
            if size[0] * size[1] > MOST_PIXELS:
                error = f"{size[0]} x {size[1]} pixels; expected at most {MOST_PIXELS:,}"
            yield Arrival(None, clock.skipped(), error, clock.part)
        last = packet is None or packet.size == 0  # the packet that flushes the decoder is empty
        for picture in fields(pictures, last):
            moment, aspect = clock(picture.time), aspects(picture)
            if assumed := readable_colors(picture):
                notes(assumed)
            fault = "corrupt" if picture.is_corrupt else ""
            still = live and stillness(picture)
            yield Arrival(tones(picture), moment, fault, clock.part, aspect, still)
        if last:
            return


def is_untimed(container: InputContainer) -> bool:
    """Whether frames carry no time of their own: multipart JPEG, bare H.264."""
    made_up = int(container.format.flags) & NO_TIME_STAMPS
    return bool(made_up) or container.format.name.endswith("_pipe")


def _next_packet(
    packets: Iterator[Packet[VideoStream]], notes: Notes, live: bool, clock: Clock
) -> Packet[VideoStream] | None:
    import av

    try:
        return next(packets, None)
    except av.FFmpegError as error:
        if live:
            raise
        notes(f"broken off after {max(clock.newest, 0):.1f} s: {describe(error)}")
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
        return [], f"cannot be decoded: {describe(error)}"


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


class Aspects:
    """Pixel aspect ratios (width over height): the container's, until a frame has another."""

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        self._first = stream.codec_context.sample_aspect_ratio
        self._container = stream.sample_aspect_ratio

    def __call__(self, picture: av.VideoFrame) -> Fraction:
        """Return a frame's pixel aspect ratio after rotation to upright."""
        coded = self._stream.codec_context.sample_aspect_ratio
        aspect = (coded if coded != self._first else self._container or coded) or SQUARE
        if not FLATTEST <= aspect <= TALLEST:
            return SQUARE
        return 1 / aspect if round(picture.rotation / 90) % 2 else aspect


def choose_track(container: InputContainer, notes: Notes) -> VideoStream:
    """Return the video that a player would show: no cover picture; the default one, or the largest.

    Raises:
        UserError: No video, or none that can be decoded here.
    """
    from av.stream import Disposition

    tracks = [track for track in container.streams.video if track.codec_context is not None]
    if not tracks:
        what = "its video codec is not known here" if container.streams.video else "no video in it"
        raise UserError(f"{notes.name}: {what}")
    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    moving = [track for track in tracks if not track.disposition & covers] or tracks
    chosen = max(
        moving,
        key=lambda track: (
            bool(track.disposition & Disposition.default),
            (track.width or 0) * (track.height or 0),
        ),
    )
    if len(container.streams.video) > 1:
        notes(
            f"{len(container.streams.video)} videos or pictures in it: track {chosen.index} is "
            f"read ({chosen.width} x {chosen.height})"
        )
    return chosen


def paced(arrivals: Iterator[Arrival], stop: threading.Event) -> Iterator[Arrival]:
    """Yield each frame at its own time, in real time."""
    start = time.monotonic()
    for arrival in arrivals:
        if stop.wait(max(0.0, start + arrival.time - time.monotonic())):
            return
        yield arrival


def hardware_decoder() -> HWAccel | None:
    """Return FFmpeg's CUDA decoder where there is a GPU (it falls back to software), else None."""
    if not Path("/dev/nvidiactl").exists():  # asking PyTorch would load it, which takes seconds
        return None
    from av.codec.hwaccel import HWAccel

    return HWAccel(device_type="cuda", allow_software_fallback=True)


def describe(error: BaseException) -> str:
    """Return an error as a short text for people."""
    import av

    if isinstance(error, av.error.ExitError):  # our own timeout, through the interrupt callback
        return "timed out"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
