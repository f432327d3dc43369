"""Decoded frames as arrays and back, without a copy where the pixels allow it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import av

    from deploy.recording import Canvas


def to_rgb(picture: av.VideoFrame) -> npt.NDArray[np.uint8]:
    """Return a picture upright as uint8 RGB [H, W, 3], writable; rows may be padded.

    The array is a view of a new buffer: the picture itself may still be on its way to a recorder.
    """
    if picture.format.name == "rgb24":
        pixels: npt.NDArray[Any] = picture.to_ndarray()
    else:
        from av.video.reformatter import ColorRange, VideoReformatter

        # Full range, said aloud: libswscale would carry a limited range over into RGB.
        converted = VideoReformatter().reformat(
            picture, format="rgb24", dst_color_range=ColorRange.JPEG
        )
        plane = converted.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        pixels = rows[:, : 3 * plane.width].reshape(plane.height, plane.width, 3)
    return upright(pixels, picture.rotation)


def upright(pixels: npt.NDArray[np.uint8], rotation: int) -> npt.NDArray[np.uint8]:
    """Turn a picture by a camera's note of how it was held: degrees counter-clockwise."""
    turns = round(rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def to_yuv(picture: av.VideoFrame, canvas: Canvas) -> av.VideoFrame:
    """Return a decoded picture as the encoder takes it: yuv420p, even sizes, upright."""
    even = picture.width % 2 == 0 and picture.height % 2 == 0
    if picture.rotation % 360 or not even or picture.format.name == "rgb24":
        return canvas.to_yuv(to_rgb(picture))
    if picture.format.name not in ("yuv420p", "yuvj420p"):
        from av.video.reformatter import VideoReformatter

        picture = VideoReformatter().reformat(picture, format="yuv420p")
    picture.pict_type = 0  # else x264 copies the source's choice of key frames
    return picture
