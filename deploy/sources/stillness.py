"""Detection of a frozen picture: a hung camera, or a lost signal at a capture card."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import av

STILL_S = 2.0
SIDE = 64  # points a side that are compared
# Mean difference in grey levels. Noise of a camera is 1 to 3, skipped blocks of a codec are 0.
SAME = 0.4


class Stillness:
    """Tells for each frame whether the picture has not changed for :data:`STILL_S` seconds."""

    def __init__(self) -> None:
        self._points = np.empty(0, np.int16)
        self._since = 0.0

    def __call__(self, picture: av.VideoFrame) -> bool:
        """Return whether the picture stands still."""
        plane = picture.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        steps = max(1, plane.height // SIDE), max(1, plane.line_size // SIDE)
        points = rows[: plane.height : steps[0], :: steps[1]].astype(np.int16)
        now = time.monotonic()
        same = points.shape == self._points.shape
        if not same or np.abs(points - self._points).mean() > SAME:
            self._points, self._since = points, now
        return now - self._since > STILL_S
