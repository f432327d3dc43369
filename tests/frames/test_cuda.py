"""CUDA tensors in, the CPU path's results out; and what a build without a GPU can show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kernels import _frames, frames

YUV: dict[str, Any] = {"matrix": "BT.601", "value_range": "full"}


@pytest.fixture
def cuda() -> None:
    """Skip where the extension has no CUDA part."""
    if not frames.build_info()["cuda"]:
        pytest.skip("the extension was built without CUDA")


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def blobs() -> np.ndarray:
    return np.repeat(np.repeat(noise(27, 48) > 120, 10, 0), 10, 1).astype(np.uint8)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("layout", ["RGB", "BGR", "NV12"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_preprocess_equals_cpu(layout: str, dtype: Any, resize: str) -> None:
    options: dict[str, Any] = {"layout": layout, "resize": resize, "dtype": dtype}
    options |= YUV if layout == "NV12" else {}
    shape = (810, 960) if layout == "NV12" else (810, 480, 3)
    strides = (1536, 1) if layout == "NV12" else (1536, 3, 1)  # rows are padded
    buffer = torch.from_numpy(noise(810, 1536))
    frame = buffer.as_strided(shape, strides).numpy()
    on_gpu = buffer.cuda().as_strided(shape, strides)
    want = frames.preprocess(frame, (256, 352), **options)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    got = frames.preprocess(on_gpu, (256, 352), stream=stream, **options)
    stream.synchronize()
    assert np.abs(got.cpu().numpy().astype(np.float64) - want).max() <= 1 / 255 / 10
    out = torch.zeros_like(got)
    before = torch.cuda.memory_allocated()
    assert frames.preprocess(on_gpu, (256, 352), out=out, **options) is out
    assert torch.cuda.memory_allocated() == before
    torch.testing.assert_close(out, got, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_masks_equal_cpu(classes: int, dtype: Any) -> None:
    logits = np.random.default_rng(0).normal(size=(classes, 64, 96)).astype(dtype)
    on_gpu = torch.from_numpy(logits).cuda()
    resized = frames.resize(on_gpu, (270, 481))
    np.testing.assert_allclose(
        resized.cpu().numpy(), frames.resize(logits, (270, 481)), rtol=0, atol=1e-6
    )
    for rule in ("stretch", "letterbox"):
        want = frames.postprocess(logits, (270, 481), 0.4, resize=rule)
        got = frames.postprocess(on_gpu, (270, 481), 0.4, resize=rule)
        assert np.mean(got.on_cpu != want.mask) < 1e-5
        assert got.area == np.count_nonzero(got.on_cpu)
        assert got.mask.is_cuda
        np.testing.assert_array_equal(got.outline.cpu().numpy(), frames.outline(got.on_cpu, 1))


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("thickness", [0, 2, 5])
def test_overlay_equals_cpu(thickness: int) -> None:
    mask = blobs()
    frame = noise(*mask.shape, 3)
    on_gpu = torch.from_numpy(frame).cuda()
    frames.overlay(on_gpu, torch.from_numpy(mask).cuda(), (255, 9, 80), 0.4, thickness)
    frames.overlay(frame, mask, (255, 9, 80), 0.4, thickness)
    np.testing.assert_array_equal(on_gpu.cpu().numpy(), frame)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_wrong_devices_and_layouts_raise() -> None:
    frame = torch.zeros(20, 30, 3, dtype=torch.uint8, device="cuda")
    with pytest.raises(ValueError, match="device of"):
        frames.overlay(frame, np.zeros((20, 30), np.uint8))
    with pytest.raises(ValueError, match="packed pixels"):
        frames.preprocess(frame.permute(1, 0, 2), (8, 8), layout="RGB")
    host = torch.zeros(20, 30, dtype=torch.uint8)
    fake = _frames.DeviceArray(host.data_ptr(), "uint8", [20, 30], [30, 1], host)
    with pytest.raises(ValueError, match="cannot read|can read"):
        _frames.outline(fake, 1, fake, 0)


@pytest.mark.usefixtures("cuda")
def test_every_target_is_compiled() -> None:
    """The fat binary names its targets: A100, Orin, RTX 40, H100 and RTX 50 with CUDA 13's nvcc."""
    built = frames.build_info()["cuda_architectures"]
    assert set(built) <= {"80", "87", "89", "90", "120", "ptx75"} and len(built) > 1
    binary = Path(_frames.__file__).read_bytes()
    for architecture in set(built) - {"ptx75"}:
        assert f"sm_{architecture}".encode() in binary


def test_loads_without_a_driver() -> None:
    """A fresh process without a visible GPU loads the extension and works on the CPU."""
    code = (
        "import numpy as np\n"
        "from kernels import frames\n"
        "frames.build_info()\n"
        "frames.preprocess(np.zeros((9, 9, 3), np.uint8), (8, 8), layout='RGB')\n"
    )
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=hidden)
