"""Time stamps of a source as seconds from its first frame, monotonic and without jumps."""

from __future__ import annotations

import time

BACK_S, FORWARD_S = 0.5, 5.0  # a step of the source's clock beyond these is no step of time
STEADY_S = 10.0  # between two breaks that each begin a new part
LOWEST_RATE, HIGHEST_RATE = 0.2, 1000.0  # frames a second; what files claim is not believed


class Clock:
    """Turns the time stamps of frames into seconds that only grow.

    A step back by more than half a second, or forward by more than five, is a break: a new part
    begins, and time goes on by the frame rate. So nothing ever waits for a time that a damaged or
    malicious file claims. Frames without a time count on by the rate, or, where a live stream
    carries no clock at all, have the time of their arrival.

    Args:
        rate: Frames a second.
        by_arrival: Whether the frames' times are made up by the demuxer of a live stream.
    """

    def __init__(self, rate: float, by_arrival: bool = False) -> None:
        self._period = 1 / min(max(rate, LOWEST_RATE), HIGHEST_RATE)
        self._by_arrival = by_arrival
        self._offset: float | None = None
        self._broken = float("-inf")  # time of the last break that began a part
        self.newest = -self._period
        self.part = 0

    def __call__(self, moment: float | None) -> float:
        """Return the seconds of a frame with the time stamp ``moment`` (s); None: it has none."""
        if self._by_arrival:
            moment = time.monotonic()
        if moment is None:
            return self.skipped()
        if self._offset is None:
            self._offset = moment
            self.newest = 0.0
            return self.newest
        step = moment - self._offset - self.newest
        if not self._by_arrival and not -BACK_S < step < max(FORWARD_S, 3 * self._period):
            if self.skipped() - self._broken > STEADY_S:
                self.part, self._broken = self.part + 1, self.newest
            self._offset = moment - self.newest
        elif step <= 0:  # broken streams go back a little: count on by the rate
            return self.skipped()
        else:
            self.newest = moment - self._offset
        return self.newest

    def skipped(self) -> float:
        """Return the seconds of a frame that could not be decoded."""
        self.newest += self._period
        return self.newest
