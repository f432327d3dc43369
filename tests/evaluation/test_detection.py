"""Lesions, false regions and the free-response curve, on masks whose answer is counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medisseg.data.reading import read_image
from medisseg.evaluation import corruptions, detection
from medisseg.evaluation.detection import detect, froc, summarize, sweep


def mask(*boxes: tuple[int, int, int, int], side: int = 100) -> np.ndarray:
    """Boxes (top, left, height, width) in an empty mask."""
    drawn = np.zeros((side, side), bool)
    for top, left, height, width in boxes:
        drawn[top : top + height, left : left + width] = True
    return drawn


def test_a_lesion_is_found_when_a_tenth_is_covered() -> None:
    true = mask((0, 0, 20, 20), (50, 50, 20, 20))
    assert detect(mask((0, 0, 2, 20)), true).found == 1  # 40 of 400 pixels
    assert detect(mask((0, 0, 2, 19)), true).found == 0
    assert detect(mask((0, 0, 2, 2)), mask((0, 0, 4, 4))).found == 0  # 4 pixels: too small to show
    both = detect(np.ones((100, 100), bool), true)
    assert (both.lesions, both.found, both.false_areas) == (2, 2, ())


def test_false_regions_touch_no_lesion() -> None:
    true = mask((0, 0, 20, 20))
    one = detect(mask((0, 10, 10, 30), (60, 60, 10, 10), (90, 0, 2, 2)), true)
    assert one.found == 1 and sorted(one.false_areas) == [0.0004, 0.01]
    assert (one.false_regions(0.0), one.false_regions(), one.false_regions(0.05)) == (2, 1, 0)
    diagonal = np.eye(100, dtype=bool)
    assert len(detect(diagonal, np.zeros_like(diagonal)).false_areas) == 1  # 8-neighbours


def test_summary_and_curve() -> None:
    empty = mask()
    images = [
        detect(mask((0, 0, 20, 20)), mask((0, 0, 20, 20))),
        detect(empty, mask((0, 0, 20, 20))),
        detect(mask((60, 60, 10, 10)), empty),
    ]
    reported = summarize(images)
    assert (reported["lesions"], reported["found"], reported["sensitivity"]) == (2, 1, 0.5)
    assert reported["by_least_area"]["0.0005"]["false_regions_per_frame"] == pytest.approx(1 / 3)
    assert reported["mean_false_area"] == pytest.approx(0.01 / 3)
    probability = np.where(mask((0, 0, 20, 20)), 0.85, np.where(mask((60, 60, 9, 9)), 0.35, 0.0))
    rows = sweep(probability, mask((0, 0, 20, 20)))
    by_threshold = dict(zip(detection.THRESHOLDS, rows.tolist(), strict=True))
    assert by_threshold[0.3] == [1, 1, 1] and by_threshold[0.5] == [1, 1, 0]
    assert by_threshold[0.9] == [1, 0, 0]
    lines = froc(rows[None], sweep(probability, empty)[None]).axes[0].lines
    assert lines[0].get_ydata()[0] == 1 and lines[2].get_xdata()[0] == 2


def test_screens_keep_the_lesion_inside_and_the_rest_background(shared) -> None:
    root = shared / "data" / "kvasir-seg"
    image = read_image(sorted((root / "images").iterdir())[0])
    whole = np.ones(image.shape[:2], np.uint8)
    for name, change in corruptions.corruptions().items():
        seen, labels = change(image, whole)
        assert seen.dtype == labels.dtype == np.uint8 and seen.shape[:2] == labels.shape, name
        if isinstance(change, corruptions.Screen):
            x, y, width, height = change.place
            outside = labels.copy()
            outside[y : y + height, x : x + width] = 0
            assert not outside.any() and 0.7 < labels.sum() / (width * height) <= 1, name
            assert seen[labels > 0].mean() > 30, name
        elif not name.startswith("rotation"):
            assert (labels == 1).all(), name
            assert (name == "clean") == bool((seen == image).all()), name
    again = corruptions.corruptions()["noise, sigma 20"]
    assert (again(image, whole)[0] == again(image, whole)[0]).all()


def test_a_doubled_field_and_hues_by_value() -> None:
    changes = corruptions.corruptions()
    labels = np.arange(5, dtype=np.uint8)[:, None].repeat(4, 1)
    image = labels[..., None].repeat(3, 2) * 10
    seen, kept = changes["one field doubled"](image, labels)
    assert seen[:, 0, 0].tolist() == [0, 0, 20, 20, 40] and (kept == labels).all()
    red = np.full((2, 2, 3), (255, 0, 0), np.uint8)
    orange, pink = (changes[f"hue {sign}14 degrees"](red, labels[:2, :2])[0][0, 0] for sign in "+-")
    step = round(255 * 14 / 60)
    assert np.abs(orange.astype(int) - (255, step, 0)).max() <= 1
    assert np.abs(pink.astype(int) - (255, 0, step)).max() <= 1
