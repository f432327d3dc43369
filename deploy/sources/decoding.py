"""From packets to frames, with what is wrong with them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.sources.source import Arrival
from medisseg.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer

log = logging.getLogger(__name__)


def decode(container: InputContainer, name: str, live: bool = False) -> Iterator[Arrival]:
    """Yield the frames of a container; a packet that cannot be decoded yields its error."""
    import av

    stream = container.streams.video[0]
    # Slices, not frames: threads that decode whole frames hold back as many frames as there are.
    stream.codec_context.thread_type = "SLICE"
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    first: float | None = None
    newest = -1 / rate
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            if live:
                raise
            log.warning("%s: broken off after %.1f s: %s", name, max(newest, 0), why(error))
            packet = None
        try:
            pictures = stream.decode(packet)
        except av.error.EOFError:
            pictures = []
        except (av.FFmpegError, ValueError) as error:
            pictures = []
            yield Arrival(None, newest + 1 / rate, f"cannot be decoded: {why(error)}")
        for picture in pictures:
            moment = picture.time
            if moment is not None:
                first = moment if first is None else first
                moment -= first
            # Some streams carry no time, broken ones jump back: then count on by the rate.
            newest = moment if moment is not None and moment > newest else newest + 1 / rate
            yield Arrival(picture, newest, "corrupt" if picture.is_corrupt else "")
        if packet is None or packet.size == 0:  # the packet that flushes the decoder is empty
            return


def paced(arrivals: Iterator[Arrival], stop: threading.Event) -> Iterator[Arrival]:
    """Let every frame out at its own time."""
    start = time.monotonic()
    for arrival in arrivals:
        if stop.wait(max(0.0, start + arrival.time - time.monotonic())):
            return
        yield arrival


def check_video(container: InputContainer, name: str) -> None:
    """Raise UserError when a container has no video that can be decoded."""
    if not container.streams.video:
        raise UserError(f"{name} has no video stream")
    if container.streams.video[0].codec_context is None:
        raise UserError(f"{name}: its video codec is not known here")


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
