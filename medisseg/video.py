"""Encode video with PyAV; which options fit is up to the caller."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisseg.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from av import VideoCodecContext
    from av.container import OutputContainer
    from av.video.stream import VideoStream

    Picture = npt.NDArray[np.uint8]


NO_H264 = "this build of PyAV has no H.264 encoder (libx264); pip install --force-reinstall av"


def h264_encoder(size: tuple[int, int], rate: int | Fraction, **options: str) -> VideoCodecContext:
    """Return an encoder on one thread, for packets without a file.

    Arguments and errors are those of :func:`add_h264`.
    """
    import av

    try:
        encoder: VideoCodecContext = av.VideoCodecContext.create("libx264", "w")
    except ValueError as error:
        raise UserError(NO_H264) from error
    encoder.height, encoder.width = size
    encoder.pix_fmt, encoder.options = "yuv420p", options
    encoder.time_base, encoder.thread_count = 1 / Fraction(rate), 1
    return encoder


def add_h264(
    container: OutputContainer, size: tuple[int, int], rate: int | Fraction, **options: str
) -> VideoStream:
    """Add a stream of yuv420p pictures to a file that is written, encoded by libx264.

    Args:
        container: What ``av.open(path, "w")`` returned.
        size: (height, width) in pixels, both even.
        rate: Frames a second.
        **options: Of libx264, such as ``crf="18"``, ``preset="fast"``, ``g="10"`` (frames between
            key frames).

    Raises:
        UserError: This build of PyAV has no libx264.
    """
    try:
        stream = container.add_stream("libx264", rate=rate, options=options)
    except ValueError as error:
        raise UserError(NO_H264) from error
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    return stream


def write_video(
    path: Path,
    pictures: Iterable[Picture],
    rate: int = 25,
    moment: Callable[[int], float] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    **options: str,
) -> Path:
    """Encode pictures as a file; its ending names the container.

    Args:
        path: The file to write.
        pictures: uint8 RGB [H, W, 3], all of one size.
        rate: Frames a second.
        moment: From a frame's number to its seconds; None: one every 1 / ``rate``.
        codec: FFmpeg's name of the encoder.
        pixels: FFmpeg's name of its pixel format.
        **options: Of the encoder, such as ``crf="16"``.
    """
    import av

    unit = Fraction(1, 1000 * rate)
    with av.open(str(path), "w") as container:
        stream: Any = None
        for number, picture in enumerate(pictures):
            if stream is None:
                stream = container.add_stream(codec, rate=rate, options=options)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = pixels
                stream.codec_context.time_base = unit
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            seconds = moment(number) if moment else number / rate
            frame.pts, frame.time_base = round(seconds / unit), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
