"""Every frame finished once, every change of state written down.

A thread of its own notices silence: when no frame comes, no stage runs.
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
from deploy.pipeline.stream import Frame, Stream, brief
from deploy.status import LIVE, OFFLINE, STALE, StreamStatus

log = logging.getLogger(__name__)
WATCH_S = 0.1
END = "end of the source"


class FrameAccounting:
    """Counts, states and events of all streams; every stage may call it from its thread."""

    def __init__(
        self,
        streams: list[Stream],
        supervisor: EngineSupervisor,
        live: Live,
        results: Results | None,
        hide_outside: bool = False,
    ) -> None:
        self.hide_outside = hide_outside
        self.streams, self.supervisor, self.live, self.results = streams, supervisor, live, results
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._watcher.start()

    def close(self) -> None:
        """Stop watching."""
        self._done.set()
        if self._watcher.is_alive():
            self._watcher.join()  # in a library at exit, it would abort the process

    def drop(self, frame: Frame, reason: str) -> None:
        """Finish a frame that gives way to a newer one, or would come too late."""
        frame.outcome, frame.error = "dropped", reason
        self._count(frame, brief)

    def fail(self, frame: Frame) -> None:
        """Finish a frame that could not be decoded."""
        frame.outcome = "failed"
        self._count(frame, brief)

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
        frame.stream.counter.finish(frame.outcome)

    def link(self, stream: Stream, connected: bool, reason: str) -> None:
        """Take note of a connect or a loss."""
        news = stream.state.link(connected, reason)
        if news and not connected and stream.source.live and not stream.ended:
            log.warning("%s: lost: %s", stream.source.name, reason)
        self.status(stream, stream.last)

    def status(self, stream: Stream, frame: Frame | None) -> StreamStatus:
        """Return where a stream stands now, and write it down if it changed."""
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
        """Write an event down."""
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
        if self.hide_outside and frame.place is not None and frame.stream.picture.found:
            frame.place.hide_rest(rgb)
        elif self.hide_outside:
            rgb[:] = 0
        return rgb

    def _watch(self) -> None:
        while not self._done.wait(WATCH_S):
            for stream in self.streams:
                if stream.ended and not stream.counter.snapshot()["in_flight"]:
                    stream.state.link(False, stream.ended)  # its last frame has been shown
                before = self.live.status(stream.index).state
                status = self.status(stream, stream.last)
                if stream.source.live and status.state in (STALE, OFFLINE) and stream.last:
                    grey = greyed(self._last_picture(stream.last), status)
                    self.live.publish(grey, stream.last.id, status)
                elif status.state != before or status.state != LIVE:
                    self.live.update(status)
