"""Pictures of masks: what was found, what was missed and what was found falsely, in colour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medisseg.colors import FALSE, FOUND, MISSED, PALETTE, Color
from medisseg.labels import Label

Picture = npt.NDArray[np.uint8]

COLORS = {
    "found (true)": FOUND,
    "missed (in the reference only)": MISSED,
    "false (in the prediction only)": FALSE,
}


def compare(
    image: Picture | None,
    pred: npt.NDArray[np.number],
    true: npt.NDArray[np.number],
    alpha: float = 0.45,
) -> Picture:
    """Colour the found, missed and false areas of a prediction.

    Args:
        image: uint8 RGB [H, W, 3]; None paints the masks and outlines alone, on white, for places
            where the data's licence forbids the image itself.
        pred: Predicted class indices [H, W]; a wrong class counts as missed.
        true: Reference class indices [H, W].
        alpha: Strength of the colour inside the areas, 0 to 1; outlines are always full.
    """
    canvas = np.full((*true.shape, 3), 255, np.uint8) if image is None else image
    areas = [
        (FOUND, (pred == true) & (true > 0)),
        (MISSED, (true > 0) & (pred != true)),
        (FALSE, (pred > 0) & (true == 0)),
    ]
    return paint(canvas, areas, alpha)


def overlay(
    image: Picture, mask: npt.NDArray[np.number], labels: Sequence[Label] = (), alpha: float = 0.35
) -> Picture:
    """Lay a mask of class indices [H, W] over an image uint8 RGB [H, W, 3], outlined."""
    classes = [int(index) for index in np.unique(mask) if index]
    return paint(image, [(class_color(index, labels), mask == index) for index in classes], alpha)


def class_color(index: int, labels: Sequence[Label] = ()) -> Color:
    """Return the RGB colour of a class: its label's, or the palette's (which comes again)."""
    if index <= len(labels):
        return labels[index - 1].color
    return PALETTE[(index - 1) % len(PALETTE)]


def paint(
    image: Picture, areas: Sequence[tuple[Color, npt.NDArray[np.bool_]]], alpha: float
) -> Picture:
    """Return a copy with each area tinted in its colour and outlined, the line within the area.

    Args:
        image: uint8 RGB [H, W, 3].
        areas: RGB colour and mask bool [H, W] of each; later ones lie over earlier ones.
        alpha: Strength of the tint, 0 to 1.
    """
    painted = image.astype(np.float32)
    line = max(1, round(min(image.shape[:2]) / 250))
    for color, area in areas:
        tone = np.array(color, np.float32)
        painted[area] += alpha * (tone - painted[area])
        core = ndimage.minimum_filter(area.astype(np.uint8), 2 * line + 1, mode="constant", cval=0)
        painted[area & (core == 0)] = tone
    return np.rint(painted).astype(np.uint8)


def side_by_side(*pictures: Picture, gap: int = 4) -> Picture:
    """Join pictures [H, W, 3] of one height from left to right, with a white gap in pixels."""
    height = pictures[0].shape[0]
    space = np.full((height, gap, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, space)]
    return np.concatenate(parts[:-1], 1)


def shrink(picture: Picture, side: int = 512) -> Picture:
    """Return a picture [H, W, 3] with its longer side at most ``side`` pixels, averaged."""
    from PIL import Image

    height, width = picture.shape[:2]
    ratio = side / max(height, width)
    if ratio >= 1:
        return picture
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
