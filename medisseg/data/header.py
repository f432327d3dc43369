"""What an image file claims before it is decoded, and how large it may be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medisseg.errors import UserError

LONGEST_SIDE = 16_384
# A 20 KB file can claim any size: 80 million pixels are 240 MB decoded, 8000 x 6000 are 48.
MOST_PIXELS = 80_000_000


class BadFile(UserError):
    """An image or mask that cannot be used; the message names the file and the remedy."""


@dataclass(frozen=True)
class Header:
    """What a file says about itself, before it is decoded.

    Attributes:
        size: (height, width) in pixels as stored.
        kind: Of its format, such as "PNG".
        mode: Pillow's name of its pixels, such as "RGB", "L", "P"; "" where only OpenCV reads it.
        bands: Channels.
        orientation: EXIF orientation, 1 to 8.
        frames: Images in the file.
        deep: Whether a channel has more than 8 bits.
    """

    size: tuple[int, int]
    kind: str
    mode: str
    bands: int
    orientation: int = 1
    frames: int = 1
    deep: bool = False


def check_size(path: str | Path, size: tuple[int, int]) -> None:
    """Refuse a claimed (height, width) that is too large to be decoded.

    Raises:
        BadFile: A side or the area is beyond the limits, or empty.
    """
    height, width = size
    if max(size) > LONGEST_SIDE or height * width > MOST_PIXELS:
        raise BadFile(f"{path} is {width}x{height}; expected at most {most()}; make it smaller")
    if min(size) < 1:
        raise BadFile(f"{path} is {width}x{height}; expected at least one pixel")


def most() -> str:
    return f"{LONGEST_SIDE} pixels a side and {MOST_PIXELS // 1_000_000} million in all"
