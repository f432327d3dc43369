"""Maps enlarged into a concatenation on a GPU: channels innermost, one launch a map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_ops.launch import DTYPES, device_of, power_of_two

TILE = 1024  # numbers a program: 8 a thread


def takes(maps: Sequence[Tensor]) -> bool:
    """Whether the kernel serves the maps [N, C, h, w]: channels innermost, nothing empty."""
    return all(
        x.dtype in DTYPES
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and len(x) < 1 << 16
        for x in maps
    )


def forward(maps: Sequence[Tensor], size: Sequence[int], out: Tensor) -> Tensor:
    """As ``kernels.upsample.forward``, into the memory ``out``."""
    first = 0
    height, width = size
    with device_of(out):
        for x in maps:
            batch, channels, h, w = x.shape
            sizes = sizes_for(channels)
            blocks = triton.cdiv(channels, sizes["CHANNELS"])
            grid = triton.cdiv(height * width, sizes["BLOCK"]), blocks, batch
            upsample_kernel[grid](
                x, out[:, first:], h, w, channels, height, width, out.shape[1],
                _scale(h, height), _scale(w, width), SAME=(h, w) == (height, width),
                **sizes,
            )  # fmt: skip
            first += channels
    return out


def sizes_for(channels: int) -> dict[str, int]:
    """The output pixels and channels a program."""
    block = min(power_of_two(channels, 8), 128)
    return {"BLOCK": TILE // block, "CHANNELS": block}


def _scale(small: int, large: int) -> float:
    """Input pixels an output pixel, corners aligned."""
    return (small - 1) / (large - 1) if large > 1 else 0.0


@triton.jit
def upsample_kernel(
    x, out, h, w, channels, height, width, stride, down, across,
    SAME: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One block of output pixels and channels; ``stride`` is from pixel to pixel of ``out``.

    SAME: the map has the output's size and is copied, so that infinities stay where they are.
    """
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    image = tl.program_id(2).to(tl.int64)
    here = pixel < height * width
    mask = here[:, None] & (channel < channels)
    at = x + image * h * w * channels + channel
    if SAME:
        value = tl.load(at + pixel.to(tl.int64)[:, None] * channels, mask=mask, other=0.0)
    else:
        top, bottom, lower = _taps(pixel // width, down, h)
        left, right, farther = _taps(pixel % width, across, w)
        upper = _mixed(at, top * w + left, top * w + right, channels, farther, mask)
        under = _mixed(at, bottom * w + left, bottom * w + right, channels, farther, mask)
        value = upper + (under - upper) * lower[:, None]
    to = out + (image * height * width + pixel)[:, None] * stride + channel
    tl.store(to, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _taps(position, scale, size):
    """The two input pixels that an output pixel reads, and the second one's share."""
    place = position.to(tl.float32) * scale
    first = tl.minimum(place.to(tl.int32), size - 1)
    return first, tl.minimum(first + 1, size - 1), place - first.to(tl.float32)


@triton.jit
def _mixed(at, left, right, channels, share, mask):
    one = tl.load(at + left.to(tl.int64)[:, None] * channels, mask=mask, other=0.0).to(tl.float32)
    two = tl.load(at + right.to(tl.int64)[:, None] * channels, mask=mask, other=0.0).to(tl.float32)
    return one + (two - one) * share[:, None]
