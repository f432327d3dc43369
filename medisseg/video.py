"""Encode video with PyAV; which options fit is up to the caller."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from medisseg.errors import UserError

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream


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
        raise UserError(
            "this build of PyAV has no H.264 encoder (libx264); pip install --force-reinstall av"
        ) from error
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    return stream
