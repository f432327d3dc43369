"""Alarms against a reference: their delay in seconds, and false alarms a minute."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# A lesion that was out of sight for longer appears anew.
APART_S = 1.0


class AlarmScore:
    """Counts the alarms of one video, frame after frame, as they are shown (after the hold-off).

    The rule is that of images (:func:`medisseg.evaluation.detection.detect`): what is shown raises
    the alarm of an appearance in the first frame in which it covers a tenth of a lesion, and a
    region that touches no lesion is false. Each frame with more false regions than the frame before
    has that many false alarms; one that stays, or moves, is one.

    Example:
        >>> score = AlarmScore()
        >>> score.add(0.04, shown, true)
        >>> score.summary()["false_alarms_per_minute"]
    """

    def __init__(self) -> None:
        self._waits: list[float | None] = []  # seconds from each appearance to its first alarm
        self._appeared = self._seen = -np.inf
        self._false_alarms = self._false = 0
        self._first: float | None = None
        self._last = 0.0
        self._frames = 0

    def add(self, moment: float, shown: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_]) -> None:
        """Take the next frame: its time in seconds, and what is shown and true, bool [H, W]."""
        from medisseg.evaluation.detection import detect

        self._first = moment if self._first is None else self._first
        self._last, self._frames = moment, self._frames + 1
        one = detect(shown, true)
        if one.lesions:
            if moment - self._seen > APART_S:
                self._appeared = moment
                self._waits.append(None)
            self._seen = moment
            if self._waits[-1] is None and one.found:
                self._waits[-1] = moment - self._appeared
        before, self._false = self._false, one.false_regions()
        self._false_alarms += max(0, self._false - before)

    def summary(self) -> dict[str, Any]:
        """Return the counts as JSON-ready values.

        Appearances of lesions, how many had an alarm and after how many seconds, false alarms and
        their number a minute.
        """
        waits = [wait for wait in self._waits if wait is not None]
        first = self._last if self._first is None else self._first
        minutes = (self._last - first) / 60 * self._frames / max(1, self._frames - 1)
        return {
            "appearances": len(self._waits),
            "alarmed": len(waits),
            "seconds_to_first_alarm": [None if w is None else round(w, 3) for w in self._waits],
            "median_seconds_to_first_alarm": float(np.median(waits)) if waits else None,
            "false_alarms": self._false_alarms,
            "false_alarms_per_minute": self._false_alarms / minutes if minutes else None,
        }
