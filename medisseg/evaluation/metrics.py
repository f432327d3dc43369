"""Segmentation metrics of one image, to be averaged over images, and what surrounds an average.

Overlap (IoU, Dice, recall, precision) is taken per image at the threshold and then averaged over
the images; a mask and a prediction that are both empty score 1, exactly one empty scores 0.
Boundary quality: HD95, the larger of the two directed 95th-percentile distances between the
outlines (as in MONAI), in pixels, and boundary IoU (Cheng et al. 2021, arXiv:2103.16562).
An average comes with a bootstrap 95 % interval, two methods on the same images with a paired test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage, stats

NAMES = ("iou", "dice", "recall", "precision", "hd95", "boundary_iou")
BINS = 15

Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]


def dice(pred: Mask, true: Mask) -> float:
    """Return 2 |P and T| / (|P| + |T|) in [0, 1]; 1 when both are empty."""
    pred, true = _pair(pred, true)
    total = int(np.count_nonzero(pred)) + int(np.count_nonzero(true))
    return _ratio(2 * int(np.count_nonzero(pred & true)), total, 1.0)


def image_metrics(pred: Mask, true: Mask) -> dict[str, float]:
    """Return every metric of one image.

    Args:
        pred: Predicted mask, bool [H, W].
        true: Reference mask, bool [H, W].

    Returns:
        ``iou``, ``dice``, ``recall``, ``precision`` and ``boundary_iou`` in [0, 1], ``hd95`` in
        pixels (0 when both masks are empty, the image's diagonal when exactly one is).

    Example:
        >>> image_metrics(np.array([[1, 1]], bool), np.array([[1, 0]], bool))["precision"]
        0.5
    """
    pred, true = _pair(pred, true)
    outlines = {"hd95": hd95(pred, true), "boundary_iou": boundary_iou(pred, true)}
    return overlap_metrics(pred, true) | outlines


def overlap_metrics(pred: Mask, true: Mask) -> dict[str, float]:
    """Return ``iou``, ``dice``, ``recall`` and ``precision`` of one image, in [0, 1]."""
    pred, true = _pair(pred, true)
    both = int(np.count_nonzero(pred & true))
    predicted, real = int(np.count_nonzero(pred)), int(np.count_nonzero(true))
    # A ratio without a denominator: right when there was nothing to find and nothing was found.
    empty = float(predicted == real == 0)
    return {
        "iou": _ratio(both, predicted + real - both, empty),
        "dice": _ratio(2 * both, predicted + real, empty),
        "recall": _ratio(both, real, empty),
        "precision": _ratio(both, predicted, empty),
    }


def class_metrics(
    pred: npt.NDArray[np.integer], true: npt.NDArray[np.integer], classes: int
) -> dict[int, dict[str, float]]:
    """Return :func:`image_metrics` of each class but the background that occurs in this image.

    Args:
        pred: Class indices [H, W].
        true: Class indices [H, W].
        classes: Number of classes; 1 means background and one foreground class.
    """
    found: dict[int, dict[str, float]] = {}
    for index in range(1, max(classes, 2)):
        predicted, real = pred == index, true == index
        if predicted.any() or real.any():
            found[index] = image_metrics(predicted, real)
    return found


def mean_over_classes(found: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Average :func:`class_metrics` over the classes that occur; an image without any is perfect.

    A class that is neither there nor predicted says nothing: counted as 1, it would lift the score
    of every slice that shows few organs.
    """
    if not found:
        return {name: 0.0 if name == "hd95" else 1.0 for name in NAMES}
    return {name: float(np.mean([row[name] for row in found.values()])) for name in NAMES}


def hd95(pred: Mask, true: Mask) -> float:
    """Return the 95th-percentile Hausdorff distance of the outlines of masks [H, W], in pixels."""
    pred, true = _pair(pred, true)
    if not pred.any() or not true.any():
        return float(np.hypot(*pred.shape)) if pred.any() or true.any() else 0.0
    # Distances between outlines lie inside the box around both: a small polyp in a large frame
    # costs what the polyp costs.
    box = ndimage.find_objects((pred | true).astype(np.uint8))[0]
    edges = [mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (pred, true)]
    distances = [
        ndimage.distance_transform_edt(~other)[edge] for edge, other in (edges, edges[::-1])
    ]
    return float(max(np.percentile(side, 95) for side in distances))


def boundary_iou(pred: Mask, true: Mask, dilation: float = 0.02) -> float:
    """Return the IoU of the inner borders of masks [H, W].

    Borders are ``dilation`` times the diagonal wide, at least one pixel.
    """
    pred, true = _pair(pred, true)
    width = max(1, round(dilation * float(np.hypot(*pred.shape))))
    one, two = _inner_border(pred, width), _inner_border(true, width)
    return _ratio(int(np.count_nonzero(one & two)), int(np.count_nonzero(one | two)), 1.0)


def _inner_border(mask: Mask, width: int) -> Mask:
    core = ndimage.minimum_filter(
        mask.astype(np.uint8), size=2 * width + 1, mode="constant", cval=0
    )
    border: Mask = mask & (core == 0)
    return border


def reliability(
    probability: npt.NDArray[np.floating], right: Mask, bins: int = BINS
) -> npt.NDArray[np.float64]:
    """Return what :func:`calibration_error` needs of one image: [bins, 3].

    Args:
        probability: Stated probability of each pixel in [0, 1], any shape.
        right: Whether it came true: the reference mask for one class, "the most probable class is
            the true one" for several.

    Returns:
        Per bin of probability: pixels, sum of their probabilities, number that came true. These
        add up over images.
    """
    flat = np.asarray(probability, np.float64).ravel()
    index = np.minimum((flat * bins).astype(np.intp), bins - 1)
    return np.stack(
        [
            np.bincount(index, minlength=bins),
            np.bincount(index, flat, minlength=bins),
            np.bincount(index, np.asarray(right).ravel(), minlength=bins),
        ],
        axis=1,
    ).astype(np.float64)


def calibration_error(table: npt.NDArray[np.float64]) -> float:
    """Return the expected calibration error in [0, 1] from (summed) :func:`reliability` tables.

    The pixel-weighted mean over bins of |mean probability - share that came true| (Guo et al.
    2017); for one class over the foreground probability of every pixel.
    """
    summed = table.reshape(-1, *table.shape[-2:]).sum(0)
    return float(_gaps(summed) / max(summed[:, 0].sum(), 1))


def _gaps(tables: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    gaps: npt.NDArray[np.float64] = np.abs(tables[..., 1] - tables[..., 2]).sum(-1)
    return gaps


def intervals(
    columns: Mapping[str, Sequence[float]],
    tables: npt.NDArray[np.float64] | None = None,
    groups: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Return percentile bootstrap 95 % intervals of the means.

    Args:
        columns: Metric name to one value per image.
        tables: Reliability tables [images, bins, 3]; adds ``calibration_error``.
        groups: Sequence or patient of each image. Whole groups are then drawn, since the frames of
            one video are no independent images.
        resamples: Bootstrap samples.
        seed: Same seed, same intervals.

    Returns:
        Name to [low, high].
    """
    images = len(next(iter(columns.values())))
    labels = np.arange(images) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(labels.max()) + 1
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    weights = draws[:, labels].astype(np.float64)  # [resamples, images]
    total = weights.sum(1)
    samples = {
        name: weights @ np.asarray(values, float) / total for name, values in columns.items()
    }
    if tables is not None:
        summed = np.tensordot(weights, tables, 1)
        samples["calibration_error"] = _gaps(summed) / summed[..., 0].sum(-1)
    return {
        name: [float(side) for side in np.percentile(values, [2.5, 97.5])]
        for name, values in samples.items()
    }


def paired_test(
    one: Sequence[float],
    two: Sequence[float],
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> dict[str, float]:
    """Compare two methods on the same images: Wilcoxon signed-rank test, two-sided.

    The test takes its values as independent, which the frames of one video are not: with groups it
    is over the groups' mean differences, and the interval draws whole groups.

    Args:
        one: One value per image of the first method.
        two: The second method's values, in the same order.
        seed: Of the bootstrap.
        groups: Sequence or patient of each image; None: every image is independent.

    Returns:
        ``difference`` (mean of two - one) with its bootstrap interval ``low`` and ``high``,
        ``p_value``, and the number of images on which ``two`` is ``better``, ``worse``, ``equal``.
    """
    first, second = np.asarray(one, np.float64), np.asarray(two, np.float64)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError(
            f"values are {first.shape} and {second.shape}; expected one per image, same images"
        )
    change = second - first
    low, high = intervals({"change": change.tolist()}, groups=groups, seed=seed)["change"]
    tested = change
    if groups is not None:
        labels = np.unique(groups, return_inverse=True)[1]
        tested = np.bincount(labels, change) / np.bincount(labels)
    p_value = float(stats.wilcoxon(tested).pvalue) if tested.any() else 1.0
    return {
        "difference": float(change.mean()),
        "low": low,
        "high": high,
        "p_value": p_value,
        "better": int((change > 0).sum()),
        "worse": int((change < 0).sum()),
        "equal": int((change == 0).sum()),
    }


def _pair(pred: Mask, true: Mask) -> tuple[Mask, Mask]:
    pred, true = np.asarray(pred), np.asarray(true)
    if pred.shape != true.shape or pred.ndim != 2:
        raise ValueError(
            f"masks are {pred.shape} and {true.shape}; expected two [H, W] of the same size"
        )
    return pred.astype(bool, copy=False), true.astype(bool, copy=False)


def _ratio(part: float, whole: float, empty: float) -> float:
    return float(part / whole) if whole else empty
