"""Colours say what they should: found, missed, false."""

from __future__ import annotations

import numpy as np

from medisseg.evaluation import pictures


def test_compare_colours_each_area() -> None:
    true, pred = np.zeros((100, 100), np.uint8), np.zeros((100, 100), np.uint8)
    true[10:50, 10:50] = 1
    pred[10:50, 30:70] = 1
    got = pictures.compare(None, pred, true, alpha=1.0)
    assert tuple(got[30, 40]) == pictures.FOUND
    assert tuple(got[30, 20]) == pictures.MISSED
    assert tuple(got[30, 60]) == pictures.FALSE
    assert tuple(got[80, 80]) == (255, 255, 255)


def test_a_wrong_class_is_missed() -> None:
    true, pred = np.full((9, 9), 2, np.uint8), np.ones((9, 9), np.uint8)
    assert (pictures.compare(None, pred, true, 1.0) == pictures.MISSED).all()


def test_overlay_tints_inside_and_outlines() -> None:
    image = np.full((60, 60, 3), 100, np.uint8)
    mask = np.zeros((60, 60), np.uint8)
    mask[20:40, 20:40] = 1
    got = pictures.overlay(image, mask, alpha=0.5)
    color = np.array(pictures.class_color(1))
    assert np.array_equal(got[20, 30], color)
    assert np.abs(got[30, 30] - (100 + color) / 2).max() <= 1
    assert np.array_equal(got[5, 5], image[5, 5]) and image.max() == 100


def test_beside_and_shrink() -> None:
    picture = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    both = pictures.side_by_side(picture, picture, gap=4)
    assert both.shape == (20, 64, 3) and np.array_equal(both[:, 34:], picture)
    assert pictures.shrink(picture, 512) is picture
    assert pictures.shrink(np.full((100, 400, 3), 7, np.uint8), 100).shape == (25, 100, 3)
