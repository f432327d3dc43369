"""Where frames come from. A source yields what really arrived, and never anything else.

A finished source (file, folder, standard input) is read to its end and every frame is kept; a live
one (``deploy.sources.live``) comes and goes.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import av

IMAGES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp")
SQUARE = Fraction(1)
Link = Callable[[bool, str], None]  # (connected, reason): how a source reports a connect or a loss


@dataclass(frozen=True)
class Arrival:
    """One frame as it came.

    Attributes:
        picture: The decoded frame; None where a packet could not be decoded.
        time: The source's own time in seconds, from its first frame on.
        error: Why there is no picture, or what is wrong with it.
        connection: Number of the connection that it came over, from 0; a break of the source's
            clock counts as a new one.
        aspect: Width of a pixel over its height.
    """

    picture: av.VideoFrame | None
    time: float
    error: str = ""
    connection: int = 0
    aspect: Fraction = SQUARE


class Source(Protocol):
    """What the pipeline reads from.

    Attributes:
        name: For people: no passwords.
        live: Whether frames come at their own pace, so that old ones lose their worth.
    """

    name: str
    live: bool

    def frames(self, stop: threading.Event, link: Link) -> Generator[Arrival, None, None]:
        """Yield frames until the end or ``stop``; call ``link`` at every connect and loss."""


def is_image(path: Path) -> bool:
    """Whether a file's name is an image's, and not what a system hides ("._1.jpg" of macOS)."""
    return path.suffix.lower() in IMAGES and not path.name.startswith(".")


def natural_order(paths: list[Path]) -> list[Path]:
    """Sort by the numbers in the names: 2.png before 10.png."""

    def key(path: Path) -> list[tuple[int, int, str]]:
        parts = re.findall(r"\d+|\D+", path.name)
        return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]

    return sorted(paths, key=key)
