"""Random changes of a batch, drawn per image, on the batch's device, with kornia.

Every number an image needs is drawn from (seed, stage, epoch, image), never from a running
generator: a resumed run continues with the same draws, and several processes draw what one would.
Image and mask go through one warp; the background's mask is the complement of the warped mask.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from kornia.color import rgb_to_grayscale
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
)
from kornia.filters import gaussian_blur2d
from kornia.geometry.conversions import normalize_homography
from kornia.geometry.transform import get_affine_matrix2d
from torch import Tensor
from torch.nn import functional

from medisseg.convention import InputConvention
from medisseg.data.options import AugmentConfig, ColorConfig

MOST_HOLES = 32
GEOMETRY_DRAWS = 10 + 2 * MOST_HOLES
COLOR_DRAWS = 7


def draws(key: Sequence[int], images: Tensor, count: int) -> Tensor:
    """Return uniform numbers in [0, 1), float32 [B, count], one row an image.

    Args:
        key: Non-negative integers that name the occasion, e.g. (seed, stage, epoch).
        images: Indices of the images, int64 [B].
        count: Numbers an image.
    """
    rows = [np.random.default_rng((*key, int(index))).random(count) for index in images]
    return torch.from_numpy(np.stack(rows)).float()


def geometry(
    images: Tensor, masks: Tensor, config: AugmentConfig, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Flip, turn, zoom and shift images and masks together, then cut holes into the images.

    Args:
        images: Float [B, 3, H, W] in [0, 1].
        masks: Class indices uint8 [B, H, W].
        config: Ranges and probabilities.
        uniform: Draws, float32 [B, GEOMETRY_DRAWS].

    Returns:
        The changed images and masks; what comes in from outside is mirrored, in both.
    """
    matrix, moved = _matrix(images, config, uniform)
    if moved.any():
        which = _chosen(moved, images.device)
        images, masks = images.clone(), masks.clone()
        here, labels = images[which], masks[which].unsqueeze(1).float()
        grid = functional.affine_grid(
            _sent(matrix[moved].to(images.dtype), images.device), list(here.shape), True
        )
        sample = functools.partial(
            functional.grid_sample, grid=grid, padding_mode="reflection", align_corners=True
        )
        images[which] = sample(here)
        masks[which] = sample(labels, mode="nearest").squeeze(1).round().to(masks.dtype)
    return _holes(images, config, uniform[:, 8:]), masks


def _matrix(images: Tensor, config: AugmentConfig, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each output pixel comes from, [B, 2, 3] in [-1, 1], and which images move.

    Both on the CPU: a GPU would be waited for.
    """
    count, _, height, width = images.shape
    turned = uniform[:, 0] < config.rotate_p
    angle = torch.where(turned, (2 * uniform[:, 1] - 1) * config.rotate, 0.0)
    flips = uniform[:, 2:4] < uniform.new_tensor([config.flip_horizontal_p, config.flip_vertical_p])
    zoomed = uniform[:, 4] < config.scale_p
    low, high = config.scale
    zoom = torch.where(zoomed, low * (high / low) ** uniform[:, 5], 1.0)
    shift = (2 * uniform[:, 6:8] - 1) * config.shift * uniform.new_tensor([width, height])
    center = uniform.new_tensor([(width - 1) / 2, (height - 1) / 2]).expand(count, 2)
    matrix = get_affine_matrix2d(shift, center, zoom.unsqueeze(1).expand(count, 2), angle)
    sign = 1.0 - 2.0 * flips
    mirror = torch.diag_embed(torch.cat([sign, sign.new_ones(count, 1)], 1))
    mirror[:, :2, 2] = center * (1 - sign)
    moved = turned | zoomed | flips.any(1) | (shift != 0).any(1)
    forward = normalize_homography(matrix @ mirror, (height, width), (height, width))
    return torch.linalg.inv(forward)[:, :2], moved


def _chosen(which: Tensor, device: torch.device) -> Tensor:
    """Indices of what is True, on the images' device."""
    return _sent(which.nonzero().flatten(), device)


def _sent(x: Tensor, device: torch.device) -> Tensor:
    """To the images' device; a GPU that is busy with the step before is not waited for."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def _holes(images: Tensor, config: AugmentConfig, uniform: Tensor) -> Tensor:
    """Blacken up to ``config.holes`` squares of an image."""
    if config.holes_p == 0 or config.holes == 0:
        return images
    height, width = images.shape[2:]
    side = max(1, round(config.hole_size * height)), max(1, round(config.hole_size * width))
    images = images.clone()
    for index in (uniform[:, 0] < config.holes_p).nonzero().flatten().tolist():
        count = 1 + int(uniform[index, 1] * config.holes)
        for hole in range(count):
            across, down = uniform[index, 2 + 2 * hole : 4 + 2 * hole].tolist()
            top, left = int(down * (height - side[0] + 1)), int(across * (width - side[1] + 1))
            images[index, :, top : top + side[0], left : left + side[1]] = 0
    return images


def color(images: Tensor, config: ColorConfig, uniform: Tensor) -> Tensor:
    """Change brightness, contrast, saturation, hue, colourfulness and sharpness, each per image.

    Args:
        images: Float RGB [B, 3, H, W] in [0, 1].
        config: Ranges and probabilities.
        uniform: Draws, float32 [B, COLOR_DRAWS].
    """
    device, picked = images.device, uniform[:, 0] < config.jitter_p
    if picked.any() and max(config.jitter) > 0:
        jittered = _chosen(picked, device)
        images = images.index_copy(0, jittered, _jitter(images[jittered], config, uniform[picked]))
    grayed = _chosen(uniform[:, 5] < config.gray_p, device)
    if len(grayed):
        gray = rgb_to_grayscale(images[grayed]).expand(-1, 3, -1, -1)
        images = images.index_copy(0, grayed, gray)
    if config.blur_p > 0:
        images = _blur(images, config, uniform[:, 6])
    return images


def _jitter(images: Tensor, config: ColorConfig, uniform: Tensor) -> Tensor:
    change = _sent((2 * uniform[:, 1:5] - 1) * uniform.new_tensor(config.jitter), images.device)
    images = adjust_brightness_accumulative(images, 1 + change[:, 0])
    images = adjust_contrast_with_mean_subtraction(images, 1 + change[:, 1])
    images = adjust_saturation_with_gray_subtraction(images, 1 + change[:, 2])
    return adjust_hue(images, 2 * math.pi * change[:, 3]) if config.jitter[3] else images


def _blur(images: Tensor, config: ColorConfig, uniform: Tensor) -> Tensor:
    """Blur with probability ``blur_p``; one draw decides whether and, rescaled, how much."""
    blurry = uniform < config.blur_p
    if not blurry.any():
        return images
    low, high = config.blur
    which = _chosen(blurry, images.device)
    sigma = _sent(low + (high - low) * uniform[blurry] / config.blur_p, images.device)
    side = 2 * math.ceil(2.5 * high) + 1  # 2.5 sigma holds 98.8% of the Gaussian
    blurred = gaussian_blur2d(
        images[which], (side, side), sigma.unsqueeze(1).expand(-1, 2), border_type="replicate"
    )
    return images.index_copy(0, which, blurred)


def normalize(images: Tensor, convention: InputConvention) -> Tensor:
    """Turn RGB in [0, 1], float [B, 3, h, w], into the convention's input."""
    if convention.color == "BGR":
        images = images.flip(1)
    mean, std = (
        _sent(torch.tensor(values, dtype=images.dtype).view(3, 1, 1), images.device)
        for values in (convention.mean, convention.std)
    )
    return (images * (255 * convention.scale) - mean) / std


def to_size(images: Tensor, masks: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Resize images [B, 3, h, w] and masks [B, h, w] to ``size`` (height, width).

    Images bilinear without antialiasing, masks nearest (half-pixel centres).
    """
    if tuple(images.shape[2:]) == size:
        return images, masks
    images = functional.interpolate(images, size, mode="bilinear", align_corners=False)
    labels = functional.interpolate(masks.unsqueeze(1).float(), size, mode="nearest-exact")
    return images, labels.squeeze(1).to(masks.dtype)
