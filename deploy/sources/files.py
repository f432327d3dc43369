"""Video files: one, or those of a folder one after another. Every frame is kept."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.sources.decoding import LIMITS, choose_track, decode, describe, hardware_decoder, paced
from deploy.sources.source import Arrival, Link, Notes, shown_name
from medisseg.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer

VIDEOS = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg",
    ".vob", ".wmv", ".asf", ".flv", ".mxf", ".dv", ".3gp", ".ogv",
)  # fmt: skip
BETWEEN_S = 0.04  # from the last frame of a file to the first of the next


class FileSource:
    """A video file: every frame, in order."""

    def __init__(self, path: Path, realtime: bool, deinterlace: str) -> None:
        self.notes = Notes(shown_name(path))
        self.name = self.notes.name
        self.live = realtime
        self._path, self._deinterlace = path, deinterlace
        with self._open() as container:
            choose_track(container, self.notes)

    def _open(self) -> InputContainer:
        import av

        try:
            # "file:" keeps FFmpeg from reading a colon in a name as a protocol.
            return av.open(
                f"file:{self._path}",
                options=LIMITS,
                hwaccel=hardware_decoder(),
                metadata_errors="replace",
            )
        except (OSError, av.FFmpegError) as error:
            what = "is empty" if _is_empty(self._path) else f"cannot be opened ({describe(error)})"
            raise UserError(f"{self.name} {what}; expected a video file") from error

    def frames(self, stop: threading.Event, link: Link) -> Generator[Arrival, None, None]:
        with self._open() as container:
            link(True, "")
            arrivals = decode(container, self.notes, deinterlace=self._deinterlace)
            yield from paced(arrivals, stop) if self.live else arrivals


class ChainSource:
    """Video files one after another, as one stream: each begins a new part.

    A file that cannot be read counts as one frame that failed.
    """

    def __init__(self, name: str, paths: list[Path], realtime: bool, deinterlace: str) -> None:
        self.notes = Notes(shown_name(name))
        self.name = self.notes.name
        self.live = realtime
        self._paths, self._deinterlace = paths, deinterlace

    def frames(self, stop: threading.Event, link: Link) -> Generator[Arrival, None, None]:
        link(True, "")
        yield from paced(self._read(stop), stop) if self.live else self._read(stop)

    def _read(self, stop: threading.Event) -> Iterator[Arrival]:
        began, part = 0.0, 0
        for path in self._paths:
            newest = Arrival(None, 0.0)
            try:
                source = FileSource(path, False, self._deinterlace)
                for newest in source.frames(stop, lambda connected, reason: None):
                    yield dataclasses.replace(
                        newest, time=began + newest.time, connection=part + newest.connection
                    )
            except UserError as error:
                yield Arrival(None, began, str(error), part)
            began += newest.time + BETWEEN_S
            part += newest.connection + 1


def _is_empty(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_size == 0
    return False
