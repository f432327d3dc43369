"""CDFA window mixing on a GPU: softmax, 5 x 5 filter and 25 taps in one kernel.

A program serves one head of one image at BLOCK positions. Forward it keeps the nine softmaxes'
highest logits and inverse sums, then gathers every tap's weight from at most nine attention
entries. Backward, one kernel gives the logits' gradient and leaves each softmax's log-sum-exp,
with which a second one gathers the values' gradient; nothing is scattered, so nothing is atomic.
Loops over taps stay loops: unrolled, their loads are hoisted together and registers spill.
Logits, values and outputs come with their strides: any layout is read in place.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_ops.launch import DTYPES, device_of, power_of_two

DEEPEST = 32  # channels of a head; more of them spill
_PAIRS = tl.constexpr(81)


def takes(logits: Tensor, values: Tensor) -> bool:
    """Whether the kernels serve these tensors (shapes are checked before)."""
    depth = values.shape[1] * _PAIRS.value // max(logits.shape[1], 1)
    heads = logits.shape[0] * logits.shape[1] // _PAIRS.value
    served = logits.dtype in DTYPES and values.dtype in DTYPES
    return served and values.numel() > 0 and depth <= DEEPEST and heads < 1 << 16


def forward(logits: Tensor, values: Tensor) -> Tensor:
    """Return the mixed values in the layout of ``values``."""
    out = torch.empty_like(values)
    grid, sizes, meta = _launch(logits, values)
    with device_of(values):
        forward_kernel[grid](
            logits, values, out, *sizes, *logits.stride(), *values.stride(), *out.stride(), **meta
        )
    return out


def backward(gradient: Tensor, logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients by logits and values, each in its own layout."""
    dlogits, dvalues = torch.empty_like(logits), torch.empty_like(values)
    batch, channels, height, width = logits.shape
    log_sums = logits.new_empty(batch, channels // 9, height, width, dtype=torch.float32)
    grid, sizes, meta = _launch(logits, values)
    with device_of(values):
        logits_gradient_kernel[grid](
            gradient, logits, values, dlogits, log_sums, *sizes, *gradient.stride(),
            *logits.stride(), *values.stride(), *dlogits.stride(), **meta,
        )  # fmt: skip
        values_gradient_kernel[grid](
            gradient, logits, log_sums, dvalues, *sizes, *gradient.stride(), *logits.stride(),
            *dvalues.stride(), **meta,
        )  # fmt: skip
    return dlogits, dvalues


def _launch(
    logits: Tensor, values: Tensor
) -> tuple[tuple[int, int], tuple[int, ...], dict[str, int]]:
    """Return the grid, (height, width, heads, depth) and the compile-time sizes."""
    batch, channels, height, width = values.shape
    heads = logits.shape[1] // _PAIRS.value
    depth = power_of_two(channels // heads)
    block = block_for(depth)
    grid = (triton.cdiv(height * width, block), batch * heads)
    meta = {"BLOCK": block, "DEPTH": depth, "num_warps": warps_for(depth)}
    return grid, (height, width, heads, channels // heads), meta


def block_for(depth: int) -> int:
    """Positions a program: a tile of values [BLOCK, DEPTH] is 32 numbers a thread."""
    return 1024 // max(depth, 16)


def warps_for(depth: int) -> int:
    """As few as registers allow: a softmax's weights are one number a position, which every further
    warp computes again (H200, 16 x 128 x 128 x 128 of 32 channels a head in float16: 1.9 ms forward
    at four warps, 1.1 at one). Shallow heads have twice the positions, whose weights one warp of an
    RTX 30 or 40 cannot hold."""
    return 1 if depth > 16 else 2


@triton.jit
def forward_kernel(
    logits, values, out, height, width, heads, depth,
    lb, lc, lh, lw, vb, vc, vh, vw, ob, oc, oh, ow,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out[p] = sum over taps d of W[p, d] v[p + d]."""
    y, x, here, batch, head = _place(height, width, heads, BLOCK)
    logits += batch * lb + head * _PAIRS * lc
    values += batch * vb + head * depth * vc
    channel = tl.arange(0, DEPTH)
    highest = ()
    inverse = ()
    for q in tl.static_range(9):
        sy, sx = y - (q // 3 - 1), x - (q % 3 - 1)
        inside = here & _within(sy, sx, height, width)
        at = logits + sy.to(tl.int64) * lh + sx.to(tl.int64) * lw
        top, total = _softmax(at, q, lc, inside)
        highest = highest + (top,)
        inverse = inverse + (1.0 / total,)
    mixed = tl.zeros((BLOCK, DEPTH), tl.float32)
    for d in range(25):
        weight = tl.zeros((BLOCK,), tl.float32)
        for q in tl.static_range(9):
            ky, kx = _input(q, d)
            if ky >= 0 and ky <= 2 and kx >= 0 and kx <= 2:
                sy, sx = y - (q // 3 - 1), x - (q % 3 - 1)
                inside = here & _within(sy, sx, height, width)
                at = logits + sy.to(tl.int64) * lh + sx.to(tl.int64) * lw
                logit = _load(at + (q * 9 + ky * 3 + kx) * lc, inside)
                weight += tl.where(inside, tl.exp(logit - highest[q]) * inverse[q], 0.0)
        vy, vx = y + (d // 5 - 2), x + (d % 5 - 2)
        inside = here & _within(vy, vx, height, width)
        mixed += weight[:, None] * _tile(values, vy, vx, channel, depth, inside, vc, vh, vw)
    out += batch * ob + head * depth * oc
    at = out + _offsets(y, x, channel, oc, oh, ow)
    mask = here[:, None] & (channel < depth)[None, :]
    tl.store(at, mixed.to(out.dtype.element_ty), mask=mask)


@triton.jit
def logits_gradient_kernel(
    gradient, logits, values, dlogits, log_sums, height, width, heads, depth,
    gb, gc, gh, gw, lb, lc, lh, lw, vb, vc, vh, vw, db, dc, dh, dw,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """dA[p, q, k] = g[p + q] . v[p + k]; dlogits = A (dA - sum_k A dA); and log_sums[p, q]."""
    y, x, here, batch, head = _place(height, width, heads, BLOCK)
    logits += batch * lb + head * _PAIRS * lc + y.to(tl.int64) * lh + x.to(tl.int64) * lw
    dlogits += batch * db + head * _PAIRS * dc + y.to(tl.int64) * dh + x.to(tl.int64) * dw
    gradient += batch * gb + head * depth * gc
    values += batch * vb + head * depth * vc
    area = tl.cast(height, tl.int64) * width  # a height of 1 has no .to
    log_sums += (batch * heads + head) * 9 * area + y.to(tl.int64) * width + x
    channel = tl.arange(0, DEPTH)
    for q in range(9):
        top, total = _softmax(logits, q, lc, here)
        tl.store(log_sums + q * area, top + tl.log(total), mask=here)
        gy, gx = y + (q // 3 - 1), x + (q % 3 - 1)
        inside = here & _within(gy, gx, height, width)
        g = _tile(gradient, gy, gx, channel, depth, inside, gc, gh, gw)
        mean = tl.zeros((BLOCK,), tl.float32)
        for k in range(9):
            chance, slope = _pair(
                logits + (q * 9 + k) * lc, values, g, y, x, k, top, total, here, channel,
                height, width, depth, vc, vh, vw,
            )  # fmt: skip
            mean += chance * slope
        for k in range(9):  # computed again: nine slopes do not fit beside their tiles
            chance, slope = _pair(
                logits + (q * 9 + k) * lc, values, g, y, x, k, top, total, here, channel,
                height, width, depth, vc, vh, vw,
            )  # fmt: skip
            found = chance * (slope - mean)
            tl.store(dlogits + (q * 9 + k) * dc, found.to(dlogits.dtype.element_ty), mask=here)


@triton.jit
def _pair(at, values, g, y, x, k, top, total, here, channel, height, width, depth, vc, vh, vw):
    """A[p, q, k] and dA[p, q, k] = g . v[p + k]."""
    vy, vx = y + (k // 3 - 1), x + (k % 3 - 1)
    inside = here & _within(vy, vx, height, width)
    v = _tile(values, vy, vx, channel, depth, inside, vc, vh, vw)
    return tl.exp(_load(at, here) - top) / total, tl.sum(g * v, 1)


@triton.jit
def values_gradient_kernel(
    gradient, logits, log_sums, dvalues, height, width, heads, depth,
    gb, gc, gh, gw, lb, lc, lh, lw, db, dc, dh, dw,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """dv[p] = sum over taps d of W[p - d, d] g[p - d], W from A at p - k for every k - q = d."""
    y, x, here, batch, head = _place(height, width, heads, BLOCK)
    logits += batch * lb + head * _PAIRS * lc
    gradient += batch * gb + head * depth * gc
    area = tl.cast(height, tl.int64) * width  # a height of 1 has no .to
    log_sums += (batch * heads + head) * 9 * area
    channel = tl.arange(0, DEPTH)
    mixed = tl.zeros((BLOCK, DEPTH), tl.float32)
    for d in range(25):
        weight = tl.zeros((BLOCK,), tl.float32)
        for q in range(9):
            ky, kx = _input(q, d)
            if ky >= 0 and ky <= 2 and kx >= 0 and kx <= 2:
                sy, sx = y - (ky - 1), x - (kx - 1)
                inside = here & _within(sy, sx, height, width)
                at = logits + sy.to(tl.int64) * lh + sx.to(tl.int64) * lw
                logit = _load(at + (q * 9 + ky * 3 + kx) * lc, inside)
                log_sum = _load(log_sums + q * area + sy.to(tl.int64) * width + sx, inside)
                weight += tl.where(inside, tl.exp(logit - log_sum), 0.0)
        gy, gx = y - (d // 5 - 2), x - (d % 5 - 2)
        inside = here & _within(gy, gx, height, width)
        mixed += weight[:, None] * _tile(gradient, gy, gx, channel, depth, inside, gc, gh, gw)
    dvalues += batch * db + head * depth * dc
    at = dvalues + _offsets(y, x, channel, dc, dh, dw)
    mask = here[:, None] & (channel < depth)[None, :]
    tl.store(at, mixed.to(dvalues.dtype.element_ty), mask=mask)


@triton.jit
def _input(q, d):
    """Row and column, 0 to 2, of the window input k with k - q = tap d; outside where none is."""
    return q // 3 + d // 5 - 2, q % 3 + d % 5 - 2


@triton.jit
def _place(height, width, heads, BLOCK: tl.constexpr):
    """Rows, columns and validity of the program's positions; its image and head."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    here = position < height * width
    return position // width, position % width, here, image.to(tl.int64), head.to(tl.int64)


@triton.jit
def _within(y, x, height, width):
    return (y >= 0) & (y < height) & (x >= 0) & (x < width)


@triton.jit
def _load(at, mask):
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _softmax(at, q, stride, mask):
    """Highest of the nine logits of window output ``q`` and the sum of exp(logit - highest)."""
    top = _load(at + q * 9 * stride, mask)
    for k in tl.static_range(1, 9):
        top = tl.maximum(top, _load(at + (q * 9 + k) * stride, mask))
    total = tl.zeros_like(top)
    for k in tl.static_range(9):
        total += tl.exp(_load(at + (q * 9 + k) * stride, mask) - top)
    return top, total


@triton.jit
def _offsets(y, x, channel, sc, sh, sw):
    place = y.to(tl.int64) * sh + x.to(tl.int64) * sw
    return place[:, None] + (channel.to(tl.int64) * sc)[None, :]


@triton.jit
def _tile(base, y, x, channel, depth, inside, sc, sh, sw):
    """Values [BLOCK, DEPTH] in float32; 0 outside the image."""
    mask = inside[:, None] & (channel < depth)[None, :]
    return _load(base + _offsets(y, x, channel, sc, sh, sw), mask)
