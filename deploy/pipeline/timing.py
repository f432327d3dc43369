"""Latencies of stages and frames in milliseconds, in histograms of bounded size."""

from __future__ import annotations

import math
import time

import numpy as np
import numpy.typing as npt

STAGES = ("decode", "preprocess", "infer", "postprocess", "temporal", "draw", "record")
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9}
WARM_UP_FRAMES = 5
IDLE_S = 1.0  # the first frame after a longer pause counts apart


class Histogram:
    """Times in milliseconds: extremes and mean exact, percentiles to within 0.5 %.

    Bins grow by 1 %, so that hours of video take the memory of minutes. Values below a microsecond
    share the first bin; there is no upper limit that a time could be cut at (the last bin begins at
    a day).
    """

    GROWTH = math.log(1.01)
    LEAST_MS = 1e-3
    BINS = int(math.log(86_400_000 / LEAST_MS) / GROWTH) + 2

    def __init__(self) -> None:
        self.counts = [0] * self.BINS
        self.count = 0
        self.total = 0.0
        self.least = math.inf
        self.most = 0.0
        self.last = 0.0

    def add(self, ms: float) -> None:
        """Count one time."""
        index = int(math.log(ms / self.LEAST_MS) / self.GROWTH) + 1 if ms > self.LEAST_MS else 0
        self.counts[min(index, self.BINS - 1)] += 1
        self.count += 1
        self.total += ms
        self.last = ms
        self.least, self.most = min(self.least, ms), max(self.most, ms)

    def merge(self, other: Histogram) -> None:
        """Add the times of another histogram."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.count, self.total = self.count + other.count, self.total + other.total
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)

    def percentile(self, percent: float) -> float:
        """Return the time that ``percent`` of all times do not exceed, by the nearest rank."""
        rank = max(1, math.ceil(percent / 100 * self.count))
        seen = 0
        for index, count in enumerate(self.counts):
            seen += count
            if seen >= rank:
                middle = self.LEAST_MS * math.exp((index - 0.5) * self.GROWTH)
                return min(max(middle, self.least), self.most)
        return 0.0

    def summary(self) -> dict[str, float]:
        """Return count, mean, percentiles and extremes in milliseconds."""
        if not self.count:
            return {"count": 0}
        shown = {name: round(self.percentile(p), 3) for name, p in PERCENTILES.items()}
        mean = round(self.total / self.count, 3)
        ends = {"min": round(self.least, 3), "max": round(self.most, 3)}
        return {"count": self.count, "mean": mean, **shown, **ends}

    def edges(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Return (bin edges in milliseconds [n + 1], counts [n]) of the bins in use."""
        used = [index for index, count in enumerate(self.counts) if count]
        if not used:
            return np.array([0.0, 1.0]), np.array([0])
        first, last = used[0], used[-1]
        steps = np.arange(first - 1, last + 1)
        return self.LEAST_MS * np.exp(steps * self.GROWTH), np.array(self.counts[first : last + 1])


class Timing:
    """The times of one stream: each stage, and from arrival to shown."""

    def __init__(self) -> None:
        self.stages = {stage: Histogram() for stage in STAGES}
        self.latency = Histogram()
        self.warm_up = Histogram()
        self.after_idle = Histogram()
        self.over_budget = 0
        self._shown = 0
        self._busy_until = math.inf  # when the frame before was shown
        self._recent: list[float] = []
        self._percentiles, self._computed = {"p50": 0.0, "p99": 0.0}, -math.inf

    def percentiles(self) -> dict[str, float]:
        """Return p50 and p99 of the latency, at most half a second old."""
        now = time.monotonic()
        if now - self._computed > 0.5:
            latency = self.latency if self.latency.count else self.warm_up
            self._percentiles = {"p50": latency.percentile(50), "p99": latency.percentile(99)}
            self._computed = now
        return self._percentiles

    def shown(self, latency_ms: float, arrived: float) -> None:
        """Count a shown frame: its latency in milliseconds, its arrival on the monotonic clock.

        A pause is time without a frame to show: a slow machine that works through a file has none.
        """
        pause = arrived - self._busy_until
        self._busy_until = arrived + latency_ms / 1000
        self._shown += 1
        if self._shown <= WARM_UP_FRAMES:
            self.warm_up.add(latency_ms)
        elif pause > IDLE_S:
            self.after_idle.add(latency_ms)
        else:
            self.latency.add(latency_ms)
        self._recent = [*self._recent[-49:], time.monotonic()]

    def fps(self) -> float:
        """Return shown frames a second over the last frames."""
        recent = self._recent
        if len(recent) < 2 or recent[-1] <= recent[0]:
            return 0.0
        return (len(recent) - 1) / max(recent[-1] - recent[0], time.monotonic() - recent[-1])

    def latency_summary(self) -> dict[str, float]:
        """Return the latency after warm-up; of the warm-up where there was nothing after it."""
        return (self.latency if self.latency.count else self.warm_up).summary()
