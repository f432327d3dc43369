"""Frames to network inputs, logits to masks, masks into frames: C++ with SIMD and threads.

One definition of resampling serves training, prediction and the runner: bilinear with half-pixel
centres, clamped edges and no antialiasing, as ``torch.nn.functional.interpolate(mode="bilinear",
align_corners=False)``. Every instruction set gives the same bits.

Arrays are numpy arrays, or anything with ``__dlpack__`` or ``__cuda_array_interface__``; memory of
an NVIDIA GPU is worked on there, on ``stream`` (PyTorch's current one by default), with the same
results. Sizes are (height, width) in pixels, sides up to 16,384. Nothing is copied in silence: a
memory layout that the code does not read raises ValueError. Network inputs are always in the order
red, green, blue, whatever the frame's own order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from kernels.arrays import Array, Size, checked_size, empty_like, extension, read, stream_of, view
from kernels.masks import Mask, decode_rle, encode_rle, outline

__all__ = [
    "Mask",
    "build_info",
    "decode_rle",
    "encode_rle",
    "outline",
    "overlay",
    "postprocess",
    "preprocess",
    "resize",
    "set_threads",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Triple = Sequence[float]


def preprocess(
    frame: Array,
    size: Size,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
    *,
    layout: str,
    resize: str = "stretch",
    dtype: npt.DTypeLike = np.float32,
    out: Array = None,
    chroma: Array = None,
    matrix: str | None = None,
    value_range: str | None = None,
    stream: object = None,
) -> Array:
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
        stream: CUDA stream for a frame on a GPU; the call does not wait for it.

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
    height, width = checked_size(size)
    pixels, plane = view(frame, "frame"), None if chroma is None else view(chroma, "chroma")
    if layout == "NV12" and (matrix is None or value_range is None):
        raise ValueError(
            "NV12 needs matrix='BT.601' or 'BT.709' and value_range='limited' or 'full'; "
            "the decoder knows them (PyAV: frame.colorspace, frame.color_range)"
        )
    if out is None:
        if np.dtype(dtype) not in (np.float32, np.float16):
            raise ValueError(f"dtype is {np.dtype(dtype)}; expected float32 or float16")
        out = empty_like(pixels, (3, height, width), dtype, stream)
    target = view(out, "out")
    if tuple(target.shape[-2:]) != (height, width):
        raise ValueError(f"out is {list(target.shape)}; expected [3, {height}, {width}]")
    rows, columns = (*pixels.shape, 0, 0)[:2]
    if layout == "NV12" and chroma is None:
        rows = rows // 3 * 2
    extension().preprocess(
        pixels,
        plane,
        layout,
        matrix or "",
        value_range or "",
        content((rows, columns), (height, width), resize),
        *_scale_and_bias(mean, std),
        target,
        stream_of(pixels, stream),
    )
    return out


def resize(logits: Array, size: Size, *, stream: object = None) -> Array:
    """Resample logits float32 or float16 [K, h, w] to ``size``: float32 [K, height, width]."""
    values = _logits(logits)
    out = empty_like(values, (values.shape[0], *checked_size(size)), np.float32, stream)
    extension().resize(values, view(out, "out"), stream_of(values, stream))
    return out


def content(frame_size: Size, size: Size, resize: str) -> tuple[int, int, int, int]:
    """Return (top, left, height, width), in pixels, of a frame within a network input.

    Args:
        frame_size: (height, width) of the frame.
        size: (height, width) of the input.
        resize: "stretch": all of it; "letterbox": the frame's aspect is kept, centred.
    """
    if resize == "stretch":
        return 0, 0, *size
    if resize != "letterbox":
        raise ValueError(f"resize is {resize!r}; expected 'stretch' or 'letterbox'")
    ratio = min(size[0] / max(1, frame_size[0]), size[1] / max(1, frame_size[1]))
    height, width = (max(1, round(side * ratio)) for side in frame_size)
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width


def postprocess(
    logits: Array,
    frame_size: Size,
    threshold: float = 0.5,
    *,
    resize: str = "stretch",
    out: Array = None,
    stream: object = None,
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
        stream: CUDA stream for logits on a GPU; the call waits for it, to read the area.

    Raises:
        TypeError, ValueError, ImportError: As :func:`preprocess`.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is {threshold}; expected a probability within (0, 1)")
    height, width = checked_size(frame_size)
    values = _logits(logits)
    values = _crop(values, content((height, width), tuple(values.shape[1:]), resize))
    if out is None:
        out = empty_like(values, (height, width), np.uint8, stream)
    target = view(out, "out")
    if tuple(target.shape) != (height, width):
        raise ValueError(f"out is {list(target.shape)}; expected [{height}, {width}]")
    limit = math.log(threshold / (1 - threshold))
    if isinstance(values, np.ndarray):
        return Mask(out, extension().postprocess(values, limit, target, None, 0))
    area = empty_like(values, (1,), np.int32, stream)
    handle = stream_of(values, stream)
    extension().postprocess(values, limit, target, view(area, "area"), handle)
    return Mask(out, read(area, handle))


def overlay(
    frame: Array,
    mask: Array,
    color: tuple[int, int, int] = (0, 255, 0),
    alpha: float = 0.35,
    outline: int = 2,
    *,
    stream: object = None,
) -> Array:
    """Blend a colour into a frame where the mask is not 0, in place, and draw its outline.

    Args:
        frame: uint8 [H, W, 3], writable; rows may be padded.
        mask: uint8 or bool [H, W], or a :class:`Mask`.
        color: Three values in [0, 255] in the frame's own channel order.
        alpha: Share of the colour within the mask, 0 to 1 (in steps of 1/256).
        outline: Thickness of the opaque outline in pixels, inside the mask; 0 draws none, 64 is
            the most.
        stream: CUDA stream for a frame on a GPU; the call does not wait for it.

    Returns:
        ``frame``.
    """
    target = view(frame, "frame")
    pixels = view(mask.mask if isinstance(mask, Mask) else mask, "mask")
    handle = stream_of(target, stream)
    extension().overlay(target, pixels, tuple(color), alpha, outline, handle)
    return frame


class BuildInfo(TypedDict):
    """How the extension was built, and what it uses on this machine."""

    instruction_set: str
    threads: int
    cuda: bool
    cuda_architectures: list[str]


def build_info() -> BuildInfo:
    """Say how the extension was built and what it uses here; ImportError if it is not built."""
    compiled = extension()
    return {
        "instruction_set": compiled.instruction_set(),
        "threads": compiled.threads(),
        "cuda": compiled.cuda_architectures() != "",
        "cuda_architectures": compiled.cuda_architectures().split(),
    }


def set_threads(count: int) -> None:
    """Use at most ``count`` threads for a frame from now on (at most the cores; 1: the caller's).

    The default is the number of cores, at most 8, or OMP_NUM_THREADS where that is less.
    """
    extension().set_threads(count)


def _logits(value: Array) -> Array:
    """[K, h, w]; on the CPU float16 is widened, which is exact."""
    logits = view(value, "logits")
    if len(logits.shape) == 2:
        logits = view(value[None], "logits")
    if len(logits.shape) != 3:
        raise ValueError(f"logits are {list(logits.shape)}; expected [h, w] or [K, h, w]")
    half = isinstance(logits, np.ndarray) and logits.dtype == np.float16
    return logits.astype(np.float32) if half else logits


def _crop(logits: Array, inside: tuple[int, int, int, int]) -> Array:
    """The logits of the frame's own pixels, without the padding around them; a view."""
    top, left, height, width = inside
    if (height, width) == tuple(logits.shape[1:]):
        return logits
    source = logits if isinstance(logits, np.ndarray) else logits.owner
    return view(source[:, top : top + height, left : left + width], "logits")


def _scale_and_bias(mean: Triple, std: Triple) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(value / 255 - mean) / std as value * scale + bias."""
    try:
        fits = len(mean) == len(std) == 3 and min(std) > 0
    except TypeError as error:
        raise TypeError(f"mean is {mean!r}, std is {std!r}; expected three numbers each") from error
    if not fits:
        raise ValueError(f"mean is {mean!r}, std is {std!r}; expected three numbers, std > 0")
    scale = tuple(1 / (255 * s) for s in std)
    return scale, tuple(-m / s for m, s in zip(mean, std, strict=True))
