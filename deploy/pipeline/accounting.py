"""The books of a run: every frame settled once, every change of state written down.

Its own thread notices silence, because nothing else moves when nothing comes.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from deploy.engine.supervisor import EngineGuard
from deploy.outputs.drawing import greyed
from deploy.outputs.pixels import to_rgb
from deploy.outputs.results import Results
from deploy.pipeline.live import Live
from deploy.pipeline.stream import Frame, Stream, brief
from deploy.status import LIVE, OFFLINE, STALE, StreamStatus

log = logging.getLogger(__name__)
WATCH_S = 0.1
END = "end of the source"


class Books:
    """Keeps accounts, states and events of all streams; safe to call from every stage."""

    def __init__(
        self, streams: list[Stream], guard: EngineGuard, live: Live, results: Results | None
    ) -> None:
        self.streams, self.guard, self.live, self.results = streams, guard, live, results
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
        """Settle a frame that gives way."""
        frame.outcome, frame.error = "dropped", reason
        self.settle(frame, brief(frame))

    def settle(self, frame: Frame, line: dict[str, Any]) -> None:
        """Write a frame's line and close its account."""
        if self.results is not None:
            self.results.frame(line)
        frame.stream.ledger.settle(frame.outcome)

    def link(self, stream: Stream, connected: bool, reason: str) -> None:
        """Take note of a connect or a loss."""
        news = stream.standing.link(connected, reason)
        if news and not connected and stream.source.live and not stream.ended:
            log.warning("%s: lost: %s", stream.source.name, reason)
        self.status(stream, stream.last)

    def status(self, stream: Stream, frame: Frame | None) -> StreamStatus:
        """Return where a stream stands now, and write it down if it changed."""
        status, change = stream.status(self.guard.backend, frame)
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

    def _watch(self) -> None:
        while not self._done.wait(WATCH_S):
            for stream in self.streams:
                if stream.ended and not stream.ledger.snapshot()["in_flight"]:
                    stream.standing.link(False, stream.ended)  # its last frame has been shown
                before = self.live.status(stream.index).state
                status = self.status(stream, stream.last)
                if stream.source.live and status.state in (STALE, OFFLINE) and stream.last:
                    grey = greyed(to_rgb(stream.last.picture), status)
                    self.live.publish(grey, stream.last.id, status)
                elif status.state != before or status.state != LIVE:
                    self.live.update(status)
