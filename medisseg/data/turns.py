"""How a mask is turned so that it lies on its image as the image is seen.

Cameras store an orientation beside the pixels. Images are turned by theirs; a mask may have been
drawn on the stored pixels or on the turned ones, with an orientation of its own or without.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medisseg.data.masks import MaskConvention, apply, read_stored
from medisseg.data.reading import BadFile, Header, Range, orient, read_header, read_image

ASKED = 32  # images that decide for a folder


def seen_turn(image: Header, own: int, mask: tuple[int, ...], seen: tuple[int, ...]) -> int | None:
    """Return the orientation still to be applied to a mask that is turned by its own already.

    Args:
        image: Header of its image.
        own: The mask's own orientation.
        mask: Its (height, width), turned by ``own``.
        seen: The image's (height, width) as it is seen.

    Returns:
        1 for none; None where the size does not tell and the folder has to decide.
    """
    turn = image.orientation
    if own != 1 or turn == 1 or image.kind == "TIFF":
        return 1
    if turn >= 5 and seen[0] != seen[1]:
        return turn if mask == (seen[1], seen[0]) else 1
    return None


def votes_for_turn(
    pairs: Sequence[tuple[Path, Path]], convention: MaskConvention, scale: Range | None
) -> bool:
    """Return whether masks lie on their images better when they are turned as these are.

    The outline of a region follows an edge of the image: compared is the mean brightness step
    along the masks' outlines, over up to :data:`ASKED` images that have an orientation.
    """
    asked: list[tuple[Path, Path]] = []
    for image, path in pairs:
        if len(asked) < ASKED and read_header(image).orientation != 1:
            asked.append((image, path))
    turned = as_is = 0.0
    for image, path in asked:
        try:
            pixels = read_image(image, scale).astype(np.float32).mean(2)
            stored = read_stored(path)
            mask = apply(stored, convention, path=path)[0]
        except BadFile:
            continue  # said when its turn to be read comes
        other = orient(mask, read_header(image).orientation)
        if stored.orientation == 1 and mask.shape == other.shape == pixels.shape:
            edges = np.hypot(*np.gradient(pixels))
            as_is += _along_outline(edges, mask)
            turned += _along_outline(edges, other)
    return turned > as_is


def _along_outline(edges: npt.NDArray[np.float32], mask: npt.NDArray[np.uint8]) -> float:
    outline = np.hypot(*np.gradient(mask.astype(np.float32))) > 0
    return float(edges[outline].mean()) if outline.any() else 0.0
