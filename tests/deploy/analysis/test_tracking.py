"""Alarms: held back, held on, followed, and told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deploy.analysis.tracking import RELEASE, Region, TemporalFilter, overlap

POLYP = Region((100, 80, 40, 30), 900, 0.9)
FAINT = Region((100, 80, 40, 30), 900, 0.55)


def sequence(regions: list[list[Region]], hold_off: int = 3, step: float = 0.04) -> list[Any]:
    memory = TemporalFilter()
    return [
        memory.update(found, index * step, index, 0.5, hold_off)
        for index, found in enumerate(regions)
    ]


@pytest.mark.parametrize("hold_off", range(7))
def test_an_alarm_is_held_back(hold_off: int) -> None:
    judged = sequence([[POLYP]] * 10, hold_off)
    assert [tracking.alarm for tracking in judged] == [i >= hold_off for i in range(10)]
    assert [len(tracking.hidden) for tracking in judged] == [int(i < hold_off) for i in range(10)]
    ((event, track),) = judged[hold_off].events
    assert event == "alarm on"
    assert (track.first_seen_s, track.first_frame, track.area) == (0.0, 0, 900)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_short_activation_is_never_shown(length: int) -> None:
    judged = sequence([[]] * 3 + [[POLYP]] * length + [[]] * 10)
    assert not any(tracking.alarm or tracking.shown for tracking in judged)


def test_only_consecutive_frames_count() -> None:
    assert not any(tracking.alarm for tracking in sequence([[POLYP], [POLYP], []] * 10))


def test_a_shown_alarm_survives_a_moment_but_its_mask_is_never_carried_over() -> None:
    judged = sequence([[POLYP]] * 5 + [[]] * RELEASE + [[POLYP]] + [[]] * (RELEASE + 2))
    assert all(tracking.alarm for tracking in judged[4 : 11 + RELEASE])
    assert all(not tracking.shown for tracking in judged[5 : 5 + RELEASE])
    assert judged[5 + RELEASE].shown[0].id == judged[4].shown[0].id
    last = judged[6 + 2 * RELEASE]
    assert not last.alarm and last.events[0][0] == "alarm off"


def test_a_faint_region_goes_on_but_does_not_begin() -> None:
    assert not any(tracking.alarm for tracking in sequence([[FAINT]] * 12))
    assert all(tracking.shown for tracking in sequence([[POLYP]] * 4 + [[FAINT]] * 12)[3:])


def test_tracks_keep_their_ids_as_they_move() -> None:
    other = Region((10, 10, 30, 30), 500, 0.95)
    frames = [
        [Region((100 + 3 * i, 80, 40, 30), 900 + i, 0.9), other][:: -1 if i % 2 else 1]
        for i in range(10)
    ]
    judged = sequence(frames, hold_off=0)
    for index, tracking in enumerate(judged):
        by_id = {track.id: track for track in tracking.shown}
        assert set(by_id) == {1, 2}
        # Looked at after the last frame: a tracking keeps its own frame's boxes.
        assert by_id[1].box == (100 + 3 * index, 80, 40, 30) and by_id[1].area == 900 + index


def test_a_quick_camera_does_not_end_an_alarm() -> None:
    quick = [[Region((100 + 44 * i, 80, 40, 30), 900, 0.9)] for i in range(8)]
    judged = sequence(quick)
    assert [tracking.shown[0].id for tracking in judged[3:]] == [1] * 5
    far = [[Region((100 + 90 * i, 80, 40, 30), 900, 0.9)] for i in range(8)]
    assert not any(tracking.alarm for tracking in sequence(far))


def test_what_overlaps_comes_before_what_is_near() -> None:
    left, right = Region((100, 80, 40, 30), 900, 0.9), Region((145, 80, 40, 30), 900, 0.9)
    moved = Region((130, 80, 40, 30), 900, 0.9)  # overlaps the right one, is near the left one
    judged = sequence([[left, right]] * 2 + [[moved]], hold_off=0)
    ids = {track.box: track.id for track in judged[1].shown}
    assert judged[2].shown[0].id == ids[right.box]


def test_a_gap_in_time_ends_everything() -> None:
    judged = sequence([[POLYP]] * 6, step=2.0)
    assert not any(tracking.alarm for tracking in judged)


def test_flicker() -> None:
    memory = TemporalFilter()
    still, empty = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    still[2:5, 2:5] = True
    scores = [memory.update([], i / 25, i, 0.5, 3, still).flicker for i in range(30)]
    assert scores[-1] == 0.0
    blinking = [
        memory.update([], (30 + i) / 25, i, 0.5, 3, empty if i % 2 else still).flicker
        for i in range(30)
    ]
    assert blinking[-1] == 1.0
    half = TemporalFilter()
    moved = np.roll(still, 1, axis=1)  # 6 of 12 pixels in common
    for i in range(5):
        score = half.update([], i / 25, i, 0.5, 3, moved if i % 2 else still).flicker
    assert score == pytest.approx(0.5)


def test_overlap() -> None:
    assert overlap((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(50 / 150)
    assert overlap((0, 0, 10, 10), (10, 0, 10, 10)) == 0
    assert overlap((0, 0, 10, 10), (2, 2, 3, 3)) == 1  # a part of it
