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

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medisseg.data.folder import SegmentationFolder
from medisseg.data.volumes import SLICE, spacing_of
from medisseg.errors import UserError

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

    Of masks of one shape, [D, H, W] for volumes; in the unit of ``spacing``, else in voxels. As
    MONAI's ``compute_hausdorff_distance(percentile=95)``: surfaces are the voxels that erosion by a
    cross takes away. NaN where one of the two is empty.
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


class VolumeScores:
    """Scores whole volumes while their slices come by, and forgets each once it is scored.

    Args:
        folder: Samples that are slices of volumes.
        classes: With the background; 1 means one foreground class.
        spacing: In millimetres, for files that say none.
        names: Of the foreground classes.

    Raises:
        UserError: Some volumes have a spacing and others none.

    Example:
        >>> volumes = VolumeScores(SegmentationFolder("synapse", "test", classes=9), 9)
        >>> evaluate(predictor, folder, keep=volumes.add)
        >>> volumes.summary()["mdsc"]
    """

    def __init__(
        self,
        folder: SegmentationFolder,
        classes: int,
        spacing: Spacing | None = None,
        names: Sequence[str] = (),
    ) -> None:
        parts = {name: part for name in folder.names if (part := folder.files[name].slice)}
        self.classes = classes
        self.names = ("background", *names)
        self.case_of = {name: part.case for name, part in parts.items()}
        self.missing = Counter(self.case_of.values())
        whole = Counter(f.slice.case for f in folder.files.values() if f.slice)
        self.partial = [case for case, count in self.missing.items() if count < whole[case]]
        first = {part.case: part for part in reversed(parts.values())}
        self.spacing = {case: spacing_of(part) or spacing for case, part in first.items()}
        silent = [case for case, known in self.spacing.items() if known is None]
        if silent and len(silent) < len(self.spacing):
            raise UserError(
                f"{silent[0]} says no spacing, but others do ({len(silent)} of {len(self.spacing)} "
                "volumes); --spacing SLICES,ROWS,COLUMNS gives it in millimetres"
            )
        self.unit = "voxels" if silent else "mm"
        self.waiting: dict[str, dict[str, tuple[Labels, Labels]]] = {}
        self.cases: dict[str, dict[int, dict[str, float]]] = {}

    def add(self, name: str, pred: Labels, true: Labels) -> None:
        """Take a slice's class indices [H, W]; the last slice of a case scores it."""
        case = self.case_of[name]
        there = self.waiting.setdefault(case, {})
        there[name] = pred.astype(np.uint8), true.astype(np.uint8)
        if len(there) == self.missing[case]:
            order = sorted(there, key=_number)
            pred, true = (np.stack([there[name][side] for name in order]) for side in (0, 1))
            self.cases[case] = volume_metrics(pred, true, self.classes, self.spacing[case])
            del self.waiting[case]

    def summary(self) -> dict[str, Any]:
        """Return :func:`summarize` of all cases, and the ``unit`` of their distances."""
        return {"unit": self.unit, **summarize(self.cases, self.names)}

    def rows(self) -> list[list[str]]:
        """Return a line a case and class: case, class, Dice, HD95 (empty: there is none)."""
        return [
            [case, self.name(index), f"{one['dice']:.6f}",
             "" if np.isnan(one["hd95"]) else f"{one['hd95']:.6f}"]
            for case, found in self.cases.items() for index, one in found.items()
        ]  # fmt: skip

    def name(self, index: int) -> str:
        """Return what a class is called."""
        return self.names[index] if index < len(self.names) else str(index)


def find_volumes(
    folder: SegmentationFolder, classes: int, spacing: str | None, names: Sequence[str] = ()
) -> VolumeScores | None:
    """Return the collector of a folder of volumes; None where its samples are images.

    Raises:
        UserError: ``spacing`` is not such as "3,0.7,0.7", or goes with images.
    """
    given: list[float] = []
    if spacing is not None:
        try:
            given = [float(value) for value in spacing.split(",")]
        except ValueError:
            given = []
        if len(given) != 3 or not all(0 < value < 1000 for value in given):
            raise UserError(
                f"--spacing is {spacing!r}; expected millimetres of slices, rows and columns, "
                "such as 3,0.75,0.75"
            )
    if not all(folder.files[name].slice for name in folder.names):
        if given:
            raise UserError(f"--spacing is of volumes; {folder.root} holds images")
        return None
    return VolumeScores(folder, classes, (given[0], given[1], given[2]) if given else None, names)


def _number(name: str) -> int:
    match = SLICE.match(name)
    return int(match["number"]) if match else 0


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
