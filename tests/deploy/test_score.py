"""A run against reference masks: regions and the curve over thresholds, counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.outputs.results import Truth
from deploy.outputs.score import VideoScore
from medisseg.convention import InputConvention
from medisseg.evaluation.detection import THRESHOLDS
from medisseg.picture import Picture

SIDE = 96
LESION, FALSE = (10, 10, 20, 20), (60, 60, 10, 10)


def mask(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """Boxes (top, left, height, width) in an empty mask."""
    drawn = np.zeros(size, np.uint8)
    for top, left, height, width in boxes:
        drawn[top : top + height, left : left + width] = 1
    return drawn


def logits(lesion: float, false: float) -> np.ndarray:
    """Maps [1, 48, 48]: these probabilities in the two boxes at half the size, 0.001 elsewhere."""
    probability = np.full((1, 48, 48), 0.001, np.float32)
    probability[0, 5:15, 5:15], probability[0, 30:35, 30:35] = lesion, false
    return np.log(probability / (1 - probability))


def truth(folder: Path, *masks: np.ndarray) -> Truth:
    for number, one in enumerate(masks):
        Image.fromarray(one * 255).save(folder / f"{number}.png")
    return Truth(folder)


def score(folder: Path, *masks: np.ndarray) -> VideoScore:
    return VideoScore(truth(folder, *masks), InputConvention(size=(48, 48)))


def test_lesions_false_regions_and_the_curve(tmp_path: Path) -> None:
    """Found with a false region beside it; missed; clean and silent; clean, not segmented."""
    film = score(tmp_path, mask(LESION), mask(LESION), mask(), mask())
    size = (SIDE, SIDE)
    both = mask(LESION, FALSE)
    assert film.add(0, size, both, mask(LESION), 0.0, logits(0.85, 0.55)) == pytest.approx(8 / 9)
    assert film.add(1, size, None, None, 0.04, logits(0.15, 0.01)) == 0
    assert film.add(2, size, mask(), mask(), 0.08, logits(0.01, 0.35)) == 1
    assert film.add(3, size, None, None, 0.12) == 1
    assert film.add(4, size, None, None, 0.16) is None  # beyond the last mask

    found = film.summary()["detection"]
    assert (found["images"], found["lesions"], found["found"]) == (4, 2, 1)
    assert found["sensitivity"] == 0.5
    assert found["mean_false_area"] == pytest.approx(100 / 96**2 / 4)
    assert found["by_least_area"]["0.0005"] == {
        "frames_with_false_region": 0.25,
        "false_regions_per_frame": 0.25,
    }
    assert found["by_least_area"]["0.05"]["frames_with_false_region"] == 0  # it is 1 % of the frame

    curve = dict(zip(THRESHOLDS, film.sweeps().sum(0).tolist(), strict=True))
    assert curve[0.02] == curve[0.1] == [2, 2, 2]  # 0.15 is a lesion found there
    assert curve[0.2] == curve[0.3] == [2, 1, 2]
    assert curve[0.4] == curve[0.5] == [2, 1, 1]  # 0.35 is silent
    assert curve[0.6] == curve[0.8] == [2, 1, 0]  # 0.55 too
    assert curve[0.9] == [2, 0, 0]


def test_the_curve_is_of_the_picture_on_the_screen(tmp_path: Path) -> None:
    """The logits are of a picture of 96 x 96 that stands at (200, 100) on the screen."""
    screen, place = (300, 400), Picture(200, 100, SIDE, SIDE)
    whole = mask((110, 210, 20, 20), size=screen)
    film = score(tmp_path, whole)
    film.add(0, screen, whole, whole, 0.0, logits(0.85, 0.01), place)
    curve = dict(zip(THRESHOLDS, film.sweeps()[0].tolist(), strict=True))
    assert curve[0.5] == [1, 1, 0] and curve[0.9] == [1, 0, 0]
    assert film.summary()["detection"]["found"] == 1


def test_classes_count_as_one_foreground(tmp_path: Path) -> None:
    """Two classes of 0.3 each leave the background 0.4: together they are foreground of 0.6."""
    film = score(tmp_path, mask(LESION))
    probability = np.zeros((3, 48, 48), np.float32)
    probability[:] = np.array([0.998, 0.001, 0.001])[:, None, None]
    probability[:, 5:15, 5:15] = np.array([0.4, 0.3, 0.3])[:, None, None]
    film.add(0, (SIDE, SIDE), None, None, 0.0, np.log(probability))
    curve = dict(zip(THRESHOLDS, film.sweeps()[0].tolist(), strict=True))
    assert curve[0.5] == [1, 1, 0] and curve[0.7] == [1, 0, 0]


def test_void_pixels_count_for_nothing(tmp_path: Path) -> None:
    """255 beside 1 is void: what is found there is neither in Dice nor a false region."""
    Image.fromarray(mask(LESION) + 255 * mask(FALSE)).save(tmp_path / "0.png")
    film = VideoScore(Truth(tmp_path), InputConvention(size=(48, 48)))
    both = mask(LESION, FALSE)
    assert film.add(0, (SIDE, SIDE), both, both, 0.0, logits(0.85, 0.85)) == 1
    assert film.summary()["dice_video_shown"] == 1
    assert film.summary()["detection"]["mean_false_area"] == 0
    curve = dict(zip(THRESHOLDS, film.sweeps()[0].tolist(), strict=True))
    assert curve[0.5] == [1, 1, 0]


def test_no_frame_compared_says_nothing(tmp_path: Path) -> None:
    reported = score(tmp_path, mask(LESION)).summary()
    assert reported["detection"] is None and reported["dice_video"] is None
