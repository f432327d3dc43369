"""The protocol of sources: a source yields the frames that arrived, and never others.

A finished source (file, folder, standard input) is read to its end and every frame is kept; a live
one (``deploy.sources.live``) comes and goes.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from medisseg.data.reading import IMAGE_SUFFIXES, is_dicom

if TYPE_CHECKING:
    import av

IMAGES = (*IMAGE_SUFFIXES, ".jfif")
SQUARE = Fraction(1)
MOST_NOTES = 20
log = logging.getLogger(__name__)
Link = Callable[[bool, str], None]  # (connected, reason): how a source reports a connect or a loss


@dataclass(frozen=True)
class Arrival:
    """One frame as it arrived.

    Attributes:
        picture: The decoded frame; None where a packet could not be decoded.
        time: The source's own time in seconds, from its first frame on.
        error: Why there is no picture, or what is wrong with it.
        connection: Number of the connection that it came over, from 0; a break of the source's
            clock counts as a new one.
        aspect: Width of a pixel over its height.
        still: Whether a live picture has not changed for some seconds: its camera is frozen.
    """

    picture: av.VideoFrame | None
    time: float
    error: str = ""
    connection: int = 0
    aspect: Fraction = SQUARE
    still: bool = False


class Notes:
    """What was assumed or chosen about a source: logged once, and written into the report.

    Attributes:
        name: The source's.
        texts: All notes so far.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.texts: list[str] = []

    def __call__(self, text: str) -> None:
        """Log a note once, and keep it for the report."""
        if text not in self.texts and len(self.texts) < MOST_NOTES:
            self.texts.append(text)
            log.warning("%s: %s", self.name, text)


class Source(Protocol):
    """A source of frames.

    Attributes:
        name: For people: no passwords.
        live: Whether frames arrive in real time: the newest is kept, older ones are dropped.
    """

    name: str
    live: bool
    notes: Notes

    def frames(self, stop: threading.Event, link: Link) -> Generator[Arrival, None, None]:
        """Yield frames until the end or ``stop``; call ``link`` at every connect and loss."""


def is_image(path: Path) -> bool:
    """Whether a file of a folder is an image, and not what a system hides ("._1.jpg" of macOS)."""
    return not path.name.startswith(".") and holds_image(path)


def holds_image(path: Path) -> bool:
    """Whether a file is an image by its suffix, or DICOM without one."""
    return path.suffix.lower() in IMAGES or (path.suffix == "" and is_dicom(path))


def shown_name(path: str | Path) -> str:
    """Return a path as valid UTF-8; other bytes are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


def natural_order(paths: list[Path]) -> list[Path]:
    """Sort by the numbers in the names: 2.png before 10.png."""

    def key(path: Path) -> list[tuple[int, int, str]]:
        parts = re.findall(r"\d+|\D+", path.name)
        return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]

    return sorted(paths, key=key)
