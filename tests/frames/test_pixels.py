"""What the CUDA kernels compute for one pixel, run on the CPU, has the CPU path's bits."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels import frames

ROOT = Path(__file__).resolve().parents[2]
LAYOUTS = ["RGB", "BGR", "NV12"]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """pixels_on_host.cpp as a library."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("pixels") / "pixels.so"
    source = Path(__file__).with_name("pixels_on_host.cpp")
    command = [compiler, "-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC"]
    include = f"-I{ROOT / 'kernels' / 'csrc'}"
    subprocess.run([*command, include, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def pointer(array: np.ndarray | None) -> Any:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("size", [(24, 40), (64, 30), (9, 200)])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_preprocess(host: Any, layout: str, dtype: Any, size: Any, resize: str) -> None:
    nv12 = layout == "NV12"
    height, width = 42, 66
    frame = noise(63, width) if nv12 else noise(height, width, 3)
    chroma = frame[height:] if nv12 else None
    options: dict[str, Any] = {"matrix": "BT.709", "value_range": "limited"} if nv12 else {}
    want = frames.preprocess(frame, size, layout=layout, resize=resize, dtype=dtype, **options)
    got = np.full_like(want, np.nan)
    content = frames.content((height, width), size, resize)
    scale, bias = frames._scale_and_bias(frames.IMAGENET_MEAN, frames.IMAGENET_STD)
    host.preprocess(
        pointer(frame),
        ctypes.c_int64(frame.strides[0]),
        pointer(chroma),
        ctypes.c_int64(frame.strides[0]),
        height,
        width,
        LAYOUTS.index(layout),
        (ctypes.c_int * 4)(*content),
        (ctypes.c_float * 3)(*scale),
        (ctypes.c_float * 3)(*bias),
        pointer(got),
        *size,
        int(dtype is np.float16),
    )
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("size", [(50, 70), (7, 9), (16, 20)])
def test_postprocess(host: Any, classes: int, half: bool, size: Any) -> None:
    logits = np.random.default_rng(3).normal(size=(classes, 16, 20)).astype(np.float32)
    if half:
        logits = logits.astype(np.float16)
        logits[0, 0, :3] = [1e-7, -3e-5, 6e4]  # subnormal, and near the greatest
    want = frames.postprocess(logits, size, 0.3)
    mask, resized = np.zeros(size, np.uint8), np.zeros(size, np.float32)
    threshold = ctypes.c_float(np.log(0.3 / 0.7))
    host.postprocess(
        pointer(logits),
        int(half),
        classes,
        16,
        20,
        threshold,
        pointer(mask),
        pointer(resized),
        *size,
    )
    np.testing.assert_array_equal(resized, frames.resize(logits, size)[0])
    np.testing.assert_array_equal(mask, want.mask)


@pytest.mark.parametrize("thickness", [0, 1, 3, 20, 64])
def test_drawing(host: Any, thickness: int) -> None:
    mask = np.repeat(np.repeat(noise(12, 20) > 90, 6, 0), 6, 1).astype(np.uint8)
    mask[20:66, 30:110] = 1
    frame = noise(*mask.shape, 3)
    want = frames.overlay(frame.copy(), mask, (9, 200, 255), 96 / 256, thickness)
    edge = np.zeros_like(mask)
    host.draw(
        pointer(frame),
        ctypes.c_int64(frame.strides[0]),
        pointer(mask),
        *mask.shape,
        (ctypes.c_uint8 * 3)(9, 200, 255),
        96,
        thickness,
        pointer(edge),
    )
    np.testing.assert_array_equal(frame, want)
    if thickness:
        np.testing.assert_array_equal(edge, frames.outline(mask, thickness))
