"""Frames to network inputs: against PyTorch's own resampling, every layout and instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kernels import _frames, frames

MEAN, STD = frames.IMAGENET_MEAN, frames.IMAGENET_STD
LEVEL = 1 / 255 / min(STD)  # one level of a byte, after normalisation
SIZES = [  # frame, input: shrink, enlarge, the same, odd, one pixel, wide
    ((1080, 1920), (256, 256)),
    ((37, 53), (96, 80)),
    ((64, 64), (64, 64)),
    ((101, 33), (16, 47)),
    ((1, 1), (16, 32)),
    ((2, 3), (5, 1)),
    ((17, 1), (16, 16)),
]


@pytest.fixture(params=_frames.instruction_sets(), autouse=True)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs once with each instruction set of this machine."""
    before = _frames.instruction_set()
    _frames.use_instruction_set(request.param)
    yield request.param
    _frames.use_instruction_set(before)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def expected(rgb: np.ndarray, size: tuple[int, int], mean: Any = MEAN, std: Any = STD) -> Any:
    """The definition, in float64: resize values in [0, 1], then normalise."""
    planes = torch.from_numpy(np.array(rgb, np.float64)).permute(2, 0, 1)[None] / 255
    resized = F.interpolate(planes, size, mode="bilinear", align_corners=False)[0].numpy()
    return (resized - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))


@pytest.mark.parametrize("layout", ["RGB", "BGR"])
@pytest.mark.parametrize(("frame_size", "size"), SIZES)
def test_equals_interpolate(frame_size: Any, size: Any, layout: str) -> None:
    rgb = noise(*frame_size, 3)
    frame = rgb if layout == "RGB" else np.ascontiguousarray(rgb[..., ::-1])
    got = frames.preprocess(frame, size, MEAN, STD, layout=layout)
    assert got.dtype == np.float32
    assert np.abs(got - expected(rgb, size)).max() < 1e-4


def test_equals_interpolate_of_float32() -> None:
    """PyTorch itself in float32, the form that training code would write: within one level."""
    rgb = noise(720, 1280, 3)
    planes = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255
    resized = F.interpolate(planes, (352, 352), mode="bilinear", align_corners=False)[0].numpy()
    got = frames.preprocess(rgb, (352, 352), (0, 0, 0), (1, 1, 1), layout="RGB")
    assert np.abs(got - resized).max() < 1 / 255 / 10


def test_half_is_float32_rounded_to_nearest() -> None:
    frame = noise(90, 121, 3)
    single = frames.preprocess(frame, (64, 96), MEAN, STD, layout="RGB")
    half = frames.preprocess(frame, (64, 96), MEAN, STD, layout="RGB", dtype=np.float16)
    np.testing.assert_array_equal(half, single.astype(np.float16))


@pytest.mark.parametrize("bias", [0.0, 1e-7, 3e-5, 7e4])
def test_half_rounds_subnormals_and_overflows(bias: float) -> None:
    frame = noise(4, 64, 3)
    options: dict[str, Any] = {"mean": (-bias, 0, bias), "std": (1e4, 1, 1), "layout": "RGB"}
    single = frames.preprocess(frame, (4, 64), **options)
    half = frames.preprocess(frame, (4, 64), dtype=np.float16, **options)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(half, single.astype(np.float16))


@pytest.mark.parametrize("frame_size", [(1080, 1920), (100, 33), (33, 100), (7, 7)])
def test_letterbox_keeps_the_aspect(frame_size: tuple[int, int]) -> None:
    from medisseg.convention import InputConvention

    rgb = noise(*frame_size, 3)
    size = (128, 96)
    top, left, height, width = InputConvention(size=size, resize="letterbox").content(frame_size)
    got = frames.preprocess(rgb, size, MEAN, STD, layout="RGB", resize="letterbox")
    inside = got[:, top : top + height, left : left + width].copy()
    assert np.abs(inside - expected(rgb, (height, width))).max() < 1e-4
    got[:, top : top + height, left : left + width] = 0
    assert not got.any()


def test_pitch_and_out() -> None:
    buffer = noise(50, 256)
    frame = buffer[:, : 3 * 70].reshape(50, 70, 3)
    assert frame.strides == (256, 3, 1)
    out = np.full((2, 3, 32, 48), np.nan, np.float32)
    got = frames.preprocess(frame, (32, 48), MEAN, STD, layout="RGB", out=out[1])
    assert got.base is out or np.shares_memory(got, out)
    assert np.abs(out[1] - expected(frame, (32, 48))).max() < 1e-4
    assert np.isnan(out[0]).all()


def yuv_to_rgb(luma: np.ndarray, chroma: np.ndarray, matrix: str, limited: bool) -> np.ndarray:
    """The standards' equations in float64, chroma replicated, clamped to [0, 255]."""
    kr, kb = {"BT.601": (0.299, 0.114), "BT.709": (0.2126, 0.0722)}[matrix]
    y = (luma - 16.0) / 219 if limited else luma / 255.0
    uv = chroma.reshape(chroma.shape[0], -1, 2).repeat(2, 0).repeat(2, 1) - 128.0
    u, v = np.moveaxis(uv / (224 if limited else 255), 2, 0)
    red, blue = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(np.stack([red, green, blue], 2), 0, 1) * 255


@pytest.mark.parametrize("matrix", ["BT.601", "BT.709"])
@pytest.mark.parametrize("value_range", ["limited", "full"])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("size", [(40, 64), (96, 16), (200, 300)])
def test_nv12(matrix: str, value_range: str, planes: bool, size: tuple[int, int]) -> None:
    buffer = noise(72, 128, seed=3)
    frame = buffer[:, :100]  # 48 x 100 with a pitch of 128
    luma, chroma = frame[:48], frame[48:]
    where: Any = (luma, {"chroma": chroma}) if planes else (frame, {})
    got = frames.preprocess(
        where[0],
        size,
        MEAN,
        STD,
        layout="NV12",
        matrix=matrix,
        value_range=value_range,
        **where[1],
    )
    rgb = yuv_to_rgb(luma, chroma, matrix, value_range == "limited")
    assert np.abs(got - expected(rgb, size)).max() < 1e-4


def test_nv12_equals_opencv_within_rounding() -> None:
    cv2 = pytest.importorskip("cv2")
    smooth = cv2.GaussianBlur(noise(48, 64, seed=5), (0, 0), 5)
    frame = np.concatenate([smooth, smooth[:24]])
    rgb = cv2.cvtColor(frame, cv2.COLOR_YUV2RGB_NV12).astype(np.float32)
    got = frames.preprocess(
        frame,
        (48, 64),
        (0, 0, 0),
        (1 / 255,) * 3,
        layout="NV12",
        matrix="BT.601",
        value_range="limited",
    )
    assert np.abs(got.transpose(1, 2, 0) - rgb).max() < 1.5


def test_same_bits_as_scalar() -> None:
    frame = noise(203, 119, 3)
    luma = noise(150, 118)
    options: dict[str, Any] = {"layout": "NV12", "matrix": "BT.709", "value_range": "limited"}

    def both() -> tuple[Any, Any]:
        return (
            frames.preprocess(frame, (97, 83), layout="BGR"),
            frames.preprocess(luma, (97, 83), **options),
        )

    vector = both()
    _frames.use_instruction_set("scalar")
    for got, scalar in zip(vector, both(), strict=True):
        np.testing.assert_array_equal(got, scalar)


def test_dlpack_frames_are_read_in_place() -> None:
    frame = noise(30, 40, 3)
    out = torch.empty(1, 3, 16, 16)
    got = frames.preprocess(torch.from_numpy(frame), (16, 16), layout="RGB", out=out)
    assert got is out
    np.testing.assert_array_equal(out[0].numpy(), frames.preprocess(frame, (16, 16), layout="RGB"))


def test_threads_change_nothing() -> None:
    frame = noise(720, 1280, 3)
    before = frames.build_info()["threads"]
    frames.set_threads(1)
    one = frames.preprocess(frame, (512, 512), layout="RGB")
    frames.set_threads(64)
    assert frames.build_info()["threads"] >= 1
    np.testing.assert_array_equal(frames.preprocess(frame, (512, 512), layout="RGB"), one)
    frames.set_threads(before)


def test_convention_goes_through_it() -> None:
    from medisseg.convention import InputConvention

    rgb = noise(60, 80, 3)
    got = InputConvention(size=(32, 48)).preprocess(rgb)
    assert np.abs(got - expected(rgb, (32, 48))).max() < 1e-4
    swapped = InputConvention(size=(32, 48), color="BGR", mean=MEAN[::-1], std=STD[::-1])
    np.testing.assert_array_equal(swapped.preprocess(rgb), got[::-1])
