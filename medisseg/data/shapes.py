"""Polygons, boxes and run lengths of annotation tools, drawn as masks.

A polygon's corners are rounded to pixels and its outline belongs to it, so that the contour of a
mask, stored by any tool, gives back that mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medisseg.data.reading import BadFile, orient, read_header

BACKGROUND = ("_background_", "__background__", "background")
VOID = ("__ignore__", "_ignore_", "ignore", "void", "unlabeled")
FAR = 1e6  # pixels; corners farther out are moved there, so that no drawing overflows
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Shape:
    """One region.

    Attributes:
        label: What the annotator called it.
        kind: "polygon", "box" (two corners), "ellipse" (centre, radii) or "runs".
        points: (x, y) in pixels, or in shares of the image's size where ``Drawing.shares``.
        holes: Polygons cut out of it.
        runs: Pixels outside and inside in turn, down the columns (COCO) or along the rows of
            ``box`` (CVAT).
        box: (left, top, width, height) that the runs fill; None: the image.
        by_rows: Whether the runs go along rows.
        edges: Whether a box's second corner is behind its last pixel, not on it.
    """

    label: str
    kind: str
    points: Points = ()
    holes: tuple[Points, ...] = ()
    runs: tuple[int, ...] = ()
    box: tuple[int, int, int, int] | None = None
    by_rows: bool = False
    edges: bool = False


@dataclass(frozen=True)
class Drawing:
    """The regions of one image, in the order in which they are drawn.

    ``size`` is the (height, width) that the file claims for the image, None if it does not.
    """

    shapes: tuple[Shape, ...]
    source: Path
    size: tuple[int, int] | None = None
    shares: bool = False


def class_labels(drawings: Sequence[Drawing], known: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the labels in the order of their classes: that of a list of names, else sorted."""
    used = {shape.label for drawing in drawings for shape in drawing.shapes}
    rest = sorted(used - set(known))
    return tuple(label for label in (*known, *rest) if label.lower() not in (*BACKGROUND, *VOID))


def draw(
    drawing: Drawing, image: Path, labels: Sequence[str], classes: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_] | None]:
    """Return class indices uint8 [H, W] of the image as it is seen, and its void pixels.

    For one class every label is 1; for more, ``labels[k]`` is class k + 1.

    Raises:
        BadFile: The shapes are of an image of another size, or more labels than classes.
    """
    if classes > 1 and len(labels) >= classes:
        raise BadFile(
            f"{drawing.source} and its folder have the labels {', '.join(labels)}; expected at "
            f"most {classes - 1} for classes={classes}"
        )
    found = read_header(image)
    seen = found.size
    if found.orientation >= 5 and found.kind != "TIFF":
        seen = (found.size[1], found.size[0])
    claimed = drawing.size or seen
    turned = claimed != seen and claimed == found.size
    size = claimed if turned else seen
    scale = (size[1] / claimed[1], size[0] / claimed[0]) if min(claimed) > 0 else (1.0, 1.0)
    if abs(scale[0] / scale[1] - 1) > 0.02:
        raise BadFile(
            f"{drawing.source} is drawn on {claimed[1]}x{claimed[0]} pixels, but {image} has "
            f"{seen[1]}x{seen[0]}; expected the image that was annotated"
        )
    if drawing.shares:
        scale = (float(size[1]), float(size[0]))
    mask = np.zeros(size, np.uint8)
    void = np.zeros(size, bool)
    for shape in drawing.shapes:
        region = _region(shape, size, scale, drawing.source)
        label = shape.label.lower()
        ignored, back = label in VOID, label in BACKGROUND
        index = 0 if ignored or back else 1 if classes == 1 else 1 + labels.index(shape.label)
        mask[region] = index
        void[region] = ignored
    if turned:
        mask, void = (
            np.ascontiguousarray(orient(part, found.orientation)) for part in (mask, void)
        )
    return mask, void if void.any() else None


def _region(
    shape: Shape, size: tuple[int, int], scale: tuple[float, float], source: Path
) -> npt.NDArray[np.bool_]:
    """Return the pixels [H, W] that a shape covers."""
    import cv2

    region = np.zeros(size, np.uint8)
    if shape.kind == "runs":
        return _runs(shape, size, source)
    points = _pixels(shape.points, scale)
    if shape.kind == "box":
        (left, top), (right, bottom) = points.min(0), points.max(0) - shape.edges
        cv2.rectangle(region, (int(left), int(top)), (int(right), int(bottom)), 1, cv2.FILLED)
    elif shape.kind == "ellipse":
        centre, radii = points[0], np.abs(points[1])
        cv2.ellipse(region, (int(centre[0]), int(centre[1])), (int(radii[0]), int(radii[1])),
                    0, 0, 360, 1, cv2.FILLED)  # fmt: skip
    else:
        cv2.fillPoly(region, [points], 1)
        for hole in shape.holes:
            cv2.fillPoly(region, [_pixels(hole, scale)], 0)
    return region.astype(bool)


def _pixels(points: Points, scale: tuple[float, float]) -> npt.NDArray[np.int32]:
    scaled = np.nan_to_num(np.asarray(points, np.float64) * scale, posinf=FAR, neginf=-FAR)
    return np.rint(np.clip(scaled, -FAR, FAR)).astype(np.int32)


def _runs(shape: Shape, size: tuple[int, int], source: Path) -> npt.NDArray[np.bool_]:
    left, top, width, height = shape.box or (0, 0, size[1], size[0])
    area = width * height
    runs = np.asarray([run if 0 <= run <= area else -1 for run in shape.runs], np.int64)
    fits = 0 <= left <= left + width <= size[1] and 0 <= top <= top + height <= size[0]
    # Checked before anything is expanded: a short list of runs can claim any number of pixels.
    if not fits or runs.size == 0 or runs.min() < 0 or runs.sum() != area:
        raise BadFile(
            f"{source}: the runs of a {shape.label!r} cover {sum(shape.runs)} pixels; expected "
            f"{width}x{height} within an image of {size[1]}x{size[0]}"
        )
    flat = np.repeat(np.arange(runs.size) % 2 == 1, runs)
    inner = flat.reshape(height, width) if shape.by_rows else flat.reshape(width, height).T
    region = np.zeros(size, bool)
    region[top : top + height, left : left + width] = inner
    return region
