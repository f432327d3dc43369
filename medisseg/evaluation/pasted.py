"""Lesions put into images without any: is a network silent for want of lesions, or by the look?

A network whose images without lesion come from one scope and whose lesions from others can learn
the scope. On images without lesion alone the two look the same. Here the labelled images' lesions
stand in them, and beside them patches of mucosa put in the same way, which are none. Blended by
Poisson editing (Perez et al., SIGGRAPH 2003; OpenCV), another seam than training's
(:mod:`medisseg.data.paste`), so that a network that learned that one gains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medisseg.data.folder import Sample
from medisseg.data.paste import LARGEST, around

Pixels = npt.NDArray[np.uint8]
ROOM = 0.04  # around a lesion: of the lesion's image's shorter side
SEAM = 5  # pixels at least: OpenCV takes three off the outline
DARK = 24  # of 255: the black border of a picture is not put in
TRIES = 500


class Pasted(Sequence[Sample]):
    """Labelled images' lesions in images without, each at its own share of the frame.

    Args:
        lesions: Labelled images.
        negatives: Images without lesion; each takes its turn.
        which: Indices of the labelled images that hold a lesion.
        mucosa: Put in a patch of the labelled image's mucosa of the same outline instead; the
            mask stays empty.
        seed: Of the places.
    """

    def __init__(
        self,
        lesions: Sequence[Sample],
        negatives: Sequence[Sample],
        which: Sequence[int],
        mucosa: bool = False,
        seed: int = 0,
    ) -> None:
        self.lesions, self.negatives, self.which = lesions, negatives, which
        self.mucosa, self.seed = mucosa, seed
        self.turns = np.random.default_rng(seed).permutation(len(negatives))

    def __len__(self) -> int:
        return len(self.which)

    # One image at a time, no slices, as SegmentationFolder and Negatives.
    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        donor = self.lesions[self.which[index]]
        clean = self.negatives[int(self.turns[index % len(self.turns)])]
        random = np.random.default_rng((self.seed, index))
        labels = donor.mask if donor.void is None else np.where(donor.void, 0, donor.mask)
        image, mask = put_in(clean.image, donor.image, labels, random, self.mucosa)
        return Sample(image, mask, f"{donor.name} in {clean.name}")


def put_in(
    image: Pixels, donor: Pixels, labels: Pixels, random: np.random.Generator, mucosa: bool = False
) -> tuple[Pixels, Pixels]:
    """Return an image with another's lesion, and its labels.

    Args:
        image: uint8 RGB [H, W, 3] without lesion.
        donor: uint8 RGB [h, w, 3] with one.
        labels: The donor's class indices uint8 [h, w], 0 = background; not all background.
        random: Chooses the place.
        mucosa: Put in a patch beside the lesion, of its outline (where that finds no room, of one
            half as large, and so on); the labels stay empty. The image comes back as it is where
            nothing but lesion and darkness is.
    """
    import cv2

    shorter = min(labels.shape)
    room = max(6, round(ROOM * shorter))
    window = around(labels > 0, 2 * room)
    patch, shape = donor[window], labels[window]
    mask = np.zeros(image.shape[:2], np.uint8)
    if mucosa:
        square = np.ones((2 * room + 1, 2 * room + 1), np.uint8)
        near = cv2.dilate((labels > 0).astype(np.uint8), square) > 0
        taken = near | (donor.max(2) < DARK)
        while (moved := beside(taken, shape > 0, random)) is None:
            if shape.size == 1:
                return image, mask
            shape = shape[::2, ::2]
        patch = donor[moved]
    factor = min(image.shape[:2]) / shorter
    factor = min(factor, LARGEST * min(image.shape[:2]) / max(shape.shape))
    height, width = (
        min(max(8, round(side * factor)), whole)
        for side, whole in zip(shape.shape, image.shape, strict=False)
    )
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    patch = np.asarray(cv2.resize(patch, (width, height), interpolation=how), np.uint8)
    shape = np.asarray(
        cv2.resize(shape, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8
    )
    side = 2 * max(SEAM, round(room * factor)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    seam = cv2.dilate((shape > 0).astype(np.uint8), kernel) & (
        (patch.max(2) >= DARK) | (shape > 0)
    ).astype(np.uint8)
    seam[[0, -1]] = seam[:, [0, -1]] = 0
    down = int(random.integers(0, image.shape[0] - height + 1))
    across = int(random.integers(0, image.shape[1] - width + 1))
    if not seam.any():  # a lesion of a pixel at the border
        return image, mask
    left, top, wide, high = cv2.boundingRect(seam)
    middle = across + left + wide // 2, down + top + high // 2
    blended = cv2.seamlessClone(patch, image, 255 * seam, middle, cv2.NORMAL_CLONE)
    if not mucosa:
        mask[down : down + height, across : across + width] = shape
    return np.asarray(blended, np.uint8), mask


def beside(
    taken: npt.NDArray[np.bool_], outline: npt.NDArray[np.bool_], random: np.random.Generator
) -> tuple[slice, slice] | None:
    """Return rows and columns of [H, W] where an outline [h, w] covers nothing that is taken; None
    where none was found."""
    height, width = outline.shape
    for _ in range(TRIES):
        down = int(random.integers(0, taken.shape[0] - height + 1))
        across = int(random.integers(0, taken.shape[1] - width + 1))
        moved = slice(down, down + height), slice(across, across + width)
        if not taken[moved][outline].any():
            return moved
    return None
