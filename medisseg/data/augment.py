"""Random changes of a batch, drawn per image, on the batch's device, with kornia.

Every number an image needs is drawn from (seed, stage, epoch, image), never from a running
generator: a resumed run continues with the same draws, and several processes draw what one would.
Image and mask go through one warp; the background's mask is the complement of the warped mask.
"""

from __future__ import annotations

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
from kornia.geometry.transform import get_affine_matrix2d, warp_affine
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
        size = (images.shape[2], images.shape[3])
        which = moved.nonzero().flatten()
        images, masks = images.clone(), masks.clone()
        warped = warp_affine(
            images[which], matrix[which], size, padding_mode="reflection", align_corners=True
        )
        labels = warp_affine(
            masks[which].unsqueeze(1).float(), matrix[which], size, mode="nearest",
            padding_mode="reflection", align_corners=True,
        )  # fmt: skip
        images[which] = warped
        masks[which] = labels.squeeze(1).round().to(masks.dtype)
    return _holes(images, config, uniform[:, 8:]), masks


def _matrix(images: Tensor, config: AugmentConfig, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Return the forward map of pixel coordinates [B, 2, 3] and which images move, bool [B]."""
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
    return (matrix @ mirror)[:, :2].to(images), moved.to(images.device)


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
    uniform = uniform.to(images.device)
    jittered = (uniform[:, 0] < config.jitter_p).nonzero().flatten()
    if len(jittered) and max(config.jitter) > 0:
        images = images.index_copy(
            0, jittered, _jitter(images[jittered], config, uniform[jittered])
        )
    grayed = (uniform[:, 5] < config.gray_p).nonzero().flatten()
    if len(grayed):
        gray = rgb_to_grayscale(images[grayed]).expand(-1, 3, -1, -1)
        images = images.index_copy(0, grayed, gray)
    if config.blur_p > 0:
        images = _blur(images, config, uniform[:, 6])
    return images


def _jitter(images: Tensor, config: ColorConfig, uniform: Tensor) -> Tensor:
    change = (2 * uniform[:, 1:5] - 1) * uniform.new_tensor(config.jitter)
    images = adjust_brightness_accumulative(images, 1 + change[:, 0])
    images = adjust_contrast_with_mean_subtraction(images, 1 + change[:, 1])
    images = adjust_saturation_with_gray_subtraction(images, 1 + change[:, 2])
    return adjust_hue(images, 2 * math.pi * change[:, 3]) if config.jitter[3] else images


def _blur(images: Tensor, config: ColorConfig, uniform: Tensor) -> Tensor:
    """Blur with probability ``blur_p``; one draw decides whether and, rescaled, how much."""
    which = (uniform < config.blur_p).nonzero().flatten()
    if not len(which):
        return images
    low, high = config.blur
    sigma = low + (high - low) * uniform[which] / config.blur_p
    side = 2 * math.ceil(2.5 * high) + 1  # 2.5 sigma holds 98.8% of the Gaussian
    blurred = gaussian_blur2d(
        images[which], (side, side), sigma.unsqueeze(1).expand(-1, 2), border_type="replicate"
    )
    return images.index_copy(0, which, blurred)


def normalize(images: Tensor, convention: InputConvention) -> Tensor:
    """Turn RGB in [0, 1], float [B, 3, h, w], into the convention's input."""
    if convention.color == "BGR":
        images = images.flip(1)
    mean = images.new_tensor(convention.mean).view(3, 1, 1)
    std = images.new_tensor(convention.std).view(3, 1, 1)
    return (images * (255 * convention.scale) - mean) / std


def to_size(images: Tensor, masks: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Resize a batch: images bilinear without antialiasing, masks nearest (half-pixel centres)."""
    if tuple(images.shape[2:]) == size:
        return images, masks
    images = functional.interpolate(images, size, mode="bilinear", align_corners=False)
    labels = functional.interpolate(masks.unsqueeze(1).float(), size, mode="nearest-exact")
    return images, labels.squeeze(1).to(masks.dtype)
