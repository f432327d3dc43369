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


def test_the_rule_is_that_of_images() -> None:
    """A tenth of the lesion is an alarm and less is none; each false region is one more."""
    lesion = np.zeros((100, 100), bool)
    lesion[:10, :20] = True  # 200 pixels
    score = AlarmScore()

    def add(*shown: tuple[slice, slice]) -> None:
        drawn = np.zeros_like(lesion)
        for window in shown:
            drawn[window] = True
        score.add(next(moments), drawn, lesion)

    moments = iter(np.arange(8) / 10)
    add()
    add(np.s_[9:15, 0:19])  # 19 of its 200 pixels: not found, and not false, since it touches
    first, second = np.s_[40:50, 0:10], np.s_[60:70, 0:10]
    add(first)  # false
    add(first, second)  # one more while the first shows
    add(second)
    add(first, second)  # again
    add(np.s_[9:15, 0:20])  # 20 of 200, at 0.6 s
    add(np.s_[90:92, 0:2])  # 4 pixels of 10,000, below what the runner draws
    reported = score.summary()
    assert reported["seconds_to_first_alarm"] == [pytest.approx(0.6)]
    assert reported["false_alarms"] == 3


def test_an_empty_film_says_nothing() -> None:
    reported = AlarmScore().summary()
    assert reported["appearances"] == 0 and reported["false_alarms_per_minute"] is None
