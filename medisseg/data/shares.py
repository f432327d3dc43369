"""How much of the masks is foreground, in words, and whether that can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Above this mean foreground, masks may mark the background: lesions rarely fill most of an image.
MOSTLY = 0.6


def foreground_line(shares: npt.NDArray[np.float64] | Sequence[float]) -> str:
    """Return mean foreground and the numbers of empty and full masks; shares [N] in [0, 1]."""
    values = np.asarray(shares, np.float64)
    if not values.size:
        return "no masks"
    return (
        f"mean foreground {values.mean():.1%} of {values.size} masks, "
        f"{int((values == 0).sum())} empty, {int((values == 1).sum())} full"
    )


def doubts(shares: npt.NDArray[np.float64] | Sequence[float]) -> list[str]:
    """Return warnings about foreground shares [N] in [0, 1] that no lesion's masks have."""
    values = np.asarray(shares, np.float64)
    if not values.size:
        return []
    if not values.any():
        return [f"all {values.size} masks are empty: there is nothing to learn from"]
    if values.mean() > MOSTLY:
        return [
            f"{values.mean():.0%} of the pixels are foreground: are the masks inverted? "
            "labels=inverted swaps foreground and background"
        ]
    return []
