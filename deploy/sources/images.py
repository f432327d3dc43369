"""Images as a video: a folder in natural order, and files that hold several frames.

Animated GIF, WebP and PNG, TIFF of several pages and DICOM cine give all their frames, each for as
long as its file says. Files are read as ``medisseg predict`` reads them.
"""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deploy.sources.decoding import LIMITS, decode, describe, paced
from deploy.sources.dicom import Cine, Fragments
from deploy.sources.source import Arrival, Link, Notes, shown_name
from medisseg.data.header import BadFile, Header, check_size
from medisseg.data.reading import Range, read_header, read_image, value_range
from medisseg.errors import UserError

if TYPE_CHECKING:
    import av

    Shown = tuple[av.VideoFrame | BadFile, float]  # and its seconds

SAMPLED = 50  # files that tell the range of values, for more than 8 bits
STACKS = ("GIF", "WEBP", "PNG", "TIFF")
REDUCED = 254  # tag of TIFF: bit 0 says that a page is a smaller copy of another
GIF_LEAST_S = 0.02  # shorter times are shown for a tenth of a second, as browsers do
# What Pillow lets out of damaged files.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, struct.error)
MOST_FAILURES = 25  # one after another, then a file that claims more frames is left


class ImagesSource:
    """Image files in natural order, as if they were a video.

    Args:
        name: What was given.
        paths: The files.
        fps: Images a second, where a file says nothing of its own.
        realtime: Whether they are shown at that rate, the newest only.
        deinterlace: "auto", "on" or "off", for DICOM that holds a video.
    """

    def __init__(
        self, name: str, paths: list[Path], fps: float, realtime: bool, deinterlace: str
    ) -> None:
        self.notes = Notes(shown_name(name))
        self.name = self.notes.name
        self.live = realtime
        self._paths, self._seconds, self._deinterlace = paths, 1 / fps, deinterlace
        self._scale: Range | None = None

    def frames(self, stop: threading.Event, link: Link) -> Generator[Arrival, None, None]:
        link(True, "")
        yield from paced(self._read(), stop) if self.live else self._read()

    def _read(self) -> Iterator[Arrival]:
        with contextlib.suppress(BadFile):  # of different ranges: each then has its own
            self._scale = value_range(self._paths[:: max(1, len(self._paths) // SAMPLED)])
        moment = 0.0
        for path in self._paths:
            failures = 0
            for picture, seconds in self._frames(path):
                if isinstance(picture, BadFile):
                    yield Arrival(None, moment, f"{path.name}: {picture}")
                else:
                    yield Arrival(picture, moment)
                moment += seconds
                failures = failures + 1 if isinstance(picture, BadFile) else 0
                if failures == MOST_FAILURES:
                    self.notes(f"{path.name}: {failures} frames cannot be read: the rest is left")
                    break

    def _frames(self, path: Path) -> Iterator[Shown]:
        """Yield the frames of a file with their seconds, or what is wrong with one."""
        try:
            header = read_header(path)
            if header.kind == "DICOM":
                yield from self._cine(path, header)
            elif header.frames > 1 and header.kind in STACKS:
                yield from self._pages(path, header)
            else:  # of a camera's double JPEG the first
                first = 0 if header.frames > 1 else None
                yield _picture(read_image(path, self._scale, first)), self._seconds
        except BadFile as error:
            yield error, self._seconds

    def _pages(self, path: Path, header: Header) -> Iterator[Shown]:
        from PIL import Image, ImageOps

        with Image.open(path) as opened:
            file: Any = opened
            # What a viewer shows that knows no animated PNG is not one of its frames.
            for index in range(int(file.info.get("default_image", False)), header.frames):
                try:
                    file.seek(index)
                    if file.format == "TIFF" and file.tag_v2.get(REDUCED, 0) & 1:
                        continue
                    check_size(path, (file.height, file.width))
                    file.load()
                    if header.deep:
                        pixels = read_image(path, self._scale, index)
                    else:
                        pixels = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
                    yield _picture(pixels), _duration(file, self._seconds)
                except BadFile as error:
                    yield error, self._seconds
                except BROKEN as error:
                    yield BadFile(f"frame {index} cannot be read ({error})"), self._seconds

    def _cine(self, path: Path, header: Header) -> Iterator[Shown]:
        cine = Cine(path, self._seconds)
        if cine.video is not None:
            for picture in self._video(path, cine.video):
                yield picture, next(cine.seconds)
            return
        for index in range(header.frames):
            try:
                yield _picture(read_image(path, self._scale, index)), next(cine.seconds)
            except BadFile as error:
                yield error, next(cine.seconds)

    def _video(self, path: Path, start: int) -> Iterator[av.VideoFrame | BadFile]:
        import av

        with contextlib.closing(Fragments(path, start)) as reader:
            try:
                with av.open(reader, "r", options=LIMITS) as container:
                    for arrival in decode(container, self.notes, deinterlace=self._deinterlace):
                        yield arrival.picture or BadFile(arrival.error)
            except (OSError, av.FFmpegError, UserError) as error:
                yield BadFile(f"the video in it cannot be read ({describe(error)})")


def _picture(pixels: npt.NDArray[np.uint8]) -> av.VideoFrame:
    import av

    return av.VideoFrame.from_ndarray(pixels, "rgb24")


def _duration(image: Any, otherwise: float) -> float:
    """Return how long a frame is shown, in seconds."""
    found = float(image.info.get("duration") or 0) / 1e3
    if image.format == "GIF" and found < GIF_LEAST_S:
        return 0.1
    return found or otherwise
