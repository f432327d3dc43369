"""Scores of volumes, as multi-organ segmentation reports them (TransUNet, Chen et al. 2021).

A slice says little: one stray pixel in a slice without the organ costs that slice everything. The
slices of a case are put together again and every class is scored once a volume, in 3D: Dice, and
HD95 in millimetres where the spacing of the voxels is known. A class's figure is the mean over the
volumes, the table's the mean over the classes.

A class that is in neither reference nor prediction of a volume is left out of its mean, one that is
in exactly one of them has Dice 0 and no distance. TransUNet's own script counts the first as 0, and
a predicted class without reference as Dice 1; where every organ is in every volume, as in Synapse,
the three rules agree but for what a network misses altogether.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Labels = npt.NDArray[np.integer]
Spacing = tuple[float, float, float]  # millimetres between slices, rows and columns


def volume_metrics(
    pred: Labels, true: Labels, classes: int, spacing: Spacing | None = None
) -> dict[int, dict[str, float]]:
    """Return Dice and HD95 of every foreground class in reference or prediction.

    Args:
        pred: Predicted class indices [D, H, W].
        true: Reference class indices [D, H, W].
        classes: Number of classes with the background; 1 means one foreground class.
        spacing: Of the voxels in millimetres; None: HD95 is in voxels.

    Returns:
        Class to ``dice`` in [0, 1] and ``hd95`` (NaN where the class is in one of the two alone).

    Raises:
        ValueError: Another shape, or two shapes.
    """
    if pred.shape != true.shape or pred.ndim != 3:
        raise ValueError(f"volumes are {pred.shape}, {true.shape}; expected two [D, H, W] alike")
    found = {}
    for index in range(1, max(classes, 2)):
        one, two = pred == index, true == index
        total = int(one.sum()) + int(two.sum())
        if total:
            dice = 2 * int((one & two).sum()) / total
            found[index] = {"dice": dice, "hd95": hd95(one, two, spacing)}
    return found


def hd95(
    pred: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_], spacing: Spacing | None = None
) -> float:
    """Return the larger of the two directed 95th-percentile distances between the surfaces.

    As MONAI's ``compute_hausdorff_distance(percentile=95)``: surfaces are the voxels that erosion
    by a cross takes away. NaN where one of the two is empty.
    """
    if not pred.any() or not true.any():
        return float("nan")
    box = ndimage.find_objects((pred | true).astype(np.uint8))[0]
    edges = [mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (pred, true)]
    distances = [
        ndimage.distance_transform_edt(~other, sampling=spacing)[edge]
        for edge, other in (edges, edges[::-1])
    ]
    return float(max(np.percentile(side, 95) for side in distances))


def put_together(
    slices: Mapping[str, npt.NDArray[np.number]], order: Sequence[str]
) -> npt.NDArray[np.number]:
    """Return the volume [D, H, W] of slices [H, W] by name, in an order of names."""
    return np.stack([slices[name] for name in order])


def summarize(
    cases: Mapping[str, Mapping[int, Mapping[str, float]]], names: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the means over volumes and classes.

    Args:
        cases: Case to :func:`volume_metrics`.
        names: Of the classes, the background's first; empty: their numbers.

    Returns:
        ``volumes``, ``mdsc`` and ``hd95`` (means of the classes' means) and ``classes``, each with
        ``dice``, ``hd95`` (NaN left out; None where there is none) and ``volumes``.
    """
    indices = sorted({index for found in cases.values() for index in found})
    classes = {}
    for index in indices:
        rows = [found[index] for found in cases.values() if index in found]
        distances = [row["hd95"] for row in rows if not np.isnan(row["hd95"])]
        name = names[index] if index < len(names) else str(index)
        classes[name] = {
            "volumes": len(rows),
            "dice": float(np.mean([row["dice"] for row in rows])),
            "hd95": float(np.mean(distances)) if distances else None,
        }
    known = [one["hd95"] for one in classes.values() if one["hd95"] is not None]
    return {
        "volumes": len(cases),
        "mdsc": float(np.mean([one["dice"] for one in classes.values()])) if classes else 1.0,
        "hd95": float(np.mean(known)) if known else None,
        "classes": classes,
    }
