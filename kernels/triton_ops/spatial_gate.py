"""The spatial gate on a GPU, channels innermost: one pass pools, another convolves and multiplies.

The second reads ``x`` once more and the pooled maps (8 bytes a position) 98 times, from the cache:
a tile [positions, taps] that is summed like a row of channels, for 16 positions at a time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_ops.launch import DTYPES, device_of, power_of_two
from kernels.triton_ops.math import LOG2_E, exp2, reciprocal

TILE = 2048  # numbers a program: 16 a thread
DEEPEST = 1024  # channels
WARPS = 4
_TAPS = tl.constexpr(128)  # two maps of 7 x 7, each padded to 8 x 8


def takes(x: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels serve ``x`` [N, C, H, W]: channels innermost, not empty."""
    return (
        all(each is None or each.dtype in DTYPES for each in (x, *others))
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.shape[1] <= DEEPEST
        and len(x) < 1 << 16
    )


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, channels: Tensor | None) -> Tensor:
    """As ``kernels.spatial_gate.forward``."""
    batch, depth, height, width = x.shape
    out = torch.empty_like(x)
    pooled = x.new_empty((batch, 2, height, width), dtype=torch.float32)
    scale = None if channels is None else channels.contiguous()
    sizes = sizes_for(depth)
    grid = triton.cdiv(height * width, sizes["BLOCK"]), batch
    with device_of(x):
        pool_kernel[grid](
            x, scale, pooled, depth, height * width, SCALED=scale is not None, **sizes,
            num_warps=WARPS,
        )  # fmt: skip
        gate_kernel[grid](
            x, scale, pooled, weight, bias, out, depth, height, width, *weight.stride()[1:],
            SCALED=scale is not None, BIASED=bias is not None, **sizes, num_warps=WARPS,
        )  # fmt: skip
    return out


def sizes_for(depth: int) -> dict[str, int]:
    """The positions a program, and the channels, for maps of ``depth`` channels."""
    channels = power_of_two(depth, 16)
    return {"BLOCK": TILE // max(channels, 64), "CHANNELS": channels}


@triton.jit
def pool_kernel(
    x, scale, pooled, depth, area, SCALED: tl.constexpr, BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Mean and maximum over the channels of each position, in float32."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1).to(tl.int64)
    here = position < area
    channel = tl.arange(0, CHANNELS)
    value = _values(x, scale, image, position, channel, here, depth, area, SCALED)
    top = tl.max(tl.where((channel < depth)[None, :], value, float("-inf")), 1)
    to = pooled + image * 2 * area + position
    tl.store(to, tl.sum(value, 1) / depth, mask=here)
    tl.store(to + area, top, mask=here)


@triton.jit
def gate_kernel(
    x, scale, pooled, weight, bias, out, depth, height, width, wc, wh, ww,
    SCALED: tl.constexpr, BIASED: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The convolution of the pooled maps, its sigmoid, and the product."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1).to(tl.int64)
    area = height * width
    here = position < area
    tap = tl.arange(0, _TAPS)
    plane, row, column = tap // 64, tap // 8 % 8, tap % 8
    used = (row < 7) & (column < 7)
    factor = tl.load(weight + plane * wc + row * wh + column * ww, mask=used, other=0.0)
    y = (position // width)[:, None] + (row - 3)[None, :]
    x_ = (position % width)[:, None] + (column - 3)[None, :]
    inside = used[None, :] & (y >= 0) & (y < height) & (x_ >= 0) & (x_ < width)
    shift = plane * area + (row - 3) * width + column - 3
    at = pooled + image * 2 * area + position[:, None] + shift[None, :]
    taps = tl.load(at, mask=inside & here[:, None], other=0.0)
    answer = tl.sum(taps * factor.to(tl.float32)[None, :], 1)
    if BIASED:
        answer += tl.load(bias).to(tl.float32)
    gate = reciprocal(1.0 + exp2(answer * -LOG2_E))[:, None]
    channel = tl.arange(0, CHANNELS)
    value = _values(x, scale, image, position, channel, here, depth, area, SCALED)
    to = out + (image * area + position)[:, None] * depth + channel[None, :]
    mask = here[:, None] & (channel < depth)[None, :]
    tl.store(to, (value * gate).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _values(x, scale, image, position, channel, here, depth, area, SCALED: tl.constexpr):
    """x [BLOCK, CHANNELS] in float32, times its channels' factors; 0 outside."""
    at = x + (image * area + position)[:, None] * depth + channel[None, :]
    mask = here[:, None] & (channel < depth)[None, :]
    value = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if SCALED:
        factor = tl.load(scale + image * depth + channel, mask=channel < depth, other=0.0)
        value *= factor.to(tl.float32)[None, :]
    return value
