"""Generated pictures and videos for the faults of ``medisseg run chaos``."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from deploy.chaos.loopback import Picture


def scene(number: int, size: tuple[int, int] = (240, 320)) -> Picture:
    """Return frame ``number``, uint8 RGB [height, width, 3]: mucosa with a moving lesion."""
    height, width = size
    x = round(width * (0.35 + 0.2 * np.sin(number / 20)))
    picture = _mucosa(size).copy()
    picture[height // 3 : 2 * height // 3, x : x + width // 4] += np.uint8(40)
    return picture


@functools.cache
def _mucosa(size: tuple[int, int]) -> Picture:
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    texture = 12 * np.sin(columns / 7) * np.cos(rows / 9)
    mucosa: Picture = (np.array([160, 70, 60]) + texture[..., None]).astype(np.uint8)
    return mucosa


def screen(number: int, size: tuple[int, int] = (240, 320)) -> Picture:
    """Return a processor's screen, uint8 RGB; its endoscopic picture moves at frame 15."""
    import cv2

    height, width = size
    left = 0 if number < 15 else width // 2
    canvas: Picture = np.zeros((*size, 3), np.uint8)
    picture = scene(number, (height // 2, width // 2))
    canvas[height // 4 : height // 4 + height // 2, left : left + width // 2] = picture
    place = (width // 2 - left + 8, height // 2)
    cv2.putText(canvas, "NAME", place, cv2.FONT_HERSHEY_SIMPLEX, width / 640, (230, 230, 230))
    return canvas


def noise(number: int, size: tuple[int, int] = (240, 320)) -> Picture:
    """Return a frame of random pixels, uint8 RGB, which does not compress."""
    return np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)


def decoded(paths: Iterable[Path]) -> int:
    """Return the number of frames that videos play, to their very end."""
    import av

    count = 0
    for path in paths:
        with av.open(f"file:{path}") as container:
            count += sum(1 for _ in container.decode(video=0))
    return count
