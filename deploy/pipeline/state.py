"""The state of a stream (LIVE, STALE, OFFLINE or AI-OFF), its changes, and its frame counts."""

from __future__ import annotations

import threading
import time
from typing import TypedDict

from deploy.status import AI_OFF, LIVE, OFFLINE, STALE

OUTCOMES = ("processed", "dropped", "failed")
# Seconds since the start of the run, the two states, and why.
Change = TypedDict("Change", {"time_s": float, "from": str, "to": str, "reason": str})
MOST_CHANGES = 10_000  # kept in memory; a source that flaps for days only counts on


class StreamState:
    """One stream's state, from what its source, its frames and the engine report.

    Args:
        live: Whether frames are due: a file that waits for a slow engine is not stale.
        stale_s: Seconds without a frame after which a live stream is stale.
        began: Monotonic time from which changes are counted.
    """

    def __init__(self, live: bool, stale_s: float, began: float) -> None:
        self.changes: list[Change] = []
        self.changed = 0
        self.still = False
        self._live, self._stale_s, self._began = live, stale_s, began
        self._lock = threading.Lock()
        self._connected = False
        self._link_reason = "connecting"
        self._ai_reason = ""
        self._arrived: float | None = None
        self._state = OFFLINE

    def link(self, connected: bool, reason: str) -> bool:
        """Set whether the source is connected, and why; return whether that is a change."""
        with self._lock:
            news = (connected, reason) != (self._connected, self._link_reason)
            self._connected, self._link_reason = connected, reason
            self.still = False
            # Connected is not yet live: only a frame makes it so.
            if connected:
                self._arrived = None if self._live else self._arrived
            return news

    def arrival(self, when: float, still: bool = False) -> None:
        """Set the time of the newest frame in monotonic seconds, unless its picture is frozen."""
        self.still = still
        if not still:
            self._arrived = when

    def ai(self, reason: str) -> None:
        """Set why frames are not segmented; empty where they are."""
        self._ai_reason = reason

    def now(self) -> tuple[str, str, float | None, Change | None]:
        """Return state, reason, age of the newest frame in seconds, and the change or None."""
        moment = time.monotonic()
        with self._lock:
            age = None if self._arrived is None else moment - self._arrived
            state, reason = self._state_at(age)
            change: Change | None = None
            if state != self._state:
                change = {
                    "time_s": round(moment - self._began, 3),
                    "from": self._state,
                    "to": state,
                    "reason": reason,
                }
                self._state = state
                self.changed += 1
                if len(self.changes) < MOST_CHANGES:
                    self.changes.append(change)
            return state, reason, age, change

    def _state_at(self, age: float | None) -> tuple[str, str]:
        if not self._connected:
            return OFFLINE, self._link_reason
        if age is None:
            return OFFLINE, "waiting for the first frame"
        if self._live and age > self._stale_s:
            return STALE, "the picture stands still" if self.still else ""
        if self._ai_reason:
            return AI_OFF, self._ai_reason
        return LIVE, ""


class FrameCounter:
    """Counts the frames of one stream. ``in`` is what is finished: processed, dropped or failed.

    ``in_flight`` frames are in the pipeline; at the end there are none, and then ``in`` is every
    frame that the source gave.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = 0
        self._finished = dict.fromkeys(OUTCOMES, 0)

    @property
    def taken(self) -> int:
        """Number of frames that entered."""
        return self._taken

    def take(self) -> int:
        """Count a frame that entered, and return its id."""
        with self._lock:
            self._taken += 1
            return self._taken - 1

    def finish(self, outcome: str) -> None:
        """Count a frame that left, once."""
        with self._lock:
            self._finished[outcome] += 1

    def snapshot(self) -> dict[str, int]:
        """Return in, processed, dropped, failed, in_flight, all of one moment."""
        with self._lock:
            done = sum(self._finished.values())
            return {"in": done, **self._finished, "in_flight": self._taken - done}
