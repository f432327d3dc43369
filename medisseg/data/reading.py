"""Read one image or mask file, of any common format and bit depth, or say what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from medisseg.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LOSSY = (".jpg", ".jpeg", ".webp")
# At most so many different values are taken for instances or classes rather than for grey tones.
MOST_INDICES = 64


class BadFile(UserError):
    """An image or mask that cannot be used; the message names the file and the remedy."""


def read_image(path: str | Path) -> npt.NDArray[np.uint8]:
    """Return an image as uint8 RGB [H, W, 3]; 16-bit and grey images are converted.

    Raises:
        BadFile: Not readable as an image.

    Example:
        >>> read_image("polyp.jpg").shape
        (288, 384, 3)
    """
    import cv2

    data = _bytes(path)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error:
        image = None
    if image is None:
        raise BadFile(f"{path} is not a readable image (cut off, or of another format?)")
    return np.ascontiguousarray(to_uint8(image)[:, :, ::-1])


def to_uint8(image: npt.NDArray) -> npt.NDArray[np.uint8]:
    """Return pixels as uint8: 16-bit from its used depth (12 or 16), float from [0, 1]."""
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:
        return (image >> (4 if image.max() < 4096 else 8)).astype(np.uint8)
    finite = np.nan_to_num(image.astype(np.float32))
    top = 1.0 if finite.max() <= 1.0 else 255.0
    return np.rint(np.clip(finite / top, 0, 1) * 255).astype(np.uint8)


def read_mask(path: str | Path, classes: int = 1, indices: bool = False) -> npt.NDArray[np.uint8]:
    """Return a mask as class indices uint8 [H, W].

    For one class: JPEG masks are foreground above 127 (compression makes grey edges); 0/1, 0/255
    and instance indices are foreground where they are not 0. For more, or with ``indices``, every
    value must be a class index.

    Raises:
        BadFile: Not readable, or its values are neither binary nor indices.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            lossy = file.format in ("JPEG", "WEBP")
            values = np.asarray(file)
    except (OSError, ValueError, SyntaxError) as error:
        raise BadFile(f"{path} is not a readable mask (cut off, or of another format?)") from error
    values = _single_channel(values, path, lossy)
    if classes > 1 or indices:
        return _class_indices(values, path, max(classes, 2), lossy)
    return _foreground(values, path, lossy)


def _bytes(path: str | Path) -> npt.NDArray[np.uint8]:
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror or error}") from error


def _single_channel(values: npt.NDArray, path: str | Path, lossy: bool) -> npt.NDArray:
    if values.ndim == 2:
        return values
    colors = values[:, :, :3] if values.shape[2] >= 3 else values[:, :, :1]
    spread = int(np.ptp(colors.astype(np.int32), axis=2).max())
    if spread > (64 if lossy else 0):
        raise BadFile(f"{path} is a colour picture; expected a mask of one grey channel or palette")
    return colors[:, :, 1 if colors.shape[2] == 3 else 0]


def _class_indices(
    values: npt.NDArray, path: str | Path, classes: int, lossy: bool
) -> npt.NDArray[np.uint8]:
    if lossy:
        raise BadFile(f"{path}: JPEG changes class indices; store the masks as PNG")
    if values.dtype == bool:
        values = values.astype(np.uint8)
    found = np.unique(values)
    if classes == 2 and set(found.tolist()) <= {0, 255}:
        return (values > 0).astype(np.uint8)
    if found.min() < 0 or found.max() >= classes:
        shown = ", ".join(f"{value}" for value in found[:8]) + (", ..." if found.size > 8 else "")
        raise BadFile(f"{path} holds the values {shown}; expected class indices 0 to {classes - 1}")
    return values.astype(np.uint8)


def _foreground(values: npt.NDArray, path: str | Path, lossy: bool) -> npt.NDArray[np.uint8]:
    if values.dtype == bool:
        return values.astype(np.uint8)
    if lossy:
        return (values > 127).astype(np.uint8)
    found = np.unique(values)
    top = int(found[-1])
    if found.size <= 2 or (found.size <= MOST_INDICES and top < 2 * MOST_INDICES):
        # Without a background value one colour fills the picture: 255 is all polyp, 0 is none.
        return (values > 0).astype(np.uint8)
    if top <= 255:
        between = np.mean((values > 15) & (values < 240))
        if between < 0.05:  # anti-aliased edges, or a JPEG mask saved again as PNG
            return (values > 127).astype(np.uint8)
    raise BadFile(
        f"{path} holds {found.size} grey values from {found[0]} to {top}; "
        "expected a binary mask (0 and 255) or instance or class indices"
    )
