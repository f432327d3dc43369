"""Sources that are read to their end, every frame kept: files, folders, standard input."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from deploy.options import Options
from deploy.sources.decoding import check_video, decode, hardware_decoder, paced, why
from deploy.sources.source import Arrival, Link
from medisseg.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer


class FileSource:
    """A video file: every frame, in order."""

    def __init__(self, path: Path, realtime: bool) -> None:
        self.name = str(path)
        self.live = realtime
        self._path = path
        with self._open() as container:
            check_video(container, self.name)

    def _open(self) -> InputContainer:
        import av

        try:
            # "file:" keeps FFmpeg from reading a colon in a name as a protocol.
            return av.open(f"file:{self._path}", hwaccel=hardware_decoder())
        except (OSError, av.FFmpegError) as error:
            what = "is empty" if _is_empty(self._path) else f"cannot be opened ({why(error)})"
            raise UserError(f"{self.name} {what}; expected a video file") from error

    def frames(self, stop: threading.Event, link: Link) -> Generator[Arrival, None, None]:
        with self._open() as container:
            link(True, "")
            arrivals = decode(container, self.name)
            yield from paced(arrivals, stop) if self.live else arrivals


class FolderSource:
    """Images in natural order, as if they were a video."""

    def __init__(self, name: str, paths: list[Path], fps: float, realtime: bool) -> None:
        self.name = name
        self.live = realtime
        self._paths, self._fps = paths, fps

    def frames(self, stop: threading.Event, link: Link) -> Generator[Arrival, None, None]:
        link(True, "")
        yield from paced(self._read(), stop) if self.live else self._read()

    def _read(self) -> Iterator[Arrival]:
        import av
        from PIL import Image, ImageOps

        for index, path in enumerate(self._paths):
            try:
                with Image.open(path) as image:
                    pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                yield Arrival(None, index / self._fps, f"{path.name}: {error}")
                continue
            yield Arrival(av.VideoFrame.from_ndarray(pixels, "rgb24"), index / self._fps)


class RawSource:
    """Frames of known size and format from a pipe."""

    def __init__(self, options: Options, pipe: IO[bytes] | None = None) -> None:
        size = options.raw_size()
        if size is None:
            raise UserError("standard input needs --input-size HxW, for example 480x640")
        if options.input_format in ("yuv420p", "nv12") and (size[0] % 2 or size[1] % 2):
            raise UserError(f"--input-size {options.input_size}: {options.input_format} is even")
        self.name = "standard input"
        self.live = options.realtime
        self._size, self._format = size, options.input_format
        self._fps, self._pipe = options.input_fps, pipe or sys.stdin.buffer

    def frames(self, stop: threading.Event, link: Link) -> Generator[Arrival, None, None]:
        import av

        height, width = self._size
        shape = {
            "rgb24": (height, width, 3),
            "bgr24": (height, width, 3),
            "gray": (height, width),
        }.get(self._format, (height * 3 // 2, width))
        length, index = int(np.prod(shape)), 0
        link(True, "")
        while not stop.is_set():
            data = self._pipe.read(length)
            if not data:
                return
            if len(data) < length:
                yield Arrival(None, index / self._fps, f"the last frame has {len(data)} bytes only")
                return
            pixels = np.frombuffer(data, np.uint8).reshape(shape)
            yield Arrival(av.VideoFrame.from_ndarray(pixels, self._format), index / self._fps)
            index += 1


def _is_empty(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_size == 0
    return False
