"""Metrics against numbers worked out by hand and against MONAI."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medisseg.evaluation import metrics


def square(top: int, left: int, side: int, size: int = 64) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_overlap_of_shifted_squares() -> None:
    # Two 10x10 squares shifted by 5: 50 common, 150 together.
    got = metrics.image_metrics(square(10, 10, 10), square(10, 15, 10))
    assert got["iou"] == pytest.approx(50 / 150)
    assert got["dice"] == pytest.approx(0.5)
    assert got["recall"] == got["precision"] == pytest.approx(0.5)
    assert got["hd95"] == pytest.approx(5.0)


def test_recall_counts_missed_and_precision_counts_false() -> None:
    got = metrics.image_metrics(square(0, 0, 10), square(0, 0, 20))
    assert (got["recall"], got["precision"]) == (pytest.approx(0.25), 1.0)


@pytest.mark.parametrize(
    ("pred", "true", "score", "distance"),
    [
        (False, False, 1.0, 0.0),
        (True, False, 0.0, np.hypot(64, 64)),
        (False, True, 0.0, np.hypot(64, 64)),
    ],
)
def test_empty_masks(pred: bool, true: bool, score: float, distance: float) -> None:
    masks = [square(4, 4, 8) if full else np.zeros((64, 64), bool) for full in (pred, true)]
    got = metrics.image_metrics(masks[0], masks[1])
    assert all(got[name] == score for name in metrics.NAMES if name != "hd95")
    assert got["hd95"] == pytest.approx(distance)
    assert metrics.dice(masks[0], masks[1]) == score


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="same size"):
        metrics.image_metrics(square(0, 0, 4), square(0, 0, 4, size=32))


def test_hd95_equals_monai_on_blobs() -> None:
    from monai.metrics import compute_hausdorff_distance
    from scipy.ndimage import gaussian_filter

    generator = np.random.default_rng(0)
    for _ in range(6):
        pred, true = (gaussian_filter(generator.normal(size=(80, 60)), 5) > 0.05 for _ in range(2))
        both = [torch.from_numpy(mask)[None, None].float() for mask in (pred, true)]
        expected = compute_hausdorff_distance(
            both[0], both[1], include_background=True, percentile=95
        )
        assert metrics.hd95(pred, true) == pytest.approx(float(expected), abs=1e-4)


def test_boundary_iou_sees_what_iou_hides() -> None:
    # Reference form: erosions with a 3x3 block, pixels beyond the image count as background.
    from scipy.ndimage import binary_erosion

    pred, true = square(10, 10, 40), square(12, 10, 40)
    width = round(0.02 * np.hypot(64, 64))
    rims = [m & ~binary_erosion(m, np.ones((3, 3)), iterations=width) for m in (pred, true)]
    expected = (rims[0] & rims[1]).sum() / (rims[0] | rims[1]).sum()
    got = metrics.image_metrics(pred, true)
    assert got["boundary_iou"] == pytest.approx(expected)
    assert got["boundary_iou"] < got["iou"] - 0.5
    assert metrics.boundary_iou(square(0, 0, 64), square(0, 0, 64)) == 1.0


def test_classes_that_do_not_occur_do_not_count() -> None:
    true = square(0, 0, 8).astype(np.uint8) * 3
    pred = true.copy()
    pred[30:34, 30:34] = 2
    rows = metrics.class_metrics(pred, true, classes=5)
    assert sorted(rows) == [2, 3]
    assert (rows[2]["iou"], rows[3]["iou"]) == (0.0, 1.0)
    assert metrics.mean_over_classes(rows)["dice"] == 0.5
    nothing = np.zeros_like(true)
    assert metrics.mean_over_classes(metrics.class_metrics(nothing, nothing, 5))["dice"] == 1.0


def test_calibration_error() -> None:
    # 0.8 stated, 60 % came true: off by 0.2; 0.1 stated, 10 % came true: right.
    probability = np.array([0.8] * 10 + [0.1] * 10)
    right = np.array([True] * 6 + [False] * 4 + [True] + [False] * 9)
    table = metrics.reliability(probability, right)
    assert metrics.calibration_error(table) == pytest.approx(0.1)
    parts = [metrics.reliability(probability[i::2], right[i::2]) for i in range(2)]
    assert metrics.calibration_error(np.stack(parts)) == pytest.approx(0.1)
    assert metrics.reliability(np.array([1.0]), np.array([True]))[-1].tolist() == [1, 1, 1]


def test_interval_agrees_with_the_normal_one_and_repeats() -> None:
    values = np.random.default_rng(1).normal(0.8, 0.1, 400)
    low, high = metrics.intervals({"dice": values}, seed=3)["dice"]
    half = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.0015)
    assert high == pytest.approx(values.mean() + half, abs=0.0015)
    assert metrics.intervals({"dice": values}, seed=3)["dice"] == [low, high]
    assert metrics.intervals({"dice": values}, seed=4)["dice"] != [low, high]


def test_frames_of_one_video_are_drawn_together() -> None:
    values = [0.9] * 50 + [0.5] * 50
    apart = metrics.intervals({"dice": values})["dice"]
    together = metrics.intervals({"dice": values}, groups=["a"] * 50 + ["b"] * 50)["dice"]
    assert apart[1] - apart[0] < 0.1
    assert together == pytest.approx([0.5, 0.9])


def test_interval_of_the_calibration_error_surrounds_it() -> None:
    generator = np.random.default_rng(2)
    tables = np.stack(
        [
            metrics.reliability(p := generator.random(500), generator.random(500) < p**2)
            for _ in range(40)
        ]
    )
    low, high = metrics.intervals({"x": [0.0] * 40}, tables)["calibration_error"]
    assert low < metrics.calibration_error(tables) < high
    assert metrics.calibration_error(tables) == pytest.approx(1 / 6, abs=0.02)  # mean of p - p^2


def test_a_paired_test_of_groups_takes_their_means_as_independent() -> None:
    change = [0.1, 0.3, 0.1, 0.1, -0.2, 0.0]
    got = metrics.paired_test([0.0] * 6, change, groups=["a", "a", "b", "b", "c", "c"])
    alone = metrics.paired_test([0.0] * 3, [0.2, 0.1, -0.1])
    assert got["p_value"] == alone["p_value"]
    assert got["difference"] == pytest.approx(alone["difference"])
    assert (got["low"], got["high"]) == pytest.approx((alone["low"], alone["high"]))


def test_paired_test() -> None:
    generator = np.random.default_rng(3)
    one = generator.random(60)
    same = metrics.paired_test(one, one)
    assert (same["p_value"], same["difference"], same["equal"]) == (1.0, 0.0, 60)
    better = metrics.paired_test(one, one + 0.02 + generator.normal(0, 0.01, 60))
    assert better["p_value"] < 1e-6
    assert 0.015 < better["low"] < better["difference"] < better["high"] < 0.025
    with pytest.raises(ValueError, match="same images"):
        metrics.paired_test([0.1], [0.1, 0.2])
