"""Volumes are scored whole, in 3D and millimetres, as the field does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance

from medisseg.evaluation.volumes import hd95, summarize, volume_metrics
from medisseg.training.batches import Arrays
from medisseg.training.modules import dice_and_iou, image_scores, overlaps


def blobs(seed: int, classes: int = 3) -> np.ndarray:
    """Labels of a few balls, away from the border, [16, 40, 48]."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, (16, 40, 48)), indexing="ij"), 3)
    labels = np.zeros((16, 40, 48), np.uint8)
    for index in range(1, classes):
        centre = 7 + index, 12 + 8 * index, 14 + 8 * index
        centre = np.add(centre, rng.integers(-2, 3, 3))
        labels[((grid - centre) ** 2).sum(3) < rng.integers(9, 25)] = index
    return labels


@pytest.mark.parametrize("spacing", [None, (3.0, 0.7, 0.9)])
def test_dice_and_hd95_are_monais(spacing: tuple[float, float, float] | None) -> None:
    for seed in range(3):
        pred, true = blobs(seed), blobs(seed + 10)
        found = volume_metrics(pred, true, 3, spacing)
        assert set(found) == {1, 2}
        for index, values in found.items():
            one, two = (torch.from_numpy(v == index)[None, None].float() for v in (pred, true))
            dice = compute_dice(one, two, include_background=True).item()
            distance = compute_hausdorff_distance(
                one, two, include_background=True, percentile=95, spacing=spacing
            ).item()
            assert values["dice"] == pytest.approx(dice, abs=1e-6)
            assert values["hd95"] == pytest.approx(distance, rel=1e-5)


def test_a_stray_pixel_a_slice_costs_a_volume_little() -> None:
    true = np.zeros((4, 20, 20), np.uint8)
    true[0, 2:14, 2:14] = 1
    pred = true.copy()
    pred[1:, 17, 17] = 1  # three slices without the organ, a pixel in each
    assert volume_metrics(pred, true, 2)[1]["dice"] == pytest.approx(288 / 291)
    per_slice = [
        volume_metrics(p[None], t[None], 2)[1]["dice"] for p, t in zip(pred, true, strict=True)
    ]
    assert np.mean(per_slice) == 0.25


def test_absent_classes_are_left_out_and_missed_ones_count() -> None:
    true = np.zeros((2, 8, 8), np.uint8)
    true[:, 2:5, 2:5] = 2
    found = volume_metrics(np.zeros_like(true), true, 4)
    assert set(found) == {2} and found[2]["dice"] == 0 and math.isnan(found[2]["hd95"])
    assert math.isnan(hd95(true > 0, true > 9))
    exact = volume_metrics(true, true, 4)
    told = summarize({"a": found, "b": exact}, ["background", "liver", "spleen"])
    assert told == {
        "volumes": 2, "mdsc": 0.5, "hd95": 0.0,
        "classes": {"spleen": {"volumes": 2, "dice": 0.5, "hd95": 0.0}},
    }  # fmt: skip


def test_validation_adds_up_the_slices_of_a_case() -> None:
    names = [f"volumes/case{case}_slice{k:03}" for case in (5, 7) for k in range(8)]
    arrays = Arrays(torch.zeros(16, 3, 8, 8), torch.zeros(16, 8, 8), names)
    assert arrays.cases == (0,) * 8 + (1,) * 8
    assert Arrays(arrays.images, arrays.masks, ["plain", *names[1:]]).cases is None
    pred, true = blobs(0), blobs(1)
    logits = torch.nn.functional.one_hot(torch.from_numpy(pred).long(), 3).permute(0, 3, 1, 2)
    found = overlaps(logits.float(), torch.from_numpy(true).long())
    whole, _ = dice_and_iou(found.sum(0, keepdim=True))
    expected = volume_metrics(pred, true, 3)
    assert whole.item() == pytest.approx(np.mean([v["dice"] for v in expected.values()]))
    by_slice = image_scores(logits.float(), torch.from_numpy(true).long())[:, 1].mean()
    assert abs(by_slice - whole.item()) > 0.05


def test_volumes_must_be_alike() -> None:
    with pytest.raises(ValueError, match="expected two"):
        volume_metrics(np.zeros((2, 3, 4), int), np.zeros((2, 3, 5), int), 2)
