"""What is wrong raises TypeError or ValueError that says got, expected and remedy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kernels import _frames, frames

FRAME = np.zeros((20, 30, 3), np.uint8)
NV12 = np.zeros((30, 40), np.uint8)
MASK = np.zeros((20, 30), np.uint8)
LOGITS = np.zeros((1, 8, 8), np.float32)
YUV: dict[str, Any] = {"layout": "NV12", "matrix": "BT.709", "value_range": "limited"}


def fixed(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def misaligned() -> np.ndarray:
    return np.zeros(3 * 8 * 8 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(3, 8, 8)


FRAMES = [
    (None, TypeError, "numpy array"),
    ([[[0, 0, 0]]], TypeError, "numpy array"),
    (b"bytes", TypeError, "numpy array"),
    (FRAME.astype(np.float32), TypeError, "expected uint8"),
    (FRAME.astype(np.int8), TypeError, "expected uint8"),
    (FRAME[..., 0], ValueError, "height, width, 3"),
    (np.zeros((20, 30, 4), np.uint8), ValueError, "height, width, 3"),
    (np.zeros((0, 30, 3), np.uint8), ValueError, "sides of 1 to 16384"),
    (np.zeros((20, 0, 3), np.uint8), ValueError, "sides of 1 to 16384"),
    (np.zeros((1, 16385, 3), np.uint8), ValueError, "sides of 1 to 16384"),
    (FRAME[:, ::-1], ValueError, "ascontiguousarray"),
    (FRAME[::-1], ValueError, "ascontiguousarray"),
    (FRAME[..., ::-1], ValueError, "ascontiguousarray"),
    (FRAME.transpose(1, 0, 2), ValueError, "ascontiguousarray"),
    (np.broadcast_to(FRAME[:1], FRAME.shape), ValueError, "ascontiguousarray"),
    (np.array(0, np.uint8), ValueError, "height, width, 3"),
    (torch.zeros(3, 20, 30), TypeError, "expected uint8"),
    (torch.zeros(20, 30, 3, requires_grad=True), TypeError, "gradient"),
]


@pytest.mark.parametrize(("frame", "error", "message"), FRAMES)
def test_frames(frame: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        frames.preprocess(frame, (8, 8), layout="RGB")
    if not isinstance(frame, torch.Tensor):
        with pytest.raises(error, match=message):
            frames.overlay(frame, np.zeros((*np.shape(frame), 1, 1)[:2], np.uint8))


PREPROCESS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"layout": "YUYV"}, ValueError, "RGB, BGR or NV12"),
    ({"layout": 3}, TypeError, "string"),
    ({"resize": "crop"}, ValueError, "'stretch' or 'letterbox'"),
    ({"size": 8}, TypeError, "height, width"),
    ({"size": (8.5, 8)}, TypeError, "integers"),
    ({"size": (0, 8)}, ValueError, "1 to 16384"),
    ({"size": (8, 10**30)}, ValueError, "1 to 16384"),
    ({"mean": (0, 0)}, ValueError, "three numbers"),
    ({"mean": None}, TypeError, "three numbers"),
    ({"mean": (0, 0, float("nan"))}, ValueError, "number"),
    ({"std": (1, 1, 0)}, ValueError, "std > 0"),
    ({"dtype": np.float64}, ValueError, "float32 or float16"),
    ({"out": np.zeros((3, 8, 9), np.float32)}, ValueError, "3, 8, 8"),
    ({"out": np.zeros((4, 8, 8), np.float32)}, ValueError, "3, height, width"),
    ({"out": np.zeros((2, 3, 8, 8), np.float32)}, ValueError, "3, height, width"),
    ({"out": np.zeros((8, 8), np.float32)}, ValueError, "3, height, width"),
    ({"out": np.zeros((3, 8, 8))}, TypeError, "float32"),
    ({"out": np.zeros((3, 8, 8), ">f4")}, TypeError, "float32"),
    ({"out": np.zeros((8, 8, 3), np.float32).transpose(2, 0, 1)}, ValueError, "contiguous"),
    ({"out": fixed(np.zeros((3, 8, 8), np.float32))}, ValueError, "writable"),
    ({"out": misaligned()}, ValueError, "aligned"),
    ({"out": "nothing"}, TypeError, "numpy array"),
    ({"chroma": MASK}, ValueError, "NV12"),
    ({"frame": NV12, "layout": "NV12"}, ValueError, "matrix='BT.601'"),
    ({**YUV, "frame": NV12, "matrix": "BT.2020"}, ValueError, "BT.601 or BT.709"),
    ({**YUV, "frame": NV12, "value_range": "tv"}, ValueError, "limited or full"),
    ({**YUV, "frame": NV12[:29]}, ValueError, "both even"),
    ({**YUV, "frame": NV12[:, :39]}, ValueError, "both even"),
    ({**YUV, "frame": NV12[:, ::2]}, ValueError, "side by side"),
    ({**YUV}, ValueError, "NV12"),
    ({**YUV, "frame": NV12, "chroma": NV12[:10]}, ValueError, "height / 2"),
    ({**YUV, "frame": NV12, "chroma": NV12[:15, :20]}, ValueError, "height / 2"),
]


@pytest.mark.parametrize(("options", "error", "message"), PREPROCESS)
def test_preprocess(options: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"frame": FRAME, "size": (8, 8), "layout": "RGB", **options}
    with pytest.raises(error, match=message):
        frames.preprocess(**arguments)


CALLS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: frames.postprocess(LOGITS, (20, 30), 0.0), ValueError, "probability"),
    (lambda: frames.postprocess(LOGITS, (20, 30), float("nan")), ValueError, "probability"),
    (lambda: frames.postprocess(LOGITS, (20, 10**9)), ValueError, "1 to 16384"),
    (lambda: frames.postprocess(LOGITS[0, 0], (20, 30)), ValueError, "h, w"),
    (lambda: frames.postprocess(LOGITS[None], (20, 30)), ValueError, "h, w"),
    (lambda: frames.postprocess(LOGITS[:0], (20, 30)), ValueError, "1 to 255 classes"),
    (lambda: frames.postprocess(LOGITS.astype(int), (20, 30)), TypeError, "float32"),
    (lambda: frames.postprocess(LOGITS.transpose(0, 2, 1), (20, 30)), ValueError, "columns"),
    (lambda: frames.postprocess(LOGITS, (20, 30), out=MASK[:, :29]), ValueError, "20, 30"),
    (lambda: frames.postprocess(LOGITS, (20, 30), out=fixed(MASK)), ValueError, "writable"),
    (
        lambda: frames.postprocess(LOGITS, (20, 30), out=np.zeros((20, 30))),
        TypeError,
        "expected uint8",
    ),
    (lambda: frames.resize(LOGITS, (0, 4)), ValueError, "1 to 16384"),
    (lambda: frames.resize(np.zeros((256, 2, 2), np.float32), (4, 4)), ValueError, "classes"),
    (lambda: frames.overlay(FRAME.copy(), MASK[:, :29].copy()), ValueError, "mask's size"),
    (lambda: frames.overlay(FRAME.copy(), MASK.T), ValueError, "contiguous"),
    (lambda: frames.overlay(FRAME.copy(), MASK.astype(float)), TypeError, "uint8"),
    (lambda: frames.overlay(FRAME.copy(), None), TypeError, "numpy array"),
    (lambda: frames.overlay(fixed(FRAME), MASK), ValueError, "writable"),
    (lambda: frames.overlay(FRAME.copy(), MASK, (0, 0, 256)), ValueError, "0 to 255"),
    (lambda: frames.overlay(FRAME.copy(), MASK, (0, 0)), TypeError, "tuple of 3"),  # type: ignore
    (lambda: frames.overlay(FRAME.copy(), MASK, alpha=1.5), ValueError, "from 0 to 1"),
    (lambda: frames.overlay(FRAME.copy(), MASK, alpha="x"), TypeError, "number"),  # type: ignore
    (lambda: frames.overlay(FRAME.copy(), MASK, outline=-1), ValueError, "from 0 to 64"),
    (lambda: frames.overlay(FRAME.copy(), MASK, outline=65), ValueError, "from 0 to 64"),
    (lambda: frames.outline(MASK, 0), ValueError, "from 1 to 64"),
    (lambda: frames.encode_rle(FRAME), ValueError, "height, width"),
    (lambda: frames.decode_rle({"size": [4, 4]}), TypeError, "counts"),
    (lambda: frames.decode_rle({"size": [4, 4], "counts": [15]}), ValueError, "pixels"),
    (lambda: frames.decode_rle({"size": [4, 4], "counts": [17]}), ValueError, "pixels"),
    (lambda: frames.decode_rle({"size": [4, 4], "counts": [-1, 17]}), ValueError, "a run"),
    (lambda: frames.decode_rle({"size": [4, 4], "counts": [10**40]}), ValueError, "a run"),
    (lambda: frames.decode_rle({"size": [4, 10**9], "counts": [1]}), ValueError, "1 to 16384"),
    (lambda: frames.set_threads(0), ValueError, "from 1 to"),
    (lambda: _frames.use_instruction_set("mmx"), ValueError, "mmx"),
]


@pytest.mark.parametrize(("call", "error", "message"), CALLS)
def test_calls(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_null_and_foreign_device_memory() -> None:
    """A device array's pointer is looked at before it is used; without CUDA it is refused."""
    null = _frames.DeviceArray(0, "uint8", [20, 30], [30, 1], None)
    with pytest.raises(ValueError, match="memory that is there"):
        _frames.overlay(FRAME.copy(), null, (0, 0, 0), 0.5, 1, 0)
    mixed = _frames.DeviceArray(4096, "uint8", [20, 30], [30, 1], None)
    with pytest.raises(ValueError, match="device of frame"):
        _frames.overlay(FRAME.copy(), mixed, (0, 0, 0), 0.5, 1, 0)
    strideless = _frames.DeviceArray(4096, "uint8", [20, 30], [30], None)
    with pytest.raises(ValueError, match="stride for each side"):
        _frames.encode_rle(strideless)
    host = _frames.DeviceArray(MASK.ctypes.data, "uint8", [20, 30], [30, 1], None)
    with pytest.raises((RuntimeError, ValueError), match="CUDA"):
        _frames.outline(host, 1, host, 0)


def test_unbuilt_extension_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kernels._frames", None)
    for call in (frames.build_info, lambda: frames.preprocess(FRAME, (8, 8), layout="RGB")):
        with pytest.raises(ImportError, match=r"pip install -e \. --no-build-isolation"):
            call()
