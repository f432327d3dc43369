"""Sources without an end known in advance: standard input, named pipes, a growing file.

No read waits longer than a moment for the end of the run.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from deploy.options import Options
from deploy.sources.decoding import LIMITS, decode, describe, paced
from deploy.sources.source import Arrival, Link, Notes, shown_name
from medisseg.errors import UserError

WAIT_S = 0.1
OPTIONS = {**LIMITS, "analyzeduration": "1000000"}  # what is written now is shown soon


class Reader(Protocol):
    """A file-like object for FFmpeg; an empty answer is the end."""

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes."""

    def close(self) -> None:
        """Let go of the file."""


class RawSource:
    """Frames of known size and format from a pipe."""

    def __init__(self, options: Options, pipe: IO[bytes] | None = None) -> None:
        size = options.size("input_size")
        if size is None:
            raise UserError("standard input needs --input-size HxW, for example 480x640")
        if options.input_format in ("yuv420p", "nv12") and (size[0] % 2 or size[1] % 2):
            raise UserError(f"--input-size {options.input_size}: {options.input_format} is even")
        self.notes = Notes("standard input")
        self.name = self.notes.name
        self.live = options.realtime
        self._size, self._format = size, options.input_format
        self._fps, self._pipe = options.input_fps, pipe

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
        with contextlib.closing(self._pipe or Pipe(os.dup(sys.stdin.fileno()), stop)) as pipe:
            while (data := _exactly(pipe, length)) and not stop.is_set():
                moment = index / self._fps
                if len(data) < length:
                    yield Arrival(None, moment, f"the last frame has {len(data)} bytes only")
                    return
                pixels = np.frombuffer(data, np.uint8).reshape(shape)
                yield Arrival(av.VideoFrame.from_ndarray(pixels, self._format), moment)
                index += 1


def _exactly(pipe: IO[bytes] | Reader, count: int) -> bytes:
    """Return ``count`` bytes, fewer at the end."""
    data = bytearray()
    while len(data) < count and (more := pipe.read(count - len(data))):
        data += more
    return bytes(data)


class PipeSource:
    """A named pipe or a shell's <(...): opened once, read to its end."""

    def __init__(self, path: Path, realtime: bool, deinterlace: str) -> None:
        self.notes = Notes(shown_name(path))
        self.name = self.notes.name
        self.live = realtime
        self._path, self._deinterlace = path, deinterlace

    def frames(self, stop: threading.Event, link: Link) -> Generator[Arrival, None, None]:
        # Without O_NONBLOCK opening waits for a writer, and nothing could end that wait.
        reader = Pipe(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK), stop)
        arrivals = _decoded(reader, self.notes, stop, link, self._deinterlace)
        yield from paced(arrivals, stop) if self.live else arrivals


class Pipe:
    """Reads a pipe; a pipe that no writer has opened yet is not at its end."""

    def __init__(self, descriptor: int, stop: threading.Event) -> None:
        self._file, self._stop = descriptor, stop
        self._began = not _is_pipe(descriptor)

    def read(self, size: int) -> bytes:
        """Return what is there, at most ``size`` bytes; wait for it."""
        while not self._stop.is_set():
            ready, _, _ = select.select([self._file], [], [], WAIT_S)
            if not ready:
                continue
            with contextlib.suppress(BlockingIOError):
                data = os.read(self._file, size)
                if data or self._began:
                    self._began = True
                    return data
                self._stop.wait(WAIT_S)
        return b""

    def close(self) -> None:
        """Let go of the pipe: its writer is told."""
        os.close(self._file)


class FollowSource:
    """A file that another program still writes: read to its end, and on as it grows."""

    def __init__(self, path: Path, realtime: bool, deinterlace: str, timeout_s: float) -> None:
        self.notes = Notes(shown_name(path))
        self.name = self.notes.name
        self.live = realtime
        self._path, self._deinterlace, self._timeout_s = path, deinterlace, timeout_s
        if _index_is_last(path):
            raise UserError(
                f"{self.name}: an MP4 with its index at the end can be read when it is finished; "
                "let its recorder write MPEG-TS, Matroska or fragmented MP4"
            )

    def frames(self, stop: threading.Event, link: Link) -> Generator[Arrival, None, None]:
        reader = Growing(self._path, stop, link, self._timeout_s)
        # Never paced: what is there already is behind, what comes has the recorder's pace.
        yield from _decoded(reader, self.notes, stop, link, self._deinterlace)


class Growing:
    """Reads a file and waits where it ends."""

    def __init__(self, path: Path, stop: threading.Event, link: Link, timeout_s: float) -> None:
        self._file = path.open("rb")
        self._stop, self._link, self._timeout_s = stop, link, timeout_s

    def read(self, size: int) -> bytes:
        """Return what is there, at most ``size`` bytes; wait until it grows."""
        since, lost = time.monotonic(), False
        while not self._stop.is_set():
            if data := self._file.read(size):
                if lost:
                    self._link(True, "")
                return data
            if not lost and time.monotonic() - since > self._timeout_s:
                lost = True
                self._link(False, f"the file has not grown for {self._timeout_s:g} s")
            self._stop.wait(WAIT_S)
        return b""

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _decoded(
    reader: Reader, notes: Notes, stop: threading.Event, link: Link, deinterlace: str
) -> Iterator[Arrival]:
    import av

    with contextlib.closing(reader):
        try:
            container = av.open(reader, "r", options=OPTIONS, metadata_errors="replace")
        except (OSError, av.FFmpegError) as error:
            if stop.is_set():
                return
            said = describe(error)
            raise UserError(f"{notes.name} cannot be read as a video ({said})") from error
        with container:
            link(True, "")
            for arrival in decode(container, notes, deinterlace=deinterlace):
                if stop.is_set():
                    return  # a read that the stop cut short ends in half a picture
                yield arrival


def _is_pipe(descriptor: int) -> bool:
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode)


def _index_is_last(path: Path) -> bool:
    """Whether a file is an MP4 whose pictures come before the index that explains them."""
    with path.open("rb") as file:
        for _ in range(16):
            head = file.read(16)
            if len(head) < 8 or head[4:8] in (b"moov", b"moof"):
                return False
            if head[4:8] == b"mdat":
                return True
            if not head[4:8].isalnum():
                return False
            size = int.from_bytes(head[:4], "big")
            file.seek(max(size, 8) - len(head), 1)
    return False
