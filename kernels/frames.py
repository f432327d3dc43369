"""Frames to network inputs, logits to masks, masks into frames: C++ with SIMD and threads.

One definition of resampling serves training, prediction and the runner: bilinear with half-pixel
centres, clamped edges and no antialiasing, as ``torch.nn.functional.interpolate(mode="bilinear",
align_corners=False)``. Every instruction set gives the same bits.

Arrays are numpy arrays, or anything on the CPU with ``__dlpack__``; sizes are (height, width) in
pixels. Nothing is copied in silence: a layout that the code does not read raises ValueError.
Network inputs are always in the order red, green, blue, whatever the frame's own order.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

BUILD = "pip install -e . --no-build-isolation"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Size = tuple[int, int]
Triple = Sequence[float]


@dataclass(frozen=True)
class Mask:
    """A mask at the frame's size, and what is derived from it when asked for.

    Attributes:
        mask: uint8 [H, W]; 0 background, 1 foreground, or the class index.
        area: Number of pixels that are not 0.
    """

    mask: npt.NDArray[np.uint8]
    area: int

    @cached_property
    def regions(self) -> list[tuple[int, int, int, int, int]]:
        """Connected components (8 neighbours) as (x, y, width, height, area), largest first."""
        return _extension().regions(self.mask)

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Their bounding boxes (x, y, width, height) in pixels, the largest area first."""
        return [region[:4] for region in self.regions]

    @cached_property
    def outline(self) -> npt.NDArray[np.uint8]:
        """uint8 [H, W]: 1 on mask pixels that touch the background or the frame's edge."""
        return _extension().outline(self.mask, 1)

    @cached_property
    def rle(self) -> dict[str, Any]:
        """COCO's uncompressed run lengths, see :func:`encode_rle`."""
        return encode_rle(self.mask)


def preprocess(
    frame: Any,
    size: Size,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
    *,
    layout: str,
    resize: str = "stretch",
    dtype: npt.DTypeLike = np.float32,
    out: Any = None,
    chroma: Any = None,
    matrix: str | None = None,
    value_range: str | None = None,
) -> Any:
    """Resize a frame, normalise it and lay it out as a network's input, in one pass.

    ``out[c] = (resized / 255 - mean[c]) / std[c]`` for c = red, green, blue.

    Args:
        frame: uint8 [H, W, 3] for "RGB" and "BGR"; rows may be padded (the first stride is the
            pitch in bytes). For "NV12" [H * 3 / 2, W], or luma [H, W] with ``chroma`` apart.
        size: (height, width) of the input.
        mean: Mean of red, green, blue, of values in [0, 1].
        std: Standard deviation, likewise.
        layout: "RGB", "BGR" or "NV12"; never guessed.
        resize: "stretch", or "letterbox": keep the aspect, centre, zeros around after normalising.
        dtype: float32 or float16 of the result; ignored with ``out``.
        out: Contiguous array [3, h, w] or [1, 3, h, w] to write to; nothing is allocated then.
        chroma: NV12's second plane, uint8 [H / 2, W], where it does not follow the first.
        matrix: "BT.601" or "BT.709"; NV12 only, and required there.
        value_range: "limited" (luma 16 to 235) or "full"; NV12 only, and required there.

    Returns:
        ``out``, or a new array [3, h, w].

    Raises:
        TypeError: Something is of the wrong kind.
        ValueError: A shape, stride or value is out of range.
        ImportError: The extension is not built.

    Example:
        >>> rows = np.frombuffer(buffer, np.uint8).reshape(1080, pitch)
        >>> frame = rows[:, : 3 * 1920].reshape(1080, 1920, 3)  # keeps the pitch, copies nothing
        >>> preprocess(frame, (256, 256), layout="BGR").shape
        (3, 256, 256)
    """
    extension = _extension()
    height, width = _size(size)
    frame, chroma = _array(frame, "frame"), None if chroma is None else _array(chroma, "chroma")
    if layout == "NV12" and (matrix is None or value_range is None):
        raise ValueError(
            "NV12 needs matrix='BT.601' or 'BT.709' and value_range='limited' or 'full'; "
            "the decoder knows them (PyAV: frame.colorspace, frame.color_range)"
        )
    target = out
    if out is None:
        if np.dtype(dtype) not in (np.float32, np.float16):
            raise ValueError(f"dtype is {np.dtype(dtype)}; expected float32 or float16")
        out = target = np.empty((3, height, width), dtype)
    elif tuple(out.shape[-2:]) != (height, width):
        raise ValueError(f"out is {list(out.shape)}; expected [3, {height}, {width}]")
    else:
        target = _array(out, "out")
    rows = frame.shape[0] if frame.ndim else 0
    if layout == "NV12" and chroma is None:
        rows = rows // 3 * 2
    columns = frame.shape[1] if frame.ndim > 1 else 0
    extension.preprocess(
        frame,
        chroma,
        layout,
        matrix or "",
        value_range or "",
        _content((rows, columns), (height, width), resize),
        *_scale_and_bias(mean, std),
        target,
    )
    return out


def resize(logits: Any, size: Size) -> npt.NDArray[np.float32]:
    """Resample logits float32 or float16 [K, h, w] to ``size``: float32 [K, height, width]."""
    return _extension().resize(_logits(logits), *_size(size))


def postprocess(
    logits: Any,
    frame_size: Size,
    threshold: float = 0.5,
    *,
    resize: str = "stretch",
    out: npt.NDArray[np.uint8] | None = None,
) -> Mask:
    """Upsample logits to the frame and decide every pixel there.

    Args:
        logits: float32 or float16 [h, w] or [K, h, w] at the network's input size.
        frame_size: (height, width) of the frame.
        threshold: Probability in (0, 1) above which a pixel is foreground; it is turned into a
            logit once, so no exponential is taken. K > 1: the greatest logit wins, class 0 is
            the background, and the threshold is not used.
        resize: The rule that ``preprocess`` used; with "letterbox" the padding is cut off.
        out: Contiguous uint8 [height, width] for the mask.

    Raises:
        TypeError, ValueError, ImportError: As :func:`preprocess`.
    """
    extension = _extension()
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is {threshold}; expected a probability within (0, 1)")
    height, width = _size(frame_size)
    values = _logits(logits)
    top, left, rows, columns = _content((height, width), values.shape[1:], resize)
    mask = np.empty((height, width), np.uint8) if out is None else out
    if mask.shape != (height, width):
        raise ValueError(f"out is {list(mask.shape)}; expected [{height}, {width}]")
    inside = values[:, top : top + rows, left : left + columns]
    return Mask(mask, extension.postprocess(inside, math.log(threshold / (1 - threshold)), mask))


def overlay(
    frame: Any,
    mask: Any,
    color: tuple[int, int, int] = (0, 255, 0),
    alpha: float = 0.35,
    outline: int = 2,
) -> Any:
    """Blend a colour into a frame where the mask is not 0, in place, and draw its outline.

    Args:
        frame: uint8 [H, W, 3], writable; rows may be padded.
        mask: uint8 or bool [H, W], or a :class:`Mask`.
        color: Three values in [0, 255] in the frame's own channel order.
        alpha: Share of the colour within the mask, 0 to 1 (in steps of 1/256).
        outline: Thickness of the opaque outline in pixels, inside the mask; 0 draws none.

    Returns:
        ``frame``.
    """
    pixels = mask.mask if isinstance(mask, Mask) else mask
    _extension().overlay(
        _array(frame, "frame"), _array(pixels, "mask"), tuple(color), alpha, outline
    )
    return frame


def encode_rle(mask: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Return {"size": [H, W], "counts": [...]}: run lengths, background first.

    The order is COCO's: down the columns, from left to right. ``pycocotools`` takes it as
    uncompressed RLE.
    """
    mask = _array(mask, "mask")
    return {"size": list(mask.shape), "counts": _extension().encode_rle(mask)}


def decode_rle(rle: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """Return the mask, uint8 [H, W] of 0 and 1, that :func:`encode_rle` wrote."""
    try:
        counts, (height, width) = list(rle["counts"]), rle["size"]
    except (KeyError, TypeError, ValueError) as error:
        raise TypeError(
            f"rle is {str(rle)[:60]}; expected {{'size': [height, width], 'counts': [integers]}}"
        ) from error
    return _extension().decode_rle(counts, height, width)


def build_info() -> dict[str, Any]:
    """Say how the extension was built and what it uses here; ImportError if it is not built."""
    extension = _extension()
    return {
        "instruction_set": extension.instruction_set(),
        "threads": extension.threads(),
    }


def set_threads(count: int) -> None:
    """Use at most ``count`` threads for a frame from now on (at most the cores; 1: the caller's).

    The default is the number of cores, at most 8, or OMP_NUM_THREADS where that is less.
    """
    _extension().set_threads(count)


def _extension() -> ModuleType:
    try:
        return importlib.import_module("kernels._frames")
    except ImportError as error:
        raise ImportError(
            f"the frame extension does not load ({error}); build it in the checkout: {BUILD}"
        ) from error


def _array(value: Any, name: str) -> npt.NDArray[Any]:
    """Return a view of an array of the CPU, never a copy."""
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "__dlpack__"):
        raise TypeError(
            f"{name} is {type(value).__name__}; expected a numpy array or one with __dlpack__"
        )
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"{name} cannot be read: {error}; expected an array of the CPU without a gradient"
        ) from error


def _logits(value: Any) -> npt.NDArray[np.float32]:
    """float32 [K, h, w]; float16 is widened, which is exact."""
    logits = _array(value, "logits")
    if logits.ndim == 2:
        logits = logits[None]
    return logits.astype(np.float32) if logits.dtype == np.float16 else logits


def _size(size: Size) -> Size:
    try:
        height, width = size
        return int(height), int(width)
    except (TypeError, ValueError) as error:
        raise TypeError(f"size is {size!r}; expected (height, width)") from error


def _content(frame_size: Size, size: Size, resize: str) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a frame's pixels within an input of ``size``."""
    if resize == "stretch":
        return 0, 0, *size
    if resize != "letterbox":
        raise ValueError(f"resize is {resize!r}; expected 'stretch' or 'letterbox'")
    ratio = min(size[0] / max(1, frame_size[0]), size[1] / max(1, frame_size[1]))
    height, width = (max(1, round(side * ratio)) for side in frame_size)
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width


def _scale_and_bias(mean: Triple, std: Triple) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(value / 255 - mean) / std as value * scale + bias."""
    if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
        raise ValueError(f"mean is {mean}, std is {std}; expected three numbers each, std > 0")
    scale = tuple(1 / (255 * s) for s in std)
    return scale, tuple(-m / s for m, s in zip(mean, std, strict=True))
