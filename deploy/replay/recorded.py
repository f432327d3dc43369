"""A run read back from its folder: results line by line, raw video frame by frame.

Works on what a killed process left as well: without a report, with a last line or a last fragment
cut off. Only small facts of every frame are kept in memory; its line is read again when needed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from deploy.outputs.pixels import to_rgb
from deploy.pipeline.state import OUTCOMES
from medisseg.errors import UserError
from medisseg.schema import require
from medisseg.untrusted import MOST_TEXT, read_bytes

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

P = ParamSpec("P")
T = TypeVar("T")
Picture = npt.NDArray[np.uint8]
LONGEST_LINE = 64 << 20  # bytes of one frame's results
MOST_FRAMES, MOST_STREAMS = 2**40, 1024


@dataclass(frozen=True)
class Entry:
    """One frame of a run.

    Attributes:
        stream: Number of its stream.
        id: Its id in the stream.
        time_s: The source's time in seconds.
        outcome: "processed", "dropped" or "failed".
        raw: Its number in the raw video; None where it is not in it.
        alarm: Whether an alarm was shown on it.
        counts: Processed, dropped, failed of its stream up to and with it, in the order finished.
        offset: Where its line begins in ``results.jsonl``, in bytes.
    """

    stream: int
    id: int
    time_s: float
    outcome: str
    raw: int | None
    alarm: bool
    counts: tuple[int, int, int]
    offset: int


class RecordedRun:
    """A run's folder, opened for reading.

    Attributes:
        entries: All frames, by the source's time.
        report: What ``report.json`` holds; empty where the run was killed before it was written.

    Raises:
        UserError: The folder holds no run, or its results cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "results.jsonl"
        if not self._path.is_file():
            raise UserError(f"{folder} holds no run: there is no results.jsonl in it")
        try:
            self.report = read_report(folder / "report.json")
            self._file = self._path.open("rb")
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: the run cannot be read ({error})") from error
        self.entries = sorted(self._index(), key=lambda entry: (entry.time_s, entry.stream))
        if not self.entries:
            raise UserError(f"{folder}: the run has no frames")
        self.streams = 1 + max(entry.stream for entry in self.entries)
        self._videos: dict[int, RawVideo] = {}

    def source(self, stream: int) -> str:
        """Return what a stream was read from, as far as the report tells."""
        parts = self.report.get("streams", [])
        unnamed = f"stream {stream + 1}"
        return str(parts[stream].get("source", unnamed)) if stream < len(parts) else unnamed

    @contextlib.contextmanager
    def using(self, entry: Entry) -> Iterator[None]:
        """Within the block, report a damaged line of results as ``UserError`` with its byte.

        Raises:
            UserError: Within the block something is absent or of another kind than it was written.
        """
        import cv2

        wrong = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, cv2.error)
        try:
            yield
        except wrong as error:
            raise UserError(f"{self._damaged(entry.offset)}: {error!r}"[:400]) from error

    def line(self, entry: Entry) -> dict[str, Any]:
        """Return a frame's line of ``results.jsonl``."""
        self._file.seek(entry.offset)
        found: dict[str, Any] = json.loads(self._file.readline())
        return found

    def video(self, stream: int) -> RawVideo:
        """Return a stream's raw video (it may have no frames)."""
        if stream not in self._videos:
            prefix = "raw" if self.streams == 1 else f"raw-{stream + 1}"
            self._videos[stream] = RawVideo(self.folder, prefix)
        return self._videos[stream]

    def picture(self, entry: Entry) -> Picture | None:
        """Return a frame without anything drawn on it, uint8 RGB [H, W, 3]; None: not recorded."""
        if entry.raw is None:
            return None
        frame = self.video(entry.stream).read(entry.raw)
        if frame is None:
            return None
        with self.using(entry):
            height, width = self.line(entry)["size"]  # odd sizes were padded for the encoder
            require(type(height) is type(width) is int and min(height, width) > 0, "its size")
        return np.ascontiguousarray(to_rgb(frame)[:height, :width])

    def recorded(self, entry: Entry) -> bool:
        """Return whether a frame is in the raw video."""
        return entry.raw is not None and entry.raw < self.video(entry.stream).frames

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        for video in self._videos.values():
            video.close()

    def _damaged(self, offset: int) -> str:
        return f"{self._path} is damaged at byte {offset}"

    def _index(self) -> Iterator[Entry]:
        counts: dict[int, list[int]] = {}
        offset = 0
        for text in iter(lambda: self._file.readline(LONGEST_LINE), b""):
            try:
                yield indexed(json.loads(text), counts, offset)
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                if text.endswith(b"\n") or len(text) == LONGEST_LINE:
                    raise UserError(self._damaged(offset)) from error
                return  # the last line of a killed run
            offset += len(text)


def read_report(path: Path) -> dict[str, Any]:
    """Return a run's report; empty where there is none.

    Raises:
        ValueError: Not a report.
        OSError: It cannot be read.
    """
    if not path.exists():
        return {}
    try:
        report = json.loads(read_bytes(path, MOST_TEXT))
        for part in (report, *report.get("streams", [])):
            require(isinstance(part.get("source", ""), str), "a source is no text")
            times = [part.get("fps", 0.0), *part.get("latency_ms", {}).values()]
            require(all(type(time) in (int, float) for time in times), "a time is no number")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path.name} is no report of a run: {error}") from error
    return dict(report)


def indexed(line: dict[str, Any], counts: dict[int, list[int]], offset: int) -> Entry:
    """Return the index entry of a line, and add it to its stream's counts.

    Raises:
        ValueError, KeyError, TypeError, OverflowError: Not a line of results.
    """
    require(isinstance(line, dict), "no table")
    raw = line.get("raw")
    numbers = line["stream"], line["id"], 0 if raw is None else raw
    if any(type(number) is not int or not 0 <= number < MOST_FRAMES for number in numbers):
        raise ValueError(f"stream, id and raw are {numbers}")
    if numbers[0] >= MOST_STREAMS or not math.isfinite(line["time_s"]):
        raise ValueError("a stream or a time that no run has")
    finished = counts.setdefault(line["stream"], [0, 0, 0])
    finished[OUTCOMES.index(line["outcome"])] += 1
    return Entry(
        line["stream"],
        line["id"],
        line["time_s"],
        line["outcome"],
        raw,
        line.get("alarm", False),
        (finished[0], finished[1], finished[2]),
        offset,
    )


def report_damage(
    function: Callable[Concatenate[RecordedRun, Entry, P], T],
) -> Callable[Concatenate[RecordedRun, Entry, P], T]:
    """Decorate a function of a frame's line: it raises ``UserError`` where the line is damaged."""

    @functools.wraps(function)
    def wrapped(run: RecordedRun, entry: Entry, /, *more: P.args, **named: P.kwargs) -> T:
        with run.using(entry):
            return function(run, entry, *more, **named)

    return wrapped


class RawVideo:
    """The parts of a raw recording as one list of frames, each found by its number, exactly."""

    def __init__(self, folder: Path, prefix: str) -> None:
        named = re.compile(rf"{prefix}-(\d+)\.mp4")
        found = [(named.fullmatch(path.name), path) for path in folder.glob(f"{prefix}-*.mp4")]
        paths = sorted((int(match[1]), path) for match, path in found if match)
        self._parts = [(path, *_stamps(path)) for _, path in paths]
        self._container: InputContainer | None = None
        self._decoded: Iterator[VideoFrame] = iter(())
        self._part, self._next = -1, 0  # number within the part that the decoder gives next

    @property
    def frames(self) -> int:
        """Number of frames over all parts."""
        return sum(len(stamps) for _, stamps, _ in self._parts)

    def read(self, number: int) -> VideoFrame | None:
        """Return frame ``number``; None beyond the last."""
        part = 0
        while part < len(self._parts) and number >= len(self._parts[part][1]):
            number -= len(self._parts[part][1])
            part += 1
        if part == len(self._parts):
            return None
        path, stamps, keys = self._parts[part]
        first = max(key for key in keys if key <= number)
        if part != self._part or not first <= self._next <= number:
            self._open(part, path, stamps[first])
        frame = self._until(stamps[number])
        if frame is None:  # the container could not go there: from its beginning, then
            self._open(part, path, None)
            frame = self._until(stamps[number])
        self._next = number + 1
        return frame

    def close(self) -> None:
        """Close the open part."""
        if self._container is not None:
            self._container.close()
            self._container = None
        self._part = -1

    def _open(self, part: int, path: Path, stamp: int | None) -> None:
        if part != self._part or stamp is None or self._container is None:
            self.close()
            self._container = _open(path)
        stream = self._container.streams.video[0]
        if stamp is not None:
            self._container.seek(stamp, stream=stream)
        self._decoded = self._container.decode(stream)
        self._part = part

    def _until(self, stamp: int) -> VideoFrame | None:
        import av

        try:
            for frame in self._decoded:
                if frame.pts == stamp:
                    return frame
                if frame.pts is not None and frame.pts > stamp:
                    return None
        except av.FFmpegError:
            pass  # cut off here
        return None


def _open(path: Path) -> InputContainer:
    import av

    try:
        container = av.open(f"file:{path}")
        container.streams.video[0].codec_context.thread_type = "SLICE"
        return container
    except (OSError, av.FFmpegError, IndexError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error


def _stamps(path: Path) -> tuple[list[int], list[int]]:
    """Return the time stamps of a part's frames, and the numbers of its key frames."""
    import av

    stamps: list[int] = []
    keys: list[int] = []
    if path.stat().st_size == 0:  # the disk was full
        return stamps, keys
    try:
        container = _open(path)
    except UserError:  # killed before its first fragment
        return stamps, keys
    with container:
        try:
            for packet in container.demux(video=0):
                if packet.pts is not None and packet.size:
                    if packet.is_keyframe:
                        keys.append(len(stamps))
                    stamps.append(packet.pts)
        except av.FFmpegError:
            pass  # what came before is whole
    return (stamps, keys) if keys and keys[0] == 0 else ([], [])
