"""DICOM cine: several frames in one file, or a whole video (MPEG-2, H.264, HEVC) in DICOM's shell.

The rate is the file's: FrameTimeVector, FrameTime, CineRate or RecommendedDisplayFrameRate (PS3.3,
C.7.6.5). Only pixels are read; names and dates of patients stay in the file.
"""

from __future__ import annotations

import bisect
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medisseg.data.header import BadFile

LONGEST_S = 60.0  # of one frame; what a file claims is not believed
VIDEO_SYNTAXES = "1.2.840.10008.1.2.4.10"  # MPEG-2, MPEG-4 and HEVC: .100 to .108
# Encapsulated pixel data (PS3.5, A.4): tag, OB and a length that is not defined; items follow.
PIXELS_HEADER, ITEM_HEADER, ITEM, MOST_PIECES = 12, 8, b"\xfe\xff\x00\xe0", 1_000_000


class Cine:
    """What a DICOM file says about its frames.

    Attributes:
        seconds: For ever, how long each frame is shown.
        video: Where its encapsulated video begins in the file; None where it holds images.

    Args:
        path: The file.
        otherwise: Seconds of a frame of a file that does not say.

    Raises:
        BadFile: Its header cannot be read.
    """

    def __init__(self, path: Path, otherwise: float) -> None:
        import pydicom

        try:
            with path.open("rb") as file:
                data: Any = pydicom.dcmread(file, stop_before_pixels=True)
                pixels = file.tell()
            self.seconds = frame_seconds(data, otherwise)
            syntax = str(data.file_meta.TransferSyntaxUID)
        except Exception as error:  # its parser lets any exception of a damaged file out
            raise BadFile(f"{path} is not a readable DICOM image ({error})") from error
        self.video = pixels if syntax.startswith(VIDEO_SYNTAXES) else None


def frame_seconds(data: Any, otherwise: float) -> Iterator[float]:
    """Yield for ever how long each frame of a data set is shown, in seconds."""
    vector = np.atleast_1d(np.asarray(data.get("FrameTimeVector") or [], np.float64))
    rate = float(data.get("CineRate") or data.get("RecommendedDisplayFrameRate") or 0)
    time = float(data.get("FrameTime") or 0) / 1e3 or (1 / rate if rate > 0 else 0.0)
    steady = time if 0 < time <= LONGEST_S else otherwise
    return _seconds(vector[1:] / 1e3, steady)  # the first is the time before the first frame


def _seconds(steps: Any, steady: float) -> Iterator[float]:
    for step in steps:
        yield float(step) if 0 < step <= LONGEST_S else steady
    while True:
        yield steady


class Fragments:
    """The bytes of encapsulated pixel data as one file, without the headers of its items."""

    def __init__(self, path: Path, start: int) -> None:
        self._file = path.open("rb")
        self._pieces: list[tuple[int, int]] = []  # where each begins, in the whole and in the file
        self._at = self._size = 0
        end = path.stat().st_size
        place = start + PIXELS_HEADER
        table = True  # the first item is one of offsets
        while (length := self._item(place)) is not None:
            place += ITEM_HEADER
            if not table:
                self._pieces.append((self._size, place))
                self._size += min(length, max(0, end - place))
            place, table = place + length, False

    def _item(self, place: int) -> int | None:
        self._file.seek(place)
        head = self._file.read(ITEM_HEADER)
        if head[:4] != ITEM or len(self._pieces) >= MOST_PIECES:
            return None
        return int.from_bytes(head[4:], "little")

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes; none at the end."""
        if self._at >= self._size:
            return b""
        index = bisect.bisect_right(self._pieces, (self._at, math.inf)) - 1
        begins, place = self._pieces[index]
        ends = self._pieces[index + 1][0] if index + 1 < len(self._pieces) else self._size
        self._file.seek(place + self._at - begins)
        data = self._file.read(min(size, ends - self._at))
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place and return it."""
        self._at = offset + {os.SEEK_CUR: self._at, os.SEEK_END: self._size}.get(whence, 0)
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
