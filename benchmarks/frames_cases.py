"""What benchmarks/frames.py measures: each operation as we do it and as users write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels import frames
from medisseg.errors import UserError

MEAN = np.array(frames.IMAGENET_MEAN, np.float32)
STD = np.array(frames.IMAGENET_STD, np.float32)
FULL_HD = (1080, 1920)
GREEN, ALPHA, THICKNESS = (0, 255, 0), 0.35, 2


@dataclass(frozen=True)
class Case:
    """One operation with the ways to do it; the first provider is ours.

    ``bytes`` is the least that must move: the pixels that are read and written, once each.
    """

    op: str
    dtype: str
    shape: str
    bytes: int
    providers: dict[str, Callable[[], Any]]


def cpu_cases() -> list[Case]:
    """The operations of one live frame at 1080p."""
    return [*_preprocess_cases(), _overlay_case(), *_mask_cases()]


def _frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*FULL_HD, 3), np.uint8)


def _polyp() -> np.ndarray:
    """An ellipse over a sixth of the frame, uint8 0 or 1."""
    y, x = np.ogrid[: FULL_HD[0], : FULL_HD[1]]
    return ((((y - 500) / 300) ** 2 + ((x - 900) / 360) ** 2) < 1).astype(np.uint8)


def _preprocess_cases() -> list[Case]:
    import cv2

    bgr, size = _frame(), (256, 256)
    nv12 = bgr.reshape(-1)[: 1620 * 1920].reshape(1620, 1920)
    out = np.empty((3, *size), np.float32)
    half = np.empty((3, *size), np.float16)

    def usual(frame: np.ndarray, code: int | None, dtype: Any) -> np.ndarray:
        """Convert, resize, divide, subtract, divide, transpose, cast."""
        if code is not None:
            frame = cv2.cvtColor(frame, code)
        x = cv2.resize(frame, size)
        if code is None:
            x = cv2.cvtColor(x, cv2.COLOR_BGR2RGB)
        x = (x.astype(np.float32) / 255 - MEAN) / STD
        return np.ascontiguousarray(x.transpose(2, 0, 1)).astype(dtype, copy=False)

    def blob() -> np.ndarray:
        x = cv2.dnn.blobFromImage(bgr, 1 / 255, size, tuple(map(float, 255 * MEAN)), swapRB=True)
        return x / STD.reshape(1, 3, 1, 1)

    yuv: dict[str, Any] = {"layout": "NV12", "matrix": "BT.601", "value_range": "limited"}
    touched = 2 * size[0] * FULL_HD[1]
    return [
        Case(
            "preprocess BGR",
            "float32",
            "1080x1920 -> 256x256",
            3 * touched + out.nbytes,
            {
                "ours": lambda: frames.preprocess(bgr, size, layout="BGR", out=out),
                "numpy + OpenCV": lambda: usual(bgr, None, np.float32),
                "OpenCV blobFromImage": blob,
            },
        ),
        Case(
            "preprocess BGR",
            "float16",
            "1080x1920 -> 256x256",
            3 * touched + half.nbytes,
            {
                "ours": lambda: frames.preprocess(bgr, size, layout="BGR", out=half),
                "numpy + OpenCV": lambda: usual(bgr, None, np.float16),
            },
        ),
        Case(
            "preprocess NV12",
            "float32",
            "1080x1920 -> 256x256",
            touched * 3 // 2 + out.nbytes,
            {
                "ours": lambda: frames.preprocess(nv12, size, out=out, **yuv),
                "numpy + OpenCV": lambda: usual(nv12, cv2.COLOR_YUV2RGB_NV12, np.float32),
            },
        ),
    ]


def _overlay_case() -> Case:
    import cv2

    mask = _polyp()
    ours, theirs, plain = _frame(), _frame(), _frame()

    def opencv() -> None:
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        layer = theirs.copy()
        cv2.drawContours(layer, contours, -1, GREEN, cv2.FILLED)
        cv2.addWeighted(layer, ALPHA, theirs, 1 - ALPHA, 0, dst=theirs)
        cv2.drawContours(theirs, contours, -1, GREEN, THICKNESS)

    def numpy() -> None:
        inside = mask > 0
        plain[inside] = (plain[inside] * (1 - ALPHA) + np.array(GREEN) * ALPHA).astype(np.uint8)
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(plain, contours, -1, GREEN, THICKNESS)

    return Case(
        "overlay with outline",
        "uint8",
        "1080x1920, 16% masked",
        mask.nbytes + 6 * int(mask.sum()),
        {
            "ours": lambda: frames.overlay(ours, mask, GREEN, ALPHA, THICKNESS),
            "OpenCV addWeighted": opencv,
            "numpy indexing": numpy,
        },
    )


def _mask_cases() -> list[Case]:
    import cv2

    mask = _polyp()
    logits = cv2.resize(mask * 8.0 - 4.0, (256, 256)).astype(np.float32)
    width, height = FULL_HD[1], FULL_HD[0]
    out = np.empty(FULL_HD, np.uint8)
    done = frames.postprocess(logits, FULL_HD)

    def usual() -> Any:
        probability = 1 / (1 + np.exp(-cv2.resize(logits, (width, height))))
        found = (probability > 0.5).astype(np.uint8)
        return found, int(found.sum()), cv2.connectedComponentsWithStats(found)

    def rle() -> list[int]:
        flat = np.concatenate([[0], done.mask.ravel("F"), [0]])
        edges = np.flatnonzero(np.diff(flat)).tolist()
        return np.diff([0, *edges, done.mask.size]).tolist()

    def ours() -> Any:
        result = frames.postprocess(logits, FULL_HD, out=out)
        return result, result.boxes

    moved = logits.nbytes + out.nbytes
    return [
        Case(
            "postprocess: mask, area, boxes",
            "float32",
            "256x256 -> 1080x1920",
            moved,
            {"ours": ours, "numpy + OpenCV": usual},
        ),
        Case(
            "run lengths",
            "uint8",
            "1080x1920",
            out.nbytes,
            {"ours": lambda: frames.encode_rle(done.mask), "numpy": rle},
        ),
    ]


def cuda_cases() -> list[Case]:
    """The same on a GPU beside PyTorch's operators; each call is waited for."""
    import torch
    from torch.nn import functional as F

    if not torch.cuda.is_available() or not frames.build_info()["cuda"]:
        raise UserError(
            "--device cuda needs an NVIDIA GPU, a CUDA PyTorch and MEDISSEG_CUDA=1 at the build; "
            "use --device cpu here"
        )
    bgr = torch.from_numpy(_frame()).cuda()
    mask = torch.from_numpy(_polyp()).cuda()
    logits = F.interpolate(mask[None, None] * 8.0 - 4.0, (256, 256))[0].contiguous()
    out = torch.empty(3, 256, 256, device="cuda")
    mean, std = (torch.tensor(v, device="cuda").view(3, 1, 1) for v in (MEAN, STD))
    color = torch.tensor(GREEN, device="cuda")

    def waited(call: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            call()
            torch.cuda.synchronize()

        return run

    def usual() -> Any:
        x = bgr.flip(2).permute(2, 0, 1)[None].float() / 255
        return (F.interpolate(x, (256, 256), mode="bilinear")[0] - mean) / std

    def upsampled() -> Any:
        found = F.interpolate(logits[None], FULL_HD, mode="bilinear")[0, 0].sigmoid() > 0.5
        return found, int(found.sum())

    def blended() -> Any:
        return torch.where(mask[..., None] > 0, bgr * (1 - ALPHA) + color * ALPHA, bgr).byte()

    touched = 6 * 256 * FULL_HD[1] + 4 * out.numel()
    drawn = mask.numel() + 6 * int(mask.sum())
    cases = [
        ("preprocess BGR", "float32", "1080x1920 -> 256x256", touched, usual),
        ("postprocess: mask, area", "float32", "256x256 -> 1080x1920", mask.numel(), upsampled),
        ("overlay with outline", "uint8", "1080x1920, 16% masked", drawn, blended),
    ]
    ours = [
        lambda: frames.preprocess(bgr, (256, 256), layout="BGR", out=out),
        lambda: frames.postprocess(logits, FULL_HD),
        lambda: frames.overlay(bgr, mask, GREEN, ALPHA, THICKNESS),
    ]
    return [
        Case(*case[:4], {"ours": waited(mine), "PyTorch eager": waited(case[4])})
        for case, mine in zip(cases, ours, strict=True)
    ]
