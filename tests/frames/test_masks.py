"""Logits to masks, regions, outlines and run lengths; masks drawn into frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from kernels import _frames, frames

SIZES = [((64, 64), (270, 480)), ((64, 48), (31, 33)), ((1, 1), (5, 7)), ((16, 16), (16, 16))]


@pytest.fixture(params=_frames.instruction_sets(), autouse=True)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs once with each instruction set of this machine."""
    before = _frames.instruction_set()
    _frames.use_instruction_set(request.param)
    yield request.param
    _frames.use_instruction_set(before)


def smooth(*shape: int, seed: int = 0) -> np.ndarray:
    """Logits with structure: noise through a filter, about half of it positive."""
    rng = np.random.default_rng(seed)
    values = ndimage.gaussian_filter(rng.normal(size=shape), (0, 3, 3)[-len(shape) :])
    return (values * 40).astype(np.float32)


def interpolate(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    planes = torch.from_numpy(logits.astype(np.float64))[None]
    return F.interpolate(planes, size, mode="bilinear", align_corners=False)[0].numpy()


@pytest.mark.parametrize(("size", "frame_size"), SIZES)
@pytest.mark.parametrize("classes", [1, 3])
def test_resize_equals_interpolate(classes: int, size: Any, frame_size: Any) -> None:
    logits = smooth(classes, *size)
    got = frames.resize(logits, frame_size)
    assert got.dtype == np.float32
    assert np.abs(got - interpolate(logits, frame_size)).max() < 1e-4


@pytest.mark.parametrize(("size", "frame_size"), SIZES)
@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.9])
def test_threshold_acts_on_upsampled_logits(size: Any, frame_size: Any, threshold: float) -> None:
    logits = smooth(1, *size)
    got = frames.postprocess(logits[0], frame_size, threshold)
    probability = 1 / (1 + np.exp(-interpolate(logits, frame_size)[0]))
    sure = np.abs(probability - threshold) > 1e-5
    np.testing.assert_array_equal(got.mask[sure], (probability > threshold)[sure])
    assert set(np.unique(got.mask)) <= {0, 1}
    assert got.area == np.count_nonzero(got.mask)


def test_classes_by_the_greatest_logit() -> None:
    logits = smooth(4, 40, 56)
    got = frames.postprocess(logits, (121, 97))
    np.testing.assert_array_equal(got.mask, frames.resize(logits, (121, 97)).argmax(0))
    assert got.area == np.count_nonzero(got.mask)
    tie = frames.postprocess(np.ones((3, 8, 8), np.float32), (8, 8))
    assert not tie.mask.any()


def test_letterbox_is_cut_off_as_the_convention_does() -> None:
    from medisseg.convention import InputConvention

    convention = InputConvention(size=(64, 96), resize="letterbox")
    logits = smooth(1, 64, 96)
    got = frames.postprocess(logits, (200, 150), resize="letterbox")
    np.testing.assert_array_equal(got.mask, convention.restore(logits, (200, 150))[0] > 0)


def test_half_logits_and_out() -> None:
    logits = smooth(1, 32, 32).astype(np.float16)
    out = np.full((50, 60), 9, np.uint8)
    got = frames.postprocess(logits, (50, 60), out=out)
    assert got.mask is out
    np.testing.assert_array_equal(out, frames.postprocess(logits.astype(np.float32), (50, 60)).mask)


def test_nan_is_background() -> None:
    logits = np.full((8, 8), np.nan, np.float32)
    assert frames.postprocess(logits, (16, 16)).area == 0


def blobs(*shape: int, seed: int = 0, share: float = 0.5) -> np.ndarray:
    values = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.2)
    return (values > np.quantile(values, 1 - share)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(60, 83), (1, 40), (40, 1), (1, 1), (200, 16)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_regions_equal_scipy(shape: tuple[int, int], share: float) -> None:
    mask = blobs(*shape, share=share) if 0 < share < 1 else np.full(shape, int(share), np.uint8)
    got = frames.Mask(mask, int(mask.sum()))
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    expected = []
    for i, (rows, columns) in enumerate(ndimage.find_objects(labels)):
        sides = columns.stop - columns.start, rows.stop - rows.start
        expected.append((columns.start, rows.start, *sides, int((labels == i + 1).sum())))
    assert sorted(got.regions) == sorted(expected)
    areas = [region[4] for region in got.regions]
    assert areas == sorted(areas, reverse=True)
    assert got.boxes == [region[:4] for region in got.regions]


@pytest.mark.parametrize("thickness", [1, 2, 5])
@pytest.mark.parametrize("shape", [(60, 83), (1, 40), (40, 3), (97, 200)])
def test_outline_is_the_mask_less_its_erosion(shape: Any, thickness: int) -> None:
    mask = blobs(*shape, share=0.7)
    square = np.ones((2 * thickness + 1,) * 2)
    inner = ndimage.binary_erosion(mask, square, border_value=0)
    np.testing.assert_array_equal(frames.outline(mask, thickness), mask & ~inner)
    np.testing.assert_array_equal(frames.Mask(mask, 0).outline, frames.outline(mask, 1))


@pytest.mark.parametrize("thickness", [0, 1, 2, 4])
@pytest.mark.parametrize("alpha", [0.0, 0.35, 1.0])
def test_overlay_blends_inside_and_draws_the_outline(alpha: float, thickness: int) -> None:
    rng = np.random.default_rng(1)
    buffer = rng.integers(0, 256, (80, 512), np.uint8)
    frame = buffer[:, : 3 * 150].reshape(80, 150, 3)
    mask = blobs(80, 150, share=0.6) * 3  # class indices count as foreground
    before, color = buffer.copy(), np.array([10, 200, 255])
    got = frames.overlay(frame, mask, (10, 200, 255), alpha, thickness)
    assert got is frame
    source = before[:, : 3 * 150].reshape(80, 150, 3)
    blended = np.floor(source * (1 - alpha) + color * alpha + 0.5)
    edge = frames.outline(mask, thickness) if thickness else np.zeros_like(mask)
    expected = np.where((mask > 0)[..., None], blended, source)
    expected = np.where(edge[..., None] > 0, color, expected)
    assert np.abs(frame - expected).max() <= 1  # alpha is rounded to 1/256
    np.testing.assert_array_equal(frame[mask == 0], source[mask == 0])
    np.testing.assert_array_equal(buffer[:, 450:], before[:, 450:])


def test_overlay_takes_a_mask_result_and_bool() -> None:
    mask = blobs(40, 50)
    one, two = np.zeros((2, 40, 50, 3), np.uint8)
    frames.overlay(one, frames.Mask(mask, int(mask.sum())))
    frames.overlay(two, mask.astype(bool))
    np.testing.assert_array_equal(one, two)
    assert one.any()


@pytest.mark.parametrize("shape", [(60, 83), (1, 40), (40, 1), (1, 1), (17, 64)])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_rle_is_cocos(shape: tuple[int, int], share: float) -> None:
    mask = blobs(*shape) if share == 0.5 else np.full(shape, int(share), np.uint8)
    column_order = np.concatenate([[0], mask.ravel("F"), [2]])
    changes = np.flatnonzero(np.diff(column_order)) if mask.flat[0] == 0 else None
    if changes is None:
        changes = np.concatenate([[0], np.flatnonzero(np.diff(column_order[1:])) + 1])
    rle = frames.encode_rle(mask)
    assert rle["size"] == list(shape)
    assert rle["counts"] == np.diff(np.concatenate([[0], changes])).tolist()
    np.testing.assert_array_equal(frames.decode_rle(rle), mask)
    assert frames.Mask(mask, 0).rle == rle
