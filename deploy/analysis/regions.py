"""What is on one frame: its regions, how sure the network is of each, and what of them is shown."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from deploy.analysis.tracking import Finding
from deploy.pipeline.stream import Frame
from medisseg.convention import InputConvention


def findings(frame: Frame, convention: InputConvention, min_area: float) -> list[Finding]:
    """Return a frame's regions of at least ``min_area`` (share of the frame), largest first."""
    if frame.mask is None or frame.logits is None:
        return []
    least = max(1.0, min_area * frame.size[0] * frame.size[1])
    logits, threshold = foreground(frame.logits), frame.settings.threshold
    content = convention.content(frame.size)
    return [
        Finding(
            (x, y, width, height),
            area,
            confidence(logits, (x, y, width, height), frame.size, content, threshold),
        )
        for x, y, width, height, area in frame.mask.regions
        if area >= least
    ]


def foreground(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return one map [h, w] of foreground logits from [K, h, w]; class 0 is background."""
    if len(logits) == 1:
        return logits[0]
    return np.logaddexp.reduce(logits[1:], axis=0) - logits[0]


def confidence(
    logits: np.ndarray[Any, Any],
    box: tuple[int, ...],
    size: tuple[int, int],
    content: tuple[int, int, int, int],
    threshold: float,
) -> float:
    """Return the mean probability inside a region, from the logits [h, w] under its box."""
    top, left, height, width = content
    x, y, w, h = box
    rows = slice(top + y * height // size[0], top + max(1, math.ceil((y + h) * height / size[0])))
    columns = slice(
        left + x * width // size[1], left + max(1, math.ceil((x + w) * width / size[1]))
    )
    values = logits[rows, columns]
    inside = values[values > math.log(threshold / (1 - threshold))]
    # A region thinner than a pixel of the network's grid holds no whole one of them.
    return float((1 / (1 + np.exp(-inside))).mean()) if inside.size else threshold


def shown_part(frame: Frame) -> np.ndarray[Any, Any]:
    """Return the part of a frame's mask that belongs to its shown tracks."""
    assert frame.mask is not None
    shown = [track.box for track in frame.judgement.shown]
    regions = [region[:4] for region in frame.mask.regions]
    if len(shown) == len(regions):
        return frame.mask.mask
    if not shown:
        return np.zeros_like(frame.mask.mask)
    import cv2

    _, labels, boxes, _ = cv2.connectedComponentsWithStats(frame.mask.mask, connectivity=8)
    kept = [label for label, box in enumerate(boxes) if label and tuple(box[:4]) in shown]
    return np.isin(labels, kept).astype(np.uint8) * frame.mask.mask
