"""Augmentation: image and mask move together, draws belong to the image and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from medisseg.convention import InputConvention
from medisseg.data import augment
from medisseg.data.options import AugmentConfig, ColorConfig

STRONG = AugmentConfig(
    rotate=45, rotate_p=0.7, flip_horizontal_p=0.5, flip_vertical_p=0.5, scale=(0.7, 1.4),
    scale_p=0.7, shift=0.1,
)  # fmt: skip


def blobs(count: int = 16, side: int = 64) -> torch.Tensor:
    """Smooth random masks, uint8 [count, side, side]."""
    noise = torch.randn(count, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    smooth = functional.interpolate(noise, (side, side), mode="bicubic")
    return (smooth[:, 0] > 0.3).to(torch.uint8)


def draws(count: int = 16, epoch: int = 0) -> torch.Tensor:
    return augment.draws((7, epoch), torch.arange(count), augment.GEOMETRY_DRAWS)


def test_image_and_mask_move_together() -> None:
    """An image made of its mask still equals it after the warp, up to interpolated edges."""
    masks = blobs()
    images = masks[:, None].float().expand(-1, 3, -1, -1)
    moved, labels = augment.geometry(images, masks, STRONG, draws())
    assert ((moved[:, 0] > 0.5) != labels.bool()).float().mean() < 0.01
    assert ((labels != masks).flatten(1).float().mean(1) > 0.05).sum() >= 14
    # A mask moved apart from its image would disagree on far more.
    assert ((moved[:, 0] > 0.5) != masks.bool()).float().mean() > 0.15


def test_flips_and_quarter_turns_are_exact() -> None:
    masks = blobs(2)
    images = torch.rand(2, 3, 64, 64)
    uniform = torch.full((2, augment.GEOMETRY_DRAWS), 0.5)
    flip = AugmentConfig(flip_horizontal_p=1.0)
    moved, labels = augment.geometry(images, masks, flip, uniform)
    torch.testing.assert_close(moved, images.flip(3), atol=1e-4, rtol=0)
    assert torch.equal(labels, masks.flip(2))
    turn = AugmentConfig(rotate=90, rotate_p=1.0)
    uniform[:, :2] = torch.tensor([0.5, 1.0])
    moved, labels = augment.geometry(images, masks, turn, uniform)
    torch.testing.assert_close(moved, torch.rot90(images, -1, (2, 3)), atol=1e-3, rtol=0)
    assert torch.equal(labels, torch.rot90(masks, -1, (1, 2)))


def test_zoom_enlarges_about_the_centre() -> None:
    mask = torch.zeros(1, 65, 65, dtype=torch.uint8)
    mask[:, 22:43, 22:43] = 1
    uniform = torch.full((1, augment.GEOMETRY_DRAWS), 0.5)
    double = AugmentConfig(scale=(2.0, 2.0), scale_p=1.0)
    _, labels = augment.geometry(torch.rand(1, 3, 65, 65), mask, double, uniform)
    assert int(labels.sum()) == pytest.approx(4 * 21 * 21, rel=0.05)


def test_nothing_asked_changes_nothing() -> None:
    images, masks = torch.rand(4, 3, 32, 32), blobs(4, 32)
    moved, labels = augment.geometry(images, masks, AugmentConfig(), draws(4))
    assert torch.equal(moved, images) and torch.equal(labels, masks)
    uniform = augment.draws((0,), torch.arange(4), augment.COLOR_DRAWS)
    assert torch.equal(augment.color(images, ColorConfig(), uniform), images)


def test_draws_belong_to_the_image_not_to_the_batch() -> None:
    whole = draws(16)
    assert torch.equal(augment.draws((7, 0), torch.tensor([5, 2]), 10), whole[[5, 2], :10])
    assert not torch.equal(draws(16, epoch=1), whole)
    assert 0.45 < float(whole.mean()) < 0.55


def test_holes_are_black_squares_within_the_image() -> None:
    config = AugmentConfig(holes=10, hole_size=0.125, holes_p=1.0)
    images, _ = augment.geometry(torch.ones(16, 3, 64, 64), blobs(), config, draws())
    black = (images[:, 0] == 0).flatten(1).sum(1)
    assert int(black.min()) >= 64 and int(black.max()) <= 640
    assert len(set(black.tolist())) > 5
    assert torch.equal(images[:, 0], images[:, 2])


def test_color_is_drawn_per_image_and_leaves_the_range() -> None:
    images = torch.rand(1, 3, 32, 32).expand(8, -1, -1, -1) * 0.5 + 0.25
    strong = ColorConfig(jitter=(0.3, 0.3, 0.3, 0.1), jitter_p=1.0)
    uniform = augment.draws((1,), torch.arange(8), augment.COLOR_DRAWS)
    changed = augment.color(images, strong, uniform)
    assert changed.min() >= 0 and changed.max() <= 1
    means = changed.mean((1, 2, 3))
    assert len({round(float(mean), 4) for mean in means}) == 8
    middle = torch.full((8, augment.COLOR_DRAWS), 0.5)  # the middle of every range: no change
    torch.testing.assert_close(augment.color(images, strong, middle), images, atol=1e-4, rtol=0)


def test_gray_and_blur() -> None:
    images = torch.rand(4, 3, 32, 32)
    uniform = augment.draws((1,), torch.arange(4), augment.COLOR_DRAWS)
    gray = augment.color(images, ColorConfig(gray_p=1.0), uniform)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    torch.testing.assert_close(gray[:, :1], (images * weights).sum(1, keepdim=True))
    assert torch.equal(gray[:, 0], gray[:, 2])
    dot = torch.zeros(1, 3, 33, 33)
    dot[:, :, 16, 16] = 1
    blurred = augment.color(dot, ColorConfig(blur=(2.0, 2.0), blur_p=1.0), uniform[:1])
    assert float(blurred[0, 0, 16, 16]) == pytest.approx(1 / (2 * math.pi * 4), rel=0.03)


def test_normalize_is_the_conventions_preprocessing() -> None:
    pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
    for convention in (
        InputConvention(size=(32, 32)),
        InputConvention(color="BGR", mean=(0, 0, 0), std=(1, 1, 1), size=(32, 32)),
        InputConvention(scale=1.0, mean=(104, 117, 124), std=(58, 57, 56), size=(32, 32)),
    ):
        ours = augment.normalize(pixels.permute(2, 0, 1)[None].float() / 255, convention)[0]
        theirs = torch.from_numpy(convention.preprocess(pixels.numpy()))
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_to_size_keeps_image_and_mask_aligned() -> None:
    masks = blobs(4)
    images, labels = augment.to_size(masks[:, None].float().expand(-1, 3, -1, -1), masks, (96, 96))
    assert images.shape == (4, 3, 96, 96) and labels.shape == (4, 96, 96)
    assert ((images[:, 0] > 0.5) != labels.bool()).float().mean() < 0.02
