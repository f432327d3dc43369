"""Accounting of frames: each finished exactly once, each change of state written down.

A thread of its own watches for sources without frames, because no stage runs then.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from deploy.engine.supervisor import EngineSupervisor
from deploy.outputs.drawing import greyed
from deploy.outputs.pixels import to_rgb
from deploy.outputs.results import Results
from deploy.pipeline.live import Live
from deploy.pipeline.stream import FRAME, Frame, Stream, brief
from deploy.sources.decoding import describe
from deploy.status import LIVE, OFFLINE, STALE, StreamStatus
from medisseg.device import lost
from medisseg.errors import UserError

log = logging.getLogger(__name__)
WATCH_S = 0.1
END = "end of the source"
# What one bad frame raises in numpy and in the operating system; FFmpeg and OpenCV have their own.
FAULTS = (OSError, ValueError, MemoryError, OverflowError, UserError)
LIBRARIES = ("av", "cv2")


class FrameAccounting:
    """Counts, states and events of all streams; every stage may call it from its thread."""

    def __init__(
        self,
        streams: list[Stream],
        supervisor: EngineSupervisor,
        live: Live,
        results: Results | None,
    ) -> None:
        self.streams, self.supervisor, self.live, self.results = streams, supervisor, live, results
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)

    def start(self) -> None:
        """Start the thread that watches for silent sources."""
        self._watcher.start()

    def close(self) -> None:
        """Stop that thread."""
        self._done.set()
        if self._watcher.is_alive():
            self._watcher.join()  # in a library at exit, it would abort the process

    def drop(self, frame: Frame, reason: str) -> None:
        """Finish a frame as dropped: a newer one displaced it, or it would miss the budget."""
        frame.outcome, frame.error = "dropped", reason
        self._count(frame, brief)

    def fail(self, frame: Frame) -> None:
        """Finish a frame as failed: it could not be decoded, or a stage raised."""
        frame.outcome = "failed"
        self._count(frame, brief)

    def broke(self, frame: Frame, stage: str, error: Exception) -> None:
        """Finish a frame as failed because ``stage`` raised ``error``, and log it once."""
        stream = frame.stream
        frame.error = f"{stage}: {describe(error)}"
        stream.faults[FRAME] = f"a frame failed in {frame.error}"
        if stream.warn(f"frames that failed in {stage}"):
            # What one bad frame raises in a library is one line; a fault of ours has its traceback.
            trace = None if expected(error) else error
            log.warning("%s: frame %d: %s", stream.source.name, frame.id, frame.error,
                        exc_info=trace)  # fmt: skip
        if not self.supervisor.lost:  # a fault of CUDA that stays, whichever stage it came from
            self.supervisor.lost = lost(self.supervisor.device)
        self.fail(frame)
        self.live.update(self.status(stream, stream.last))

    def finish(self, frame: Frame, overlay: int | None, dice: float | None) -> None:
        """Finish a frame that was shown.

        Args:
            frame: The frame.
            overlay: Its number in the overlay recording; None where it is not in it.
            dice: Dice of its mask, where there is a truth.
        """
        self._count(frame, lambda frame: frame.line(overlay, dice))

    def _count(self, frame: Frame, line: Callable[[Frame], dict[str, object]]) -> None:
        if self.results is not None:
            self.results.frame(line(frame))
        frame.stream.release(frame)
        frame.stream.counter.finish(frame.outcome)

    def place(self, frame: Frame) -> None:
        """Write an event when the endoscopic picture of a frame has been found or has moved."""
        stream, place = frame.stream, frame.place
        if place is not None and place != stream.place:
            stream.place = place
            detail = ",".join(map(str, place.to_list()))
            self.event(stream, frame, "picture", detail=detail)

    def link(self, stream: Stream, connected: bool, reason: str) -> None:
        """Note that a source has connected or was lost; log a loss."""
        news = stream.state.link(connected, reason)
        if news and not connected and stream.source.live and not stream.ended:
            log.warning("%s: lost: %s", stream.source.name, reason)
        self.status(stream, stream.last)

    def status(self, stream: Stream, frame: Frame | None) -> StreamStatus:
        """Return a stream's status now; a change of state is written as an event."""
        status, change = stream.status(self.supervisor.backend, frame)
        if change is not None:
            log.info(
                "%s: %s -> %s %s", stream.source.name, change["from"], change["to"], status.reason
            )
            detail = f"{change['from']} -> {change['to']} {change['reason']}".strip()
            self.event(stream, frame, "state", detail=detail, time_s=change["time_s"])
        return status

    def event(
        self,
        stream: Stream,
        frame: Frame | None,
        event: str,
        track: int | str = "",
        area: int | str = "",
        confidence: float | str = "",
        detail: str = "",
        time_s: float | None = None,
    ) -> None:
        """Append a line to ``events.csv``: area in pixels, time in seconds of the run."""
        if self.results is not None:
            self.results.event(
                time_s=round(frame.time_s, 3) if frame and time_s is None else time_s,
                stream=stream.index,
                frame=frame.id if frame else "",
                event=event,
                track=track,
                area=area,
                confidence=confidence if confidence == "" else round(float(confidence), 4),
                detail=detail,
            )

    def _last_picture(self, frame: Frame) -> npt.NDArray[np.uint8]:
        """Return a frame's picture without what was drawn on it."""
        rgb = to_rgb(frame.decoded)
        if frame.visible is not None:
            frame.visible.hide_rest(rgb)
        return rgb

    def _watch(self) -> None:
        while not self._done.wait(WATCH_S):
            for stream in self.streams:
                try:
                    self._look_at(stream)
                except Exception as error:  # of its picture; the other streams are watched on
                    if stream.warn("looks at its state that failed"):
                        log.warning("%s: %s", stream.source.name, describe(error), exc_info=error)

    def _look_at(self, stream: Stream) -> None:
        if stream.ended and not stream.counter.snapshot()["in_flight"]:
            stream.state.link(False, stream.ended)  # its last frame has been shown
        before = self.live.status(stream.index).state
        status = self.status(stream, stream.last)
        if status.state != before or status.state != LIVE:
            self.live.update(status)
        silent = status.state in (STALE, OFFLINE) and not stream.state.still
        if stream.source.live and silent and stream.last:
            grey = greyed(self._last_picture(stream.last), status)
            self.live.publish(grey, stream.last.id, status)


def expected(error: Exception) -> bool:
    """Whether an error is one that libraries raise for damaged frames: no traceback is logged."""
    return isinstance(error, FAULTS) or type(error).__module__.split(".")[0] in LIBRARIES
