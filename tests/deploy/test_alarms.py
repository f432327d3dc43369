"""Alarms against a truth, on a film whose alarms are counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.analysis.alarms import AlarmScore

SIDE = 20


def region(top: int | None) -> np.ndarray:
    drawn = np.zeros((SIDE, SIDE), bool)
    if top is not None:
        drawn[top : top + 4, 4:8] = True
    return drawn


def test_waits_and_false_alarms_are_counted() -> None:
    """25 frames a second: a lesion from 1 s to 2 s, again from 2.4 s, and another from 4 s on."""
    score = AlarmScore()
    for frame in range(151):
        moment = frame / 25
        true = region(2) if 1 <= moment < 2 or 2.4 <= moment < 2.8 or moment >= 4 else region(None)
        shown = region(None)
        if 1.2 <= moment < 2:  # found 0.2 s after it appeared, then never the second lesion
            shown = region(3)
        if 3 <= moment < 3.2 or 3.6 <= moment < 3.64:  # two false alarms, one frame or five
            shown = region(14)
        if moment >= 5.9:  # beside the lesion: a third
            shown = region(14)
        score.add(moment, shown, true)
    reported = score.summary()
    assert (reported["appearances"], reported["alarmed"]) == (
        2,
        1,
    )  # 0.4 s out of sight is the same
    assert reported["seconds_to_first_alarm"] == [pytest.approx(0.2, abs=0.001), None]
    assert reported["false_alarms"] == 3
    assert reported["false_alarms_per_minute"] == pytest.approx(3 / (151 / 25 / 60))


def test_an_empty_film_says_nothing() -> None:
    reported = AlarmScore().summary()
    assert reported["appearances"] == 0 and reported["false_alarms_per_minute"] is None
