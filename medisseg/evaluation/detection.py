"""Lesions found and false regions: what a mask means to the person who watches the screen.

A lesion is a connected region of the reference; it is found when the predicted regions cover at
least a tenth of it. A false region is a connected predicted region, of at least a share of the
frame, that touches no lesion. Several classes count as one: what is not background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medisseg.colors import CURVES, css
from medisseg.schema import Json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COVERED = 0.1
# The runner draws nothing smaller than the second; the others say how a result hangs on it.
LEAST_AREAS = (0.0, 0.0005, 0.005, 0.05)
LEAST_AREA = 0.0005
THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
NEIGHBOURS = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Detection:
    """One image: its lesions, how many were found, and the area of each false region as a share
    of the frame."""

    lesions: int
    found: int
    false_areas: tuple[float, ...]

    def false_regions(self, least: float = LEAST_AREA) -> int:
        """Return the number of false regions of at least ``least`` of the frame."""
        return sum(area >= least for area in self.false_areas)


def detect(
    predicted: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_], least: float = LEAST_AREA
) -> Detection:
    """Compare the regions of two masks, bool [H, W].

    Args:
        predicted: What the network shows.
        true: The reference.
        least: Predicted regions below this share of the frame find nothing.

    Example:
        >>> detect(np.ones((4, 4), bool), np.zeros((4, 4), bool)).false_regions()
        1
    """
    # Only where there is something: 16 ms for a lesion at 1080 x 1920, 64 over the whole frame.
    frame, marked = true.size, predicted | true
    rows, columns = np.flatnonzero(marked.any(1)), np.flatnonzero(marked.any(0))
    if not rows.size:
        return Detection(0, 0, ())
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    predicted, true = predicted[window], true[window]
    lesions, count = ndimage.label(true, NEIGHBOURS)
    regions, number = ndimage.label(predicted, NEIGHBOURS)
    areas = np.bincount(regions.ravel(), minlength=number + 1)
    touching = np.zeros(number + 1, bool)
    touching[np.unique(regions[true])] = True
    false = areas[1:][~touching[1:]] / frame
    shown = areas >= least * frame
    shown[0] = False
    covered = np.bincount(lesions[shown[regions]], minlength=count + 1)[1:]
    sizes = np.bincount(lesions.ravel(), minlength=count + 1)[1:]
    found = int(np.count_nonzero(covered >= np.maximum(COVERED * sizes, 1)))
    return Detection(count, found, tuple(false.tolist()))


def sweep(
    probability: npt.NDArray[np.floating], true: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Return lesions, lesions found and false regions at each of :data:`THRESHOLDS`, [T, 3]."""
    rows = []
    for threshold in THRESHOLDS:
        one = detect(probability > threshold, true)
        rows.append((one.lesions, one.found, one.false_regions()))
    return np.array(rows, np.int64)


def summarize(detections: Sequence[Detection]) -> Json:
    """Return lesions, the share found, false regions a frame and frames with one, by least area."""
    images = len(detections)
    lesions = sum(one.lesions for one in detections)
    found = sum(one.found for one in detections)
    return {
        "images": images,
        "lesions": lesions,
        "found": found,
        "sensitivity": found / lesions if lesions else None,
        "mean_false_area": float(np.mean([sum(one.false_areas) for one in detections])),
        "by_least_area": {
            f"{least:g}": {
                "frames_with_false_region": sum(one.false_regions(least) > 0 for one in detections)
                / images,
                "false_regions_per_frame": sum(one.false_regions(least) for one in detections)
                / images,
            }
            for least in LEAST_AREAS
        },
    }


def froc(lesioned: npt.NDArray[np.int64], negatives: npt.NDArray[np.int64] | None = None) -> Figure:
    """Draw the free-response curve: lesions found against false regions a frame.

    Args:
        lesioned: :func:`sweep` of every image with reference, [N, T, 3].
        negatives: The same of images without lesion: a second curve, with their false regions.
    """
    from matplotlib.figure import Figure

    found = lesioned[..., 1].sum(0) / max(1, int(lesioned[:, 0, 0].sum()))
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    curves = [("false regions on these images", lesioned)]
    if negatives is not None:
        curves.append(("false regions on images without lesion", negatives))
    half = THRESHOLDS.index(0.5)
    for (label, rows), color in zip(curves, map(css, CURVES), strict=False):
        false = rows[..., 2].sum(0) / len(rows)
        axes.plot(false, found, "o-", ms=3, color=color, label=label)
        axes.plot(false[half], found[half], "s", ms=7, mfc="none", color=color)
    axes.set(
        xlabel=f"false regions a frame (at least {100 * LEAST_AREA:g} % of it)",
        ylabel="lesions found",
        ylim=(-0.02, 1.02),
    )
    axes.set_xscale("symlog", linthresh=0.01)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
