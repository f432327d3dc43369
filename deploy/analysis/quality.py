"""The quality gate: frames that are dark, saturated, blurred or out of body are not segmented.

Four measures on a small copy of the frame. The limits let every one of the 317 frames of
CVC-ClinicDB's first sequences and 400 images of Kvasir-SEG pass: they are a gate against frames
that no one can read, not a judgement of the examination. Blur is measured as in Crete et al. 2007
("The blur effect"): a sharp picture changes much when it is blurred again, a blurred one little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

GOOD = "good"
WIDTH = 192  # pixels of the small copy
LIT = 24  # luma above which a pixel belongs to the picture, not to the dark corners


@dataclass(frozen=True)
class QualityLimits:
    """Limits beyond which a frame is not segmented.

    Attributes:
        dark: Least mean luma of the frame, [0, 255] (CVC-ClinicDB: 36 and more).
        saturated: Largest share of pixels that are white (Kvasir-SEG: at most 0.06).
        redness: Least mean of R - B over the lit pixels: mucosa is red (28 and more), rooms not.
        blurred: Largest blur effect in the middle of the frame, 0 (sharp) to 1 (CVC-ClinicDB: at
            most 0.61; the same frames under a Gaussian of 1/40 of their width: 0.70).
    """

    dark: float = 16.0
    saturated: float = 0.5
    redness: float = 6.0
    blurred: float = 0.65


class QualityGate:
    """Classifies frames as "good", "dark", "saturated", "out of body" or "blurred".

    Example:
        >>> QualityGate()(np.zeros((480, 640, 3), np.uint8))
        'dark'
    """

    def __init__(self, limits: QualityLimits | None = None) -> None:
        self.limits = limits or QualityLimits()

    def __call__(self, rgb: npt.NDArray[np.uint8]) -> str:
        """Return the class of a frame uint8 RGB [H, W, 3], by the first limit that it breaks."""
        measured = measure(rgb)
        if measured["dark"] < self.limits.dark:
            return "dark"
        if measured["saturated"] > self.limits.saturated:
            return "saturated"
        if measured["redness"] < self.limits.redness:
            return "out of body"
        if measured["blurred"] > self.limits.blurred:
            return "blurred"
        return GOOD


def measure(rgb: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Return the four measures of a uint8 RGB frame [H, W, 3], by the names of the limits."""
    import cv2

    height, width = rgb.shape[:2]
    size = WIDTH, max(8, round(WIDTH * height / width))
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_NEAREST)  # 0.03 ms; averaging takes 1.2
    luma = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)
    lit = luma > LIT
    red, green, blue = cv2.split(small)
    excess = cv2.subtract(red, blue, dtype=cv2.CV_16S)
    return {
        "dark": cv2.mean(luma)[0],
        "saturated": float((np.minimum(np.minimum(red, green), blue) >= 250).mean()),
        "redness": cv2.mean(excess, lit.view(np.uint8))[0],
        "blurred": blur_effect(luma),
    }


def blur_effect(luma: npt.NDArray[np.uint8]) -> float:
    """Return Crete's blur effect of the middle of a grey picture [H, W], in [0, 1]."""
    import cv2

    height, width = luma.shape
    middle = luma[height // 6 : height - height // 6, width // 6 : width - width // 6]
    effects = []
    for axis, kernel in ((0, (1, 9)), (1, (9, 1))):
        values = middle.astype(np.float32)
        change = np.abs(np.diff(values, axis=axis))
        again = np.abs(np.diff(cv2.blur(values, kernel), axis=axis))
        total = float(change.sum())
        lost = float(np.maximum(0, change - again).sum())
        effects.append(1 - lost / total if total > 0 else 1.0)
    return max(effects)
