"""Dispersive loss of few long rows on a GPU: three launches forward, one backward.

Gram matrices over splits of the columns, their sum in a fixed order, and one program that turns it
into the loss and the matrix M of the gradient M h. Rows are centred; what enters a product on
tensor cores is split in two parts of bfloat16, hi and lo (of TF32 for float32 rows), and

    G = hi hi^T + S + S^T,   S = hi lo^T,

needs two products, as symmetry gives the third: a split keeps hi hi^T + 2 S, the sum is made
symmetric at the end. lo lo^T, at most 2**-18 of the norms, is left out. The gradient takes three,
M's parts being made once a program.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import pairs
from kernels.pairs import Options
from kernels.triton_ops.launch import capability, device_of, power_of_two, warps_for
from kernels.triton_ops.math import INTERPRETED

PROGRAMS = 256  # splits of the columns at most; a constant, so every GPU sums in the same order
TILE = 8192  # numbers a step; half as many of float32, or where columns' squares are summed
STAGES = 3
ENTRIES = 64  # of the Gram matrix a program of its sum
_ROUNDING = tl.constexpr(pairs.ROUNDING * 2.0**-23)
_SMALLEST_SQUARE = tl.constexpr(pairs.SMALLEST_NORM**2)


def forward(h: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """The loss and the matrix [N, N] whose product with h is the gradient."""
    n, d = h.shape
    grid, steps, sizes = _launch(h, options)
    rows = sizes["ROWS"]
    grams = h.new_empty(grid[0] + 1, rows, rows, dtype=torch.float32)  # the last is their sum
    squares = h.new_empty(grid[0], dtype=torch.float32)
    loss, matrix = (h.new_empty(size, dtype=torch.float32) for size in ((), (n, n)))
    own = n * options.margin**2 if options.include_diagonal else 0.0
    slope = -2 / (options.count(n) if options.variant == "hinge" else options.tau)
    if options.variant == "covariance":
        slope = 1 / (n - 1) ** 2
    with device_of(h):
        gram_kernel[grid](
            h, grams, squares, n, d, h.stride(0), steps,
            CENTRE=options.variant != "infonce_cosine", **sizes,
        )  # fmt: skip
        sum_kernel[(rows * rows // ENTRIES,)](grams, grid[0], ROWS=rows, ENTRIES=ENTRIES)
        finish_kernel[(1,)](
            grams, squares, loss, matrix, n, grid[0], options.scale(d), options.tau,
            options.margin, own, slope, math.log(options.count(n)),
            math.log(n) if options.include_diagonal else -math.inf, options.log_epsilon,
            VARIANT=options.variant, ROWS=rows, SPLITS=PROGRAMS,
        )  # fmt: skip
    return loss, matrix


def backward(gradient: Tensor, h: Tensor, matrix: Tensor, options: Options) -> Tensor:
    """The gradient by h [N, D], contiguous; ``matrix`` [N, N] is from the forward pass."""
    n, d = h.shape
    out = torch.empty(n, d, dtype=h.dtype, device=h.device)
    grid, steps, sizes = _launch(h, options)
    with device_of(h):
        backward_kernel[grid](
            h, matrix, gradient, out, n, d, h.stride(0), steps, 4 / (n - 1) ** 2,
            OFFSETS=options.variant == "infonce_cosine", **sizes,
        )  # fmt: skip
    return out


def _launch(h: Tensor, options: Options) -> tuple[tuple[int], int, dict[str, int]]:
    """Programs, steps of each, and the compile-time sizes and options."""
    n, d = h.shape
    warps = warps_for(capability(h.device), h.element_size())
    sizes = sizes_for(n, h.element_size(), options.variant == "covariance", warps)
    steps = triton.cdiv(triton.cdiv(d, sizes["COLUMNS"]), PROGRAMS)
    return (triton.cdiv(d, sizes["COLUMNS"] * steps),), steps, sizes


def sizes_for(n: int, element_size: int, squares: bool, warps: int = 4) -> dict[str, int]:
    """A tile's rows and columns, whether all its rows are filled, and the launch's options."""
    rows = power_of_two(n, 16)
    columns = TILE // rows // (2 if element_size == 4 or squares else 1)
    sizes = {"ROWS": rows, "COLUMNS": columns, "FULL": n == rows, "SQUARES": squares}
    return sizes | {"num_warps": warps, "num_stages": STAGES}


@triton.jit
def gram_kernel(
    h, grams, squares, n, d, stride, steps,
    CENTRE: tl.constexpr, SQUARES: tl.constexpr, FULL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One split's hi hi^T + 2 hi lo^T [ROWS, ROWS], and its sum of squared column squares."""
    split = tl.program_id(0)
    row = tl.arange(0, ROWS)
    high = tl.zeros((ROWS, ROWS), tl.float32)
    mixed = tl.zeros((ROWS, ROWS), tl.float32)
    total = 0.0
    for step in range(steps):
        first = (split * steps + step).to(tl.int64) * COLUMNS
        x, _ = _columns(h, first, n, d, stride, CENTRE, FULL, ROWS, COLUMNS)
        hi, lo = _parts(x, h.dtype.element_ty == tl.float32)
        high = _dot(hi, tl.trans(hi), high)
        mixed = _dot(hi, tl.trans(lo), mixed)
        if SQUARES:
            square = tl.sum(x * x, 0)
            total += tl.sum(square * square, 0)
    at = grams + split * ROWS * ROWS + row[:, None] * ROWS + row[None, :]
    tl.store(at, high + 2.0 * mixed)
    tl.store(squares + split, total)


@triton.jit
def sum_kernel(grams, splits, ROWS: tl.constexpr, ENTRIES: tl.constexpr):
    """The splits' matrices added up, behind the last of them."""
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    part = tl.arange(0, 32)
    found = tl.zeros((ENTRIES,), tl.float32)
    for first in range(0, splits, 32):
        split = first + part
        at = grams + split[:, None] * ROWS * ROWS + entry[None, :]
        found += tl.sum(tl.load(at, mask=(split < splits)[:, None], other=0.0), 0)
    tl.store(grams + splits * ROWS * ROWS + entry, found)


@triton.jit
def finish_kernel(
    grams, squares, loss, matrix, n, splits, scale, tau, margin, own, slope,
    log_count, log_own, log_epsilon,
    VARIANT: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """The loss and M from the Gram matrix: what ``pairs.few_finish`` computes."""
    gram_at = grams + splits * ROWS * ROWS
    i = tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, ROWS)[None, :]
    gram = 0.5 * (tl.load(gram_at + i * ROWS + j) + tl.load(gram_at + j * ROWS + i))
    apart = (i != j) & (i < n) & (j < n)
    left, right = tl.load(gram_at + i * (ROWS + 1)), tl.load(gram_at + j * (ROWS + 1))
    if VARIANT == "covariance":
        split = tl.arange(0, SPLITS)
        variances = tl.sum(tl.load(squares + split, mask=split < splits, other=0.0), 0)
        found = (_sum(gram * gram) - variances) * slope
        m = gram * (4.0 * slope)
    elif VARIANT == "infonce_cosine":
        inverse = _inverse_length(left) * _inverse_length(right)
        cosine = gram * inverse
        exponent = tl.where(apart, (cosine - 1.0) / tau, float("-inf"))
        found = _infonce(exponent, log_count, log_own, log_epsilon)
        weights = tl.exp(exponent - (found + log_count)) * slope
        around = tl.sum(weights * cosine, 1)[:, None] * _inverse_length(left)
        m = tl.where(i == j, around * _inverse_length(left), 0.0) - weights * inverse
    else:
        norms = left + right
        squared = norms - 2.0 * gram
        distance = tl.where(squared <= norms * _ROUNDING, 0.0, squared) / scale
        if VARIANT == "hinge":
            root = tl.sqrt_rn(distance)
            short = tl.where(apart, tl.where(root >= margin, 0.0, margin - root), 0.0)
            found = (_sum(short * short) + own) * (slope * -0.5)
            weights = tl.where(root == 0.0, 0.0, short / root) * slope
        else:
            exponent = tl.where(apart, distance / -tau, float("-inf"))
            found = _infonce(exponent, log_count, log_own, log_epsilon)
            weights = tl.exp(exponent - (found + log_count)) * slope
        m = tl.where(i == j, tl.sum(weights, 1)[:, None], 0.0) - weights
        m *= 2.0 / scale
    tl.store(loss, found)
    tl.store(matrix + i * n + j, m, mask=(i < n) & (j < n))


@triton.jit
def backward_kernel(
    h, matrix, gradient, out, n, d, stride, steps, unit,
    OFFSETS: tl.constexpr, SQUARES: tl.constexpr, FULL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out = (M x + M 1 mean - (sum of squares) x unit) gradient, x centred."""
    row, lane = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    both = (row < n)[:, None] & (row < n)[None, :]
    upstream = tl.load(gradient)
    m = tl.load(matrix + row[:, None] * n + row[None, :], mask=both, other=0.0) * upstream
    m_hi, m_lo = _parts(m, h.dtype.element_ty == tl.float32)
    for step in range(steps):
        first = (tl.program_id(0) * steps + step).to(tl.int64) * COLUMNS
        x, mean = _columns(h, first, n, d, stride, True, FULL, ROWS, COLUMNS)
        hi, lo = _parts(x, h.dtype.element_ty == tl.float32)
        found = _dot(m_hi, hi, tl.zeros((ROWS, COLUMNS), tl.float32))
        found = _dot(m_lo, hi, found)
        found = _dot(m_hi, lo, found)
        if OFFSETS:
            found += tl.sum(m, 1)[:, None] * mean[None, :]
        if SQUARES:
            found -= tl.sum(x * x, 0)[None, :] * x * (unit * upstream)
        inside = (lane < d - first)[None, :]
        if not FULL:
            inside = inside & (row < n)[:, None]
        at = out + first + row.to(tl.int64)[:, None] * d + lane[None, :]
        tl.store(at, found.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _columns(
    h, first, n, d, stride, CENTRE: tl.constexpr, FULL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Columns [ROWS, COLUMNS] from ``first`` on in float32, centred if wished, and their means."""
    row, lane = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (lane < d - first)[None, :]
    if not FULL:
        inside = inside & (row < n)[:, None]
    at = h + first + row.to(tl.int64)[:, None] * stride + lane[None, :]
    x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / n
    if CENTRE:
        x -= mean[None, :]
        if not FULL:
            x = tl.where(inside, x, 0.0)
    return x, mean


@triton.jit
def _parts(x, WIDE: tl.constexpr):
    """x = hi + lo, to 2**-17 in two bfloat16 for half precision, to 2**-21 in two TF32 else.

    hi is rounded by an addition to the bits, as a conversion has a quarter of the throughput: cut
    off, the lo of all numbers would have their sign, and lo lo^T be missed. NaN may be lost in hi,
    not in lo.
    """
    bits = x.to(tl.int32, bitcast=True)
    if WIDE:
        hi = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        lo = x - hi
    else:
        bits += 0x8000
        hi = (bits & -0x10000).to(tl.float32, bitcast=True)
        lo = (x - hi).to(tl.bfloat16)
        if INTERPRETED:  # its products of bfloat16 are wrong; of float32 they are the same here
            lo = lo.to(tl.float32)
        else:
            hi = (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return hi, lo


@triton.jit
def _dot(left, right, total):
    return tl.dot(left, right, total, input_precision="tf32")


@triton.jit
def _sum(x):
    return tl.sum(tl.sum(x, 1), 0)


@triton.jit
def _inverse_length(square):
    return tl.where(square <= _SMALLEST_SQUARE, 0.0, 1.0 / tl.sqrt_rn(square))


@triton.jit
def _infonce(exponent, log_count, log_own, log_epsilon):
    """log(mean exp + epsilon) over the pairs, of exponents of -inf elsewhere."""
    top = tl.max(tl.max(exponent, 1), 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    log_sum = tl.log(_sum(tl.exp(exponent - top))) + top
    return log_add(log_add(log_sum, log_own) - log_count, log_epsilon)


@triton.jit
def log_add(a, b):
    """log(exp a + exp b); NaN where a is."""
    top = tl.maximum(a, b)
    top = tl.where(top == float("-inf"), 0.0, top)
    return top + tl.log(tl.exp(a - top) + tl.exp(b - top))
