"""Dispersive losses over N representations, in memory O(N D).

Med-DisSeg Eq. 3 and its variants; distances per dimension as in Wang and He 2025, "Diffuse and
Disperse". Every loss is a sum over pairs of a function of D_ij = |h_i - h_j|^2 (/ d), and its
gradient a graph Laplacian: dL/dh_i = 2 / d * sum_j w_ij (h_i - h_j), w_ij = dL/dD_ij. Rows are
centred first, which changes nothing but the rounding. Blocks of rows meet all rows, so that
neither N x N nor D x D is ever stored; covariance is computed from the same Gram blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.checks import floating, wide

VARIANTS = ("infonce_l2", "infonce_cosine", "hinge", "covariance")
FLOOR = 1e-8  # added to the mean of exp, as published
BLOCK = 1 << 22  # pairs held at once: 16 MB in float32


def dispersive_loss(
    h: Tensor,
    variant: str = "infonce_l2",
    tau: float = 0.8,
    margin: float = 1.0,
    normalize: bool = True,
    include_diagonal: bool = False,
) -> Tensor:
    """Return a scalar that falls as the rows of ``h`` move apart.

    Args:
        h: [N, D] representations.
        variant: "infonce_l2": log(mean exp(-D_ij / tau) + 1e-8); "infonce_cosine": the same of
            1 - cos(h_i, h_j); "hinge": mean max(0, margin - sqrt(D_ij))^2; "covariance": sum of the
            squared off-diagonal entries of the covariance, 1 / (N - 1).
        tau: Temperature of the InfoNCE variants.
        margin: Distance of the hinge variant.
        normalize: Whether D_ij = |h_i - h_j|^2 / D (alive at every D) or without the division.
        include_diagonal: Whether the InfoNCE mean runs over self pairs too (floor log(1 / N)).

    Returns:
        Scalar in ``h``'s dtype (float32 for half precision). With N < 2 there is no pair: 0, with
        zero gradient. NaN in, NaN out.

    Raises:
        TypeError: ``h`` is not a floating-point tensor.
        ValueError: ``h`` is not [N, D], or an unknown variant, or tau or margin not above 0.
    """
    _check(h, variant, tau, margin)
    if len(h) < 2:
        return wide(h).sum() * 0.0
    if variant == "infonce_cosine":  # 1 - cos = |a - b|^2 / 2 of unit rows
        h, variant, tau, normalize = F.normalize(wide(h)), "infonce_l2", 2 * tau, False
    scale = 1.0 / h.shape[1] if normalize and variant != "covariance" else 1.0
    parameter = margin if variant == "hinge" else tau
    return torch.ops.medisseg.dispersive(h, variant, parameter, scale, include_diagonal)[0]


def dispersive_loss_reference(
    h: Tensor,
    variant: str = "infonce_l2",
    tau: float = 0.8,
    margin: float = 1.0,
    normalize: bool = True,
    include_diagonal: bool = False,
) -> Tensor:
    """The definition, written out with all pairs; any float dtype. For tests and small N."""
    _check(h, variant, tau, margin)
    n, d = h.shape
    if n < 2:
        return h.sum() * 0.0
    if variant == "covariance":
        centred = h - h.mean(0)
        covariance = centred.T @ centred / (n - 1)
        return covariance.square().sum() - covariance.diagonal().square().sum()
    rows = F.normalize(h) if variant == "infonce_cosine" else h
    keep = torch.ones(n, n, dtype=torch.bool, device=h.device)
    if not (include_diagonal and variant != "hinge"):
        keep.fill_diagonal_(False)
    difference = (rows[:, None] - rows[None])[keep]
    squared = difference.square().sum(1)
    if variant == "infonce_cosine":
        exponent = -squared / (2 * tau)
    else:
        squared = squared / d if normalize else squared
        exponent = -squared / tau
    if variant == "hinge":
        # sqrt has no gradient at 0; identical rows pull nowhere, by symmetry.
        tiny = torch.finfo(h.dtype).tiny
        return (margin - squared.clamp(min=tiny).sqrt()).clamp(min=0).square().mean()
    return (exponent.exp().mean() + FLOOR).log() if exponent.numel() else exponent.sum()


def _check(h: Tensor, variant: str, tau: float, margin: float) -> None:
    floating("h", h, 2)
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; expected one of {', '.join(VARIANTS)}")
    if not (tau > 0 and margin > 0):
        raise ValueError(f"tau and margin are {tau}, {margin}; expected more than 0")


@torch.library.custom_op("medisseg::dispersive", mutates_args=(), device_types="cpu")
def _forward(
    h: Tensor, variant: str, parameter: float, scale: float, diagonal: bool
) -> tuple[Tensor, Tensor]:
    """Return the loss and what the backward needs: the log-sum-exp, or 0."""
    rows = _centred(h)
    n = len(rows)
    zero = rows.new_zeros(())
    if variant == "covariance":
        gram = sum((block.square().sum() for _, block in _gram(rows)), zero)
        variances = rows.square().sum(0)
        return (gram - variances.square().sum()) / (n - 1) ** 2, zero
    pairs = n * n if diagonal and variant != "hinge" else n * (n - 1)
    if variant == "hinge":
        total = zero
        for _, squared in _distances(rows, scale, math.inf):
            total = total + (parameter - squared.sqrt_()).clamp_(min=0).square_().sum()
        return total / pairs, zero
    parts = [
        squared.mul_(-1 / parameter).flatten().logsumexp(0)
        for _, squared in _distances(rows, scale, 0.0 if diagonal else math.inf)
    ]
    whole = torch.stack(parts).logsumexp(0)
    floor = torch.full_like(whole, math.log(FLOOR))
    return torch.logaddexp(whole - math.log(pairs), floor), whole


@torch.library.custom_op("medisseg::dispersive_backward", mutates_args=(), device_types="cpu")
def _backward(
    gradient: Tensor,
    h: Tensor,
    whole: Tensor,
    variant: str,
    parameter: float,
    scale: float,
    diagonal: bool,
) -> Tensor:
    rows = _centred(h)
    n = len(rows)
    if variant == "covariance":
        out = torch.cat([block @ rows for _, block in _gram(rows)])
        out -= rows * rows.square().sum(0)
        out *= 4 / (n - 1) ** 2
    else:
        pairs = n * n if diagonal and variant != "hinge" else n * (n - 1)
        out = torch.empty_like(rows)
        for span, squared in _distances(rows, scale, math.inf):
            weight = _weights(squared, whole, variant, parameter, pairs)
            out[span] = weight.sum(1, keepdim=True) * rows[span] - weight @ rows
        out *= 4 * scale  # every pair is met from both of its ends
    return (out * gradient).to(h.dtype)


def _weights(squared: Tensor, whole: Tensor, variant: str, parameter: float, pairs: int) -> Tensor:
    """w_ij = dL/dD_ij of one ordered pair, in place."""
    if variant == "hinge":
        distance = squared.sqrt_()
        slope = (parameter - distance).clamp_(min=0).div_(distance.clamp(min=1e-30))
        return slope.mul_(-1.0 / pairs).masked_fill_(distance == 0, 0.0)
    # The floor takes its share of the mean, and of the gradient.
    share = torch.sigmoid(whole - math.log(pairs) - math.log(FLOOR))
    return squared.mul_(-1 / parameter).sub_(whole).exp_().mul_(-share / parameter)


def _centred(h: Tensor) -> Tensor:
    rows = wide(h)
    return rows - rows.mean(0)


def _gram(rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of the Gram matrix: (rows of the block, [block, N])."""
    size = max(1, BLOCK // len(rows))
    for first in range(0, len(rows), size):
        span = slice(first, min(first + size, len(rows)))
        yield span, rows[span] @ rows.T


def _distances(rows: Tensor, scale: float, self_pair: float) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of D_ij, with ``self_pair`` on the diagonal (inf: left out of every sum)."""
    norms = rows.square().sum(1)
    for span, gram in _gram(rows):
        squared = gram.mul_(-2).add_(norms[None]).add_(norms[span, None])
        squared = squared.clamp_(min=0).mul_(scale)
        squared.diagonal(span.start).fill_(self_pair)
        yield span, squared


@_forward.register_fake
def _(
    h: Tensor, variant: str, parameter: float, scale: float, diagonal: bool
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if h.dtype == torch.float64 else torch.float32
    return h.new_empty((), dtype=dtype), h.new_empty((), dtype=dtype)


@_backward.register_fake
def _(
    gradient: Tensor,
    h: Tensor,
    whole: Tensor,
    variant: str,
    parameter: float,
    scale: float,
    diagonal: bool,
) -> Tensor:
    return h.new_empty(h.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[1])
    ctx.options = inputs[1:]


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Any, ...]:
    h, whole = ctx.saved_tensors
    flowing = torch.ops.medisseg.dispersive_backward(gradient, h, whole, *ctx.options)
    return flowing, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
