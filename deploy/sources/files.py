"""Sources that are read to their end, every frame kept: files, folders, standard input."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from deploy.options import Options
from deploy.sources.decoding import (
    MOST_PIXELS,
    TOO_LARGE,
    choose_track,
    decode,
    hardware_decoder,
    paced,
    why,
)
from deploy.sources.fields import AUTO
from deploy.sources.source import Arrival, Link
from medisseg.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer


class FileSource:
    """A video file: every frame, in order."""

    def __init__(self, path: Path, realtime: bool, deinterlace: str = AUTO) -> None:
        self.name = shown_name(path)
        self.live = realtime
        self._path, self._deinterlace = path, deinterlace
        with self._open() as container:
            choose_track(container, self.name)

    def _open(self) -> InputContainer:
        import av

        try:
            # "file:" keeps FFmpeg from reading a colon in a name as a protocol.
            return av.open(
                f"file:{self._path}", hwaccel=hardware_decoder(), metadata_errors="replace"
            )
        except (OSError, av.FFmpegError) as error:
            what = "is empty" if _is_empty(self._path) else f"cannot be opened ({why(error)})"
            raise UserError(f"{self.name} {what}; expected a video file") from error

    def frames(self, stop: threading.Event, link: Link) -> Generator[Arrival, None, None]:
        with self._open() as container:
            link(True, "")
            arrivals = decode(container, self.name, deinterlace=self._deinterlace)
            yield from paced(arrivals, stop) if self.live else arrivals


class FolderSource:
    """Images in natural order, as if they were a video."""

    def __init__(self, name: str, paths: list[Path], fps: float, realtime: bool) -> None:
        self.name = shown_name(name)
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
                    if image.width * image.height > MOST_PIXELS:
                        raise ValueError(f"{TOO_LARGE}: {image.width} x {image.height} pixels")
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


class PipeSource:
    """A named pipe or a shell's <(...): opened once, read to its end."""

    def __init__(self, path: Path, realtime: bool, deinterlace: str = AUTO) -> None:
        self.name = shown_name(path)
        self.live = realtime
        self._path, self._deinterlace = path, deinterlace

    def frames(self, stop: threading.Event, link: Link) -> Generator[Arrival, None, None]:
        import av

        with contextlib.closing(_Pipe(self._path, stop)) as pipe:
            try:
                container = av.open(pipe, "r", metadata_errors="replace")
            except (OSError, av.FFmpegError) as error:
                if stop.is_set():
                    return
                raise UserError(f"{self.name} cannot be read as a video ({why(error)})") from error
            with container:
                link(True, "")
                arrivals = decode(container, self.name, deinterlace=self._deinterlace)
                yield from paced(arrivals, stop) if self.live else arrivals


class _Pipe:
    """Reads a pipe without ever waiting longer than a moment for a stop."""

    def __init__(self, path: Path, stop: threading.Event) -> None:
        self._stop = stop
        # Without O_NONBLOCK opening waits for a writer, and nothing could end that wait.
        self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._began = False  # whether a writer came: before, a pipe without one is no end

    def read(self, size: int) -> bytes:
        while not self._stop.is_set():
            ready, _, _ = select.select([self._file], [], [], 0.2)
            try:
                data = os.read(self._file, size) if ready else b""
            except BlockingIOError:
                continue
            if data:
                self._began = True
                return data
            if ready and self._began:
                return b""
            if ready:  # no writer yet
                self._stop.wait(0.05)
        return b""

    def close(self) -> None:
        os.close(self._file)


def shown_name(path: str | Path) -> str:
    """Return a name that every file and terminal takes: bytes that are no UTF-8 are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


def _is_empty(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_size == 0
    return False
