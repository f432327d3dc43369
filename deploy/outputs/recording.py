"""Videos that survive their writer: fragmented MP4, in parts.

A fragment is written out every half second, so after SIGKILL a part plays up to its last fragment.
A new part begins when the frame size changes, after a reconnect or a break of the source's clock,
and every ``part_s`` seconds. When nothing more can be written, or a source changes its size again
and again, recording stops with an alarm and everything else goes on.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import struct
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.audit import utc_now
from medisseg.video import add_h264

if TYPE_CHECKING:
    import av

log = logging.getLogger(__name__)
SQUARE = Fraction(1)  # aspect of a pixel
CLOCK = 90_000  # ticks a second of the recordings
FRAGMENT_US = 500_000
CHECK_DISK_EVERY = 25  # frames
FEWEST = 10  # frames of a part before a break begins another: a broken clock breaks at every frame
MOST_SHORT = 20  # parts of fewer frames, one after the other


@dataclass
class Part:
    """One file of a recording; ``first`` counts the recording's frames over all parts."""

    path: str
    width: int
    height: int
    first: int
    frames: int = 0


class VideoRecorder:
    """Writes one video in parts ``PREFIX-000.mp4``, ``PREFIX-001.mp4``, ...

    Args:
        folder: Where; it must exist.
        prefix: Beginning of the file names.
        crf: x264's quality, 0 to 51.
        preset: x264's preset.
        part_s: Longest part in seconds.
        min_free_bytes: Recording stops when the disk has less left.
    """

    def __init__(
        self,
        folder: Path,
        prefix: str,
        crf: int = 20,
        preset: str = "ultrafast",
        part_s: float = 600.0,
        min_free_bytes: float = 64e6,
    ) -> None:
        self.parts: list[Part] = []
        self.stopped = ""  # why nothing more is written
        self._folder, self._prefix = folder, prefix
        self._crf, self._preset = crf, preset
        self._part_s, self._min_free = part_s, min_free_bytes
        self._container: Any = None
        self._stream: Any = None
        self._began = 0.0
        self._last_tick = -1
        self._connection = 0
        self._aspect = SQUARE

    @property
    def frames(self) -> int:
        """Frames written so far, over all parts."""
        return self.parts[-1].first + self.parts[-1].frames if self.parts else 0

    def write(
        self,
        picture: av.VideoFrame,
        moment: float,
        connection: int = 0,
        aspect: Fraction = SQUARE,
    ) -> int | None:
        """Append a yuv420p picture of even size, with pixels of ``aspect``, at ``moment`` seconds.

        Returns:
            The frame's number over all parts, or None when recording has stopped.
        """
        if self.stopped:
            return None
        try:
            self._check_disk()
            if self._wants_new_part(picture, moment, connection, aspect):
                self._finish()
                self._aspect = aspect
                self._begin(picture, moment, connection)
            part = self.parts[-1]
            tick = max(self._last_tick + 1, round((moment - self._began) * CLOCK))
            self._last_tick = tick
            picture.pts, picture.time_base = tick, Fraction(1, CLOCK)
            self._container.mux(self._stream.encode(picture))
            part.frames += 1
            return part.first + part.frames - 1
        except Exception as error:  # some of FFmpeg's errors are nothing else
            self.stop(error)
            return None

    def close(self) -> None:
        """Finish the last part."""
        try:
            self._finish()
        except Exception as error:
            self.stop(error)

    def to_list(self) -> list[dict[str, Any]]:
        """Return the parts as JSON-ready values."""
        return [asdict(part) for part in self.parts]

    def _wants_new_part(
        self, picture: av.VideoFrame, moment: float, connection: int, aspect: Fraction
    ) -> bool:
        if self._container is None:
            return True
        part = self.parts[-1]
        if (picture.width, picture.height, aspect) != (part.width, part.height, self._aspect):
            return True
        broken = connection != self._connection or not 0 <= moment - self._began < self._part_s
        return broken and part.frames >= FEWEST

    def _begin(self, picture: av.VideoFrame, moment: float, connection: int) -> None:
        import av

        if len(self.parts) >= MOST_SHORT and all(
            part.frames < FEWEST for part in self.parts[-MOST_SHORT:]
        ):
            raise ValueError("the source changes its size again and again")
        path = self._folder / f"{self._prefix}-{len(self.parts):03d}.mp4"
        first = self.frames
        path.open("xb").close()  # FFmpeg would follow a link that somebody laid there
        self._container = av.open(
            f"file:{path}",
            "w",
            format="mp4",
            options={
                # No edit lists: players start at the first frame, and fragments stay simple.
                "movflags": "frag_keyframe+empty_moov+default_base_moof",
                "frag_duration": str(FRAGMENT_US),
                "flush_packets": "1",
                "use_editlist": "0",
            },
        )
        self._container.metadata["creation_time"] = utc_now()
        stream = add_h264(
            self._container,
            (picture.height, picture.width),
            25,
            preset=self._preset,
            tune="zerolatency",  # a frame that went in comes out: nothing waits in the encoder
            crf=str(self._crf),
            threads="1",
            g="50",
        )
        context = stream.codec_context
        context.sample_aspect_ratio = self._aspect
        context.time_base = Fraction(1, CLOCK)
        for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
            setattr(context, name, int(getattr(picture, name)))
        self._stream = stream
        self._began, self._last_tick, self._connection = moment, -1, connection
        self.parts.append(Part(path.name, picture.width, picture.height, first))

    def _finish(self) -> None:
        container, self._container = self._container, None
        if container is None:
            return
        try:
            container.mux(self._stream.encode(None))
        finally:
            container.close()

    def _check_disk(self) -> None:
        if self.frames % CHECK_DISK_EVERY == 0:
            free = shutil.disk_usage(self._folder).free
            if free < self._min_free:
                raise OSError(errno.ENOSPC, f"{free / 1e6:.0f} MB left on the disk")

    def stop(self, error: BaseException) -> None:
        """Record nothing more, for a reason that is shown; everything else goes on."""
        if self.stopped:
            return
        self.stopped = f"recording stopped: {getattr(error, 'strerror', None) or error}"
        log.error("%s: %s", self._prefix, self.stopped)
        container, self._container = self._container, None
        if container is not None:
            with contextlib.suppress(Exception):
                container.close()
            path = self._folder / self.parts[-1].path
            with contextlib.suppress(OSError):
                if self.parts[-1].frames:
                    trim(path)
                else:  # the encoder refused its size
                    path.unlink(missing_ok=True)
                    self.parts.pop()


def trim(path: Path) -> None:
    """Cut a fragmented MP4 behind its last whole fragment: half a one would not decode."""
    whole = at = 0
    with path.open("r+b") as file:
        end = file.seek(0, 2)
        while at + 8 <= end:
            file.seek(at)
            length, kind = struct.unpack(">I4s", file.read(8))
            at += max(length, 8)
            if at <= end and kind in (b"moov", b"mdat"):
                whole = at
        file.truncate(whole)
