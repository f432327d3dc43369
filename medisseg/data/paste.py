"""Lesions put into images without any, so that where an image comes from does not tell.

A network that sees lesions from some scopes only, and mucosa without lesions from others, learns to
be silent by the scope. Here an image without lesion gets one of another image of its batch (Ghiasi
et al., Simple Copy-Paste, CVPR 2021), or, as often, a patch of that image's mucosa of the same
outline, which stays background: neither the scope nor the seam says what is a lesion.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medisseg.losses.mask import VOID

Image = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]
Random = np.random.Generator
MARGIN = 24  # pixels of the donor around the lesion: the seam's room
LARGEST = 0.7  # a patch's longest side, of the image's shorter one
TRIES = 20


def paste(
    images: Tensor, masks: Tensor, probability: float, key: Sequence[int], indices: Tensor
) -> tuple[Tensor, Tensor]:
    """Give images without lesion one of their batch, or a patch of mucosa.

    Args:
        images: Float RGB [B, 3, H, W] in [0, 1]; what a GPU holds goes through the CPU and back.
        masks: Class indices uint8 [B, H, W], 255 = void.
        probability: Per image without lesion; 0: nothing is changed.
        key: Non-negative integers that name the occasion, e.g. (use, seed, stage, epoch).
        indices: Of the images, int64 [B].

    Returns:
        The images and masks, others where something was put in.
    """
    if probability == 0:
        return images, masks
    labels = masks.cpu().numpy()
    lesions = (labels > 0) & (labels != VOID)
    donors = np.flatnonzero(lesions.any((1, 2)))
    chosen = []
    for empty in np.flatnonzero(~(labels > 0).any((1, 2))):
        random = np.random.default_rng((*key, int(indices[empty])))
        if len(donors) and random.random() < probability:
            chosen.append((int(empty), int(random.choice(donors)), random))
    if not chosen:
        return images, masks
    images, masks = images.clone(), masks.clone()
    for k, donor, random in chosen:
        clean, other = (_pixels(images[one]) for one in (k, donor))
        image, label = paste_one(clean, other, labels[donor] * lesions[donor], random)
        images[k] = torch.from_numpy(image).permute(2, 0, 1).to(images.device, images.dtype)
        masks[k] = torch.from_numpy(label).to(masks.device)
    return images, masks


def _pixels(image: Tensor) -> Image:
    pixels: Image = image.float().permute(1, 2, 0).cpu().numpy()
    return pixels


def paste_one(image: Image, donor: Image, labels: Labels, random: Random) -> tuple[Image, Labels]:
    """Return an image with a lesion of another, or with a patch of its mucosa, and its labels.

    Args:
        image: Float RGB [H, W, 3] without lesion.
        donor: Float RGB [h, w, 3] with one.
        labels: The donor's class indices uint8 [h, w], 0 = background.
        random: Decides on all else.
    """
    import cv2

    empty = np.zeros(image.shape[:2], np.uint8)
    window = around(labels > 0, MARGIN)
    patch, shape = donor[window], labels[window]
    if decoy := random.random() < 0.5:
        moved = elsewhere(labels > 0, window, random)
        if moved is None:
            return image, empty
        patch = donor[moved]
    factor = min(random.uniform(0.5, 1.2), LARGEST * min(image.shape[:2]) / max(shape.shape))
    height, width = (max(4, round(side * factor)) for side in shape.shape)
    patch = np.asarray(cv2.resize(patch, (width, height), interpolation=cv2.INTER_LINEAR))
    shape = np.asarray(cv2.resize(shape, (width, height), interpolation=cv2.INTER_NEAREST))
    down = int(random.integers(0, image.shape[0] - height + 1))
    across = int(random.integers(0, image.shape[1] - width + 1))
    place = np.s_[down : down + height, across : across + width]
    grown = 2 * int(random.integers(1, 7)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (grown, grown))
    covered = cv2.dilate((shape > 0).astype(np.float32), kernel)
    share = cv2.GaussianBlur(covered, (0, 0), random.uniform(0.7, 4))[..., None]
    patch = matched(patch, image[place], share[..., 0] < 0.5, random.random())
    image = image.copy()
    image[place] = share * patch + (1 - share) * image[place]
    if not decoy:
        empty[place] = shape
    return image.clip(0, 1), empty


def around(lesion: npt.NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    """Return the rows and columns of what is true in [H, W], with a margin, inside the image."""
    rows, columns = (np.flatnonzero(lesion.any(axis)) for axis in (1, 0))
    height, width = lesion.shape
    return (
        slice(max(0, int(rows[0]) - margin), min(height, int(rows[-1]) + 1 + margin)),
        slice(max(0, int(columns[0]) - margin), min(width, int(columns[-1]) + 1 + margin)),
    )


def elsewhere(
    lesion: npt.NDArray[np.bool_], window: tuple[slice, slice], random: Random
) -> tuple[slice, slice] | None:
    """Return a window of the same size without lesion; None where none was found."""
    height, width = (one.stop - one.start for one in window)
    for _ in range(TRIES):
        down = int(random.integers(0, lesion.shape[0] - height + 1))
        across = int(random.integers(0, lesion.shape[1] - width + 1))
        moved = slice(down, down + height), slice(across, across + width)
        if not lesion[moved].any():
            return moved
    return None


def matched(patch: Image, there: Image, ring: npt.NDArray[np.bool_], strength: float) -> Image:
    """Bring a patch [h, w, 3] nearer to the colours of the place where it goes.

    Mean and spread of every channel over ``ring`` [h, w], what surrounds the lesion, are those of
    ``there`` at a strength of 1, and the patch's own at 0.
    """
    if not ring.any():
        return patch
    old, new = patch[ring], there[ring]
    gain = np.clip(new.std(0) / np.maximum(old.std(0), 1e-3), 0.5, 2)
    moved = (patch - old.mean(0)) * gain + new.mean(0)
    both: Image = (strength * moved + (1 - strength) * patch).astype(np.float32)
    return both
