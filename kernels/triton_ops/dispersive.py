"""Dispersive loss on a GPU; mathematics and epilogues are those of ``kernels.pairs``.

Few long rows: centred Gram matrices over splits of the columns, summed in a fixed order, an N x N
epilogue, one pass back. One read of h forward; one read and one write backward.

Many rows: a program holds one block of rows and walks the tiles of pairs with a running
log-sum-exp, the upper triangle forward, all of them backward, so that each program owns its rows'
gradient. Covariance of many rows, and rows longer than ``LONGEST``, are matrix products: PyTorch's.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import pairs
from kernels.pairs import FEW, Options
from kernels.triton_ops.launch import DTYPES, PRODUCTS, device_of, power_of_two

LONGEST = 256  # columns of many rows: every OWNED of them compute the pairs' weights again
SPLITS = 512  # partial Gram matrices at most; a constant, so every GPU sums in the same order
COLUMNS = 32  # columns of few rows at a time
SIDES = (64, 32)  # rows and columns of a tile of pairs, forward and backward
DEPTH = 32  # columns of many rows at a time in products, as many in the gradient: OWNED
OWNED = 64
_ROUNDING = tl.constexpr(pairs.ROUNDING * 2.0**-23)
_PRODUCTS = tl.constexpr(PRODUCTS)


def takes(h: Tensor, variant: str) -> bool:
    """Whether the kernels serve ``h``: rows whose columns lie side by side."""
    n, d = h.shape
    many = n > FEW and d <= LONGEST and variant != "covariance"
    return h.dtype in DTYPES and h.stride(1) == 1 and (2 <= n <= FEW or many)


def forward(h: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """The loss and, of few rows, the matrix whose product with h is the gradient."""
    if len(h) <= FEW:
        return pairs.few_finish(*_gram(h, options), h.shape[1], options)
    return _many_forward(h, options), h.new_zeros(0, 0, dtype=torch.float32)


def backward(gradient: Tensor, h: Tensor, loss: Tensor, matrix: Tensor, options: Options) -> Tensor:
    """The gradient by h, contiguous."""
    if len(h) <= FEW:
        return _few_backward(gradient, h, matrix, options)
    return _many_backward(gradient, h, loss, options)


def _gram(h: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    n, d = h.shape
    rows = power_of_two(n, 16)
    steps = triton.cdiv(triton.cdiv(d, COLUMNS), SPLITS)
    splits = triton.cdiv(d, COLUMNS * steps)
    grams = h.new_empty(splits, rows, rows, dtype=torch.float32)
    squares = h.new_empty(splits, dtype=torch.float32)
    centre = options.variant != "infonce_cosine"
    with device_of(h):
        gram_kernel[(splits,)](
            h, grams, squares, n, d, h.stride(0), steps,
            CENTRE=centre, ROWS=rows, COLUMNS=COLUMNS, num_warps=4,
        )  # fmt: skip
    return grams.sum(0)[:n, :n], squares.sum()


def _few_backward(gradient: Tensor, h: Tensor, matrix: Tensor, options: Options) -> Tensor:
    n, d = h.shape
    out = torch.empty(n, d, dtype=h.dtype, device=h.device)
    # What the columns' squares and means are multiplied with; both are zero for most variants.
    squares = gradient * (4 / (n - 1) ** 2 if options.variant == "covariance" else 0.0)
    matrix = (matrix * gradient).contiguous()
    offsets = matrix.sum(1) * (1.0 if options.variant == "infonce_cosine" else 0.0)
    with device_of(h):
        few_backward_kernel[(triton.cdiv(d, COLUMNS),)](
            h, matrix, offsets, squares, out, n, d, h.stride(0),
            ROWS=power_of_two(n, 16), COLUMNS=COLUMNS, num_warps=4,
        )  # fmt: skip
    return out


def _many_forward(h: Tensor, options: Options) -> Tensor:
    n, d = h.shape
    rows = pairs.prepare(h, options.variant)
    highest, total = (h.new_empty(n, dtype=torch.float32) for _ in range(2))
    with device_of(h):
        many_forward_kernel[(triton.cdiv(n, SIDES[0]),)](
            rows.x, rows.norms, highest, total, n, d, _factor(d, options), options.margin,
            HINGE=options.variant == "hinge", SIDE=SIDES[0], DEPTH=DEPTH, num_warps=4,
        )  # fmt: skip
    if options.variant == "hinge":
        own = n * options.margin**2 if options.include_diagonal else 0.0
        return (2 * total.sum() + own) / options.count(n)
    top = highest.max()
    log_sum = (total * (highest - top).exp()).sum().log() + top + math.log(2)
    return pairs.finish_infonce(log_sum, n, options)


def _many_backward(gradient: Tensor, h: Tensor, loss: Tensor, options: Options) -> Tensor:
    n, d = h.shape
    rows = pairs.prepare(h, options.variant)
    found = torch.empty_like(rows.x)
    shift = loss + math.log(options.count(n))
    with device_of(h):
        many_backward_kernel[(triton.cdiv(n, SIDES[1]), triton.cdiv(d, OWNED))](
            rows.x, rows.norms, shift, found, n, d, _factor(d, options), options.margin,
            HINGE=options.variant == "hinge", SIDE=SIDES[1], DEPTH=DEPTH, OWNED=OWNED, num_warps=4,
        )  # fmt: skip
    by_pair = -2 / (options.count(n) if options.variant == "hinge" else options.tau)
    found *= gradient * (by_pair * 2 / options.scale(d))
    return pairs.finish_gradient(found, rows, h.dtype)


def _factor(d: int, options: Options) -> float:
    """Squared distance to what the kernels' weights are made of: exponent, or D for the hinge."""
    if options.variant == "hinge":
        return 1 / options.scale(d)
    return -1 / (options.tau * options.scale(d))


@triton.jit
def gram_kernel(
    h, grams, squares, n, d, stride, steps,
    CENTRE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One split's Gram matrix [ROWS, ROWS] and sum over columns of squared squares."""
    split = tl.program_id(0)
    row = tl.arange(0, ROWS)
    gram = tl.zeros((ROWS, ROWS), tl.float32)
    total = 0.0
    for step in range(steps):
        first = (split * steps + step).to(tl.int64) * COLUMNS
        x, _ = _columns(h, first, n, d, stride, CENTRE, ROWS, COLUMNS)
        gram = tl.dot(x, tl.trans(x), gram, input_precision=_PRODUCTS)
        square = tl.sum(x * x, 0)
        total += tl.sum(square * square, 0)
    at = grams + split.to(tl.int64) * ROWS * ROWS + row[:, None] * ROWS + row[None, :]
    tl.store(at, gram)
    tl.store(squares + split, total)


@triton.jit
def few_backward_kernel(
    h, matrix, offsets, squares, out, n, d, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """out = M x + offsets mean - (sum of squares) x squares, x centred."""
    first = tl.program_id(0).to(tl.int64) * COLUMNS
    row = tl.arange(0, ROWS)
    x, mean = _columns(h, first, n, d, stride, True, ROWS, COLUMNS)
    both = (row < n)[:, None] & (row < n)[None, :]
    m = tl.load(matrix + row[:, None] * n + row[None, :], mask=both, other=0.0)
    found = tl.dot(m, x, input_precision=_PRODUCTS)
    found += tl.load(offsets + row, mask=row < n, other=0.0)[:, None] * mean[None, :]
    found -= tl.sum(x * x, 0)[None, :] * x * tl.load(squares)
    lane = tl.arange(0, COLUMNS)
    at = out + first + row.to(tl.int64)[:, None] * d + lane[None, :]
    inside = (row < n)[:, None] & (lane < d - first)[None, :]
    tl.store(at, found.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _columns(
    h, first, n, d, stride, CENTRE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Columns [ROWS, COLUMNS] from ``first`` on in float32, centred if wished, and their means."""
    row = tl.arange(0, ROWS)
    lane = tl.arange(0, COLUMNS)
    inside = (row < n)[:, None] & (lane < d - first)[None, :]
    at = h + first + row.to(tl.int64)[:, None] * stride + lane[None, :]
    x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / n
    if CENTRE:
        x = tl.where(inside, x - mean[None, :], 0.0)
    return x, mean


@triton.jit
def many_forward_kernel(
    x, norms, highest, total, n, d, factor, margin,
    HINGE: tl.constexpr, SIDE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Of each row i, over j > i: highest exponent and sum of exp; of the hinge the sum."""
    block = tl.program_id(0)
    row = block * SIDE + tl.arange(0, SIDE)
    top = tl.full((SIDE,), float("-inf"), tl.float32)
    added = tl.zeros((SIDE,), tl.float32)
    for first in range(block * SIDE, n, SIDE):
        column = first + tl.arange(0, SIDE)
        counted = (row[:, None] < column[None, :]) & (column < n)[None, :]
        both, squared = _squared(x, norms, row, column, n, d, SIDE, DEPTH)
        if HINGE:
            short, _ = _short(both, squared, factor, margin)
            added += tl.sum(tl.where(counted, short * short, 0.0), 1)
        else:
            exponent = tl.where(counted, _exponent(squared, factor), float("-inf"))
            higher = tl.maximum(top, tl.max(exponent, 1))
            # Rows without a pair so far stay at -inf; NaN survives in the sum.
            level = tl.where(higher == float("-inf"), 0.0, higher)
            added = added * tl.exp(top - level) + tl.sum(tl.exp(exponent - level[:, None]), 1)
            top = higher
    tl.store(highest + row, top, mask=row < n)
    tl.store(total + row, added, mask=row < n)


@triton.jit
def many_backward_kernel(
    x, norms, shift, out, n, d, factor, margin,
    HINGE: tl.constexpr, SIDE: tl.constexpr, DEPTH: tl.constexpr, OWNED: tl.constexpr,
):  # fmt: skip
    """out_i = sum over j of w_ij (x_i - x_j), in the program's own columns."""
    row = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    channel = tl.program_id(1) * OWNED + tl.arange(0, OWNED)
    level = tl.load(shift)
    sums = tl.zeros((SIDE,), tl.float32)
    found = tl.zeros((SIDE, OWNED), tl.float32)
    for first in range(0, n, SIDE):
        column = first + tl.arange(0, SIDE)
        counted = (row[:, None] != column[None, :]) & (column < n)[None, :]
        both, squared = _squared(x, norms, row, column, n, d, SIDE, DEPTH)
        if HINGE:
            short, root = _short(both, squared, factor, margin)
            weight = tl.where(root == 0.0, 0.0, short / root)
        else:
            weight = tl.exp(_exponent(squared, factor) - level)
        weight = tl.where(counted, weight, 0.0)
        sums += tl.sum(weight, 1)
        right = _block(x, column, channel, n, d)
        found = tl.dot(weight, right, found, input_precision=_PRODUCTS)
    found = _block(x, row, channel, n, d) * sums[:, None] - found
    at = out + row.to(tl.int64)[:, None] * d + channel[None, :]
    tl.store(at, found, mask=(row < n)[:, None] & (channel < d)[None, :])


@triton.jit
def _squared(x, norms, row, column, n, d, SIDE: tl.constexpr, DEPTH: tl.constexpr):
    """Sums of the pairs' squared norms, and their squared distances."""
    products = tl.zeros((SIDE, SIDE), tl.float32)
    for first in range(0, d, DEPTH):
        channel = first + tl.arange(0, DEPTH)
        left, right = _block(x, row, channel, n, d), _block(x, column, channel, n, d)
        products = tl.dot(left, tl.trans(right), products, input_precision=_PRODUCTS)
    left_norms = tl.load(norms + row, mask=row < n, other=0.0)
    both = left_norms[:, None] + tl.load(norms + column, mask=column < n, other=0.0)[None, :]
    return both, both - 2.0 * products


@triton.jit
def _block(x, row, channel, n, d):
    inside = (row < n)[:, None] & (channel < d)[None, :]
    return tl.load(x + row.to(tl.int64)[:, None] * d + channel[None, :], mask=inside, other=0.0)


@triton.jit
def _exponent(squared, factor):
    exponent = squared * factor
    return tl.where(exponent > 0.0, 0.0, exponent)


@triton.jit
def _short(both, squared, factor, margin):
    """max(0, margin - distance), and the distance; squares that are only rounding are zero."""
    root = tl.sqrt(tl.where(squared <= both * _ROUNDING, 0.0, squared) * factor)
    return tl.where(root > margin, 0.0, margin - root), root
