"""Masks at a frame's size: regions, outlines and run lengths."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from kernels.arrays import Array, checked_size, empty_like, extension, stream_of, view


class Rle(TypedDict):
    """Run lengths of a mask as COCO writes them; ``size`` is [height, width]."""

    size: list[int]
    counts: list[int]


@dataclass(frozen=True)
class Mask:
    """A mask at the frame's size, and what is derived from it when asked for.

    Attributes:
        mask: uint8 [H, W]; 0 background, 1 foreground, or the class index. Numpy, or a tensor for
            logits on a GPU; then regions and run lengths copy it to the CPU once.
        area: Number of pixels that are not 0.
    """

    mask: Array
    area: int

    @cached_property
    def on_cpu(self) -> npt.NDArray[np.uint8]:
        """The mask as a numpy array."""
        array = self.mask if isinstance(self.mask, np.ndarray) else self.mask.cpu().numpy()
        pixels: npt.NDArray[np.uint8] = array
        return pixels

    @cached_property
    def regions(self) -> list[tuple[int, int, int, int, int]]:
        """Connected components (8 neighbours) as (x, y, width, height, area), largest first."""
        found: list[tuple[int, int, int, int, int]] = extension().regions(self.on_cpu)
        return found

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Their bounding boxes (x, y, width, height) in pixels, the largest area first."""
        return [region[:4] for region in self.regions]

    @cached_property
    def outline(self) -> Array:
        """uint8 [H, W]: 1 on mask pixels that touch the background or the frame's edge."""
        return outline(self.mask, 1)

    @cached_property
    def rle(self) -> Rle:
        """COCO's uncompressed run lengths, see :func:`encode_rle`."""
        return encode_rle(self.on_cpu)


def outline(mask: Array, thickness: int, *, stream: object = None) -> Array:
    """Return uint8 [H, W]: 1 on mask pixels within ``thickness`` of background or the frame's edge.

    Args:
        mask: uint8 or bool [H, W].
        thickness: 1 to 64 rows and columns.
        stream: CUDA stream for a mask on a GPU.
    """
    pixels = view(mask, "mask")
    out = empty_like(pixels, tuple(pixels.shape), np.uint8, stream)
    extension().outline(pixels, thickness, view(out, "out"), stream_of(pixels, stream))
    return out


def encode_rle(mask: Array) -> Rle:
    """Return {"size": [H, W], "counts": [...]}: run lengths, background first.

    The order is COCO's: down the columns, from left to right. ``pycocotools`` takes it as
    uncompressed RLE.
    """
    pixels = view(mask, "mask")
    return {"size": list(pixels.shape), "counts": extension().encode_rle(pixels)}


def decode_rle(rle: Rle) -> npt.NDArray[np.uint8]:
    """Return the mask, uint8 [H, W] of 0 and 1, that :func:`encode_rle` wrote."""
    try:
        counts, (height, width) = list(rle["counts"]), rle["size"]
    except (KeyError, TypeError, ValueError) as error:
        raise TypeError(
            f"rle is {str(rle)[:60]}; expected {{'size': [height, width], 'counts': [integers]}}"
        ) from error
    out = np.empty(checked_size((height, width)), np.uint8)
    extension().decode_rle(counts, out)
    return out
