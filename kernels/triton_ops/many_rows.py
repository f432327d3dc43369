"""Dispersive loss of many rows on a GPU: tiles of pairs, never the whole of them.

Forward, a program holds a block of rows and walks the tiles above the diagonal within one of SPANS
ranges of columns, with a running log-sum-exp, so that few rows too make work for a whole GPU; a
last program adds what they found in a fixed order. Backward, a program walks all tiles of its rows
and so owns their gradient.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import pairs
from kernels.pairs import Options
from kernels.triton_ops.few_rows import log_add
from kernels.triton_ops.launch import PRODUCTS, capability, device_of, warps_for
from kernels.triton_ops.math import LOG2_E, exp2

SPANS = 16  # ranges of columns forward
SIDES = (64, 32)  # rows and columns of a tile of pairs, forward and backward
DEPTH = 32  # columns of rows at a time in products, as many in the gradient: OWNED
OWNED = 64
_ROUNDING = tl.constexpr(pairs.ROUNDING * 2.0**-23)
_PRODUCTS = tl.constexpr(PRODUCTS)
_LN_2 = tl.constexpr(math.log(2))


def forward(h: Tensor, options: Options) -> Tensor:
    """The loss of h [N, D], a float32 scalar."""
    n, d = h.shape
    rows = pairs.prepare(h, options.variant)
    hinge = options.variant == "hinge"
    grid = triton.cdiv(n, SIDES[0]), SPANS
    found = h.new_empty(2, grid[0] * SPANS, dtype=torch.float32)
    loss = h.new_empty((), dtype=torch.float32)
    own = n * options.margin**2 if options.include_diagonal else 0.0
    with device_of(h):
        forward_kernel[grid](
            rows.x, rows.norms, found, n, d, _factor(d, options), options.margin,
            HINGE=hinge, SIDE=SIDES[0], DEPTH=DEPTH, num_warps=warps_for(capability(h.device), 4),
        )  # fmt: skip
        finish_kernel[(1,)](
            found, loss, found.shape[1], own, options.count(n), math.log(options.count(n)),
            math.log(n) if options.include_diagonal else -math.inf, options.log_epsilon,
            HINGE=hinge, BLOCK=1024, num_warps=4,
        )  # fmt: skip
    return loss


def backward(gradient: Tensor, h: Tensor, loss: Tensor, options: Options) -> Tensor:
    """The gradient by h [N, D], contiguous."""
    n, d = h.shape
    rows = pairs.prepare(h, options.variant)
    found = torch.empty_like(rows.x)
    shift = loss + math.log(options.count(n))
    with device_of(h):
        backward_kernel[(triton.cdiv(n, SIDES[1]), triton.cdiv(d, OWNED))](
            rows.x, rows.norms, shift, found, n, d, _factor(d, options), options.margin,
            HINGE=options.variant == "hinge", SIDE=SIDES[1], DEPTH=DEPTH, OWNED=OWNED,
            num_warps=warps_for(capability(h.device), 4),
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
def forward_kernel(
    x, norms, found, n, d, factor, margin,
    HINGE: tl.constexpr, SIDE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Over a block's pairs j > i within a range: highest exponent and sum of exp; or the sum."""
    block, span = tl.program_id(0), tl.program_id(1)
    row = block * SIDE + tl.arange(0, SIDE)
    width = tl.cdiv(tl.cdiv(n, SIDE), tl.num_programs(1)) * SIDE
    top = tl.full((SIDE,), float("-inf"), tl.float32)
    added = tl.zeros((SIDE,), tl.float32)
    start = tl.maximum(block * SIDE, span * width)
    for first in range(start, tl.minimum((span + 1) * width, n), SIDE):
        column = first + tl.arange(0, SIDE)
        counted = (row[:, None] < column[None, :]) & (column < n)[None, :]
        both, squared = _squared(x, norms, row, column, n, d, SIDE, DEPTH)
        if HINGE:
            short, _ = _short(both, squared, factor, margin)
            added += tl.sum(tl.where(counted, short * short, 0.0), 1)
        else:
            exponent = tl.where(counted, _exponent(squared, factor), float("-inf"))
            higher = tl.maximum(top, tl.max(exponent, 1))
            level = _level(higher)
            added = added * _exp(top - level) + tl.sum(_exp(exponent - level[:, None]), 1)
            top = higher
    at = found + block * tl.num_programs(1) + span
    highest = tl.max(top, 0)
    if not HINGE:
        added *= _exp(top - _level(highest))
    tl.store(at, highest)
    tl.store(at + tl.num_programs(0) * tl.num_programs(1), tl.sum(added, 0))


@triton.jit
def finish_kernel(
    found, loss, parts, own, count, log_count, log_own, log_epsilon,
    HINGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss from what the programs found, added in their order."""
    highest = float("-inf")
    if not HINGE:
        for first in range(0, parts, BLOCK):
            part = first + tl.arange(0, BLOCK)
            top = tl.load(found + part, mask=part < parts, other=float("-inf"))
            highest = tl.maximum(highest, tl.max(top, 0))
    level = _level(highest)
    total = 0.0
    for first in range(0, parts, BLOCK):
        part = first + tl.arange(0, BLOCK)
        added = tl.load(found + parts + part, mask=part < parts, other=0.0)
        if not HINGE:
            top = tl.load(found + part, mask=part < parts, other=float("-inf"))
            added *= tl.exp(top - level)
        total += tl.sum(added, 0)
    if HINGE:
        value = (2.0 * total + own) / count
    else:
        log_sum = tl.log(total) + level + _LN_2
        value = log_add(log_add(log_sum, log_own) - log_count, log_epsilon)
    tl.store(loss, value)


@triton.jit
def backward_kernel(
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
            weight = _exp(_exponent(squared, factor) - level)
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


@triton.jit
def _level(top):
    """What exponents are taken from: rows without a pair so far are at -inf."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def _exp(x):
    return exp2(x * LOG2_E)
