"""Dispersive loss in PyTorch's own operators, exact and within O(N d) memory, on any device.

With K_ij the derivative of the loss by D_ij, the gradient is (2 / scale) (diag(K 1) - K) h: a graph
Laplacian, so rows are centred first, which removes the cancellation in ||h_i||^2 + ||h_j||^2 -
2 h_i h_j (uncentred float32 is wrong by 2e-4 on ReLU-like features, centred by 4e-7).

Few rows: one Gram matrix [N, N], summed over column chunks, gives the loss and the matrix M with
gradient M h. Many rows: tiles of the upper triangle, computed again in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.checks import wide

FEW = 64  # up to so many rows the N x N matrix is small beside any h
SMALLEST_NORM = 1e-12  # a row under it has no direction: cosine 0, gradient 0
CHUNK = 1 << 18  # numbers of h at a time: 1 MB of float32, within a core's cache
TILE = (256, 1024)  # rows and columns of pairs at a time
PANEL = 64  # columns of the covariance at a time
ROUNDING = 8.0  # squared distances under so many units of rounding of their norms are zero


class Options(NamedTuple):
    """The options of :func:`kernels.dispersive_loss`, in the operators' order."""

    variant: str
    tau: float
    margin: float
    normalize: bool
    include_diagonal: bool
    epsilon: float

    @property
    def log_epsilon(self) -> float:
        return math.log(self.epsilon) if self.epsilon else -math.inf

    def count(self, n: int) -> int:
        """Ordered pairs in the mean."""
        return n * n if self.include_diagonal else n * (n - 1)

    def scale(self, d: int) -> float:
        """D = ||difference||^2 / scale; 1 - cos is half the squared distance of unit rows."""
        if self.variant == "infonce_cosine":
            return 2.0
        return float(d) if self.normalize else 1.0


def finish_infonce(log_sum: Tensor, n: int, options: Options) -> Tensor:
    """The loss from the log-sum-exp, a scalar, of -D / tau over all ordered pairs i != j."""
    if options.include_diagonal:
        log_sum = torch.logaddexp(log_sum, log_sum.new_full((), math.log(n)))
    mean = log_sum - math.log(options.count(n))
    return torch.logaddexp(mean, mean.new_full((), options.log_epsilon))


def few_forward(h: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Return the loss and the matrix M [N, N] of the gradient M h."""
    gram = wide(h).new_zeros(len(h), len(h))
    squares = gram.new_zeros(())
    for columns in _chunks(h):
        x = wide(columns)
        if options.variant != "infonce_cosine":
            x = x - x.mean(0)
        gram.addmm_(x, x.T)
        if options.variant == "covariance":
            squares += x.square().sum(0).square().sum()
    return few_finish(gram, squares, h.shape[1], options)


def few_finish(gram: Tensor, squares: Tensor, d: int, options: Options) -> tuple[Tensor, Tensor]:
    """The loss and M [N, N] from the Gram matrix [N, N] and the columns' sum of squared squares."""
    n = len(gram)
    if options.variant == "covariance":
        unit = 1 / (n - 1) ** 2
        return (gram.square().sum() - squares) * unit, gram * (4 * unit)
    count, own = options.count(n), torch.eye(n, dtype=torch.bool, device=gram.device)
    norms = gram.diagonal()
    if options.variant == "hinge":
        distance = _without_rounding(norms, norms, gram * -2) / options.scale(d)
        root = distance.masked_fill(own, 0).sqrt()
        short = torch.where(root >= options.margin, 0.0, options.margin - root)
        if not options.include_diagonal:
            short = short.masked_fill(own, 0)
        by_distance = torch.where(root == 0, 0.0, short / root) * (-2 / count)
        return short.square().sum() / count, _laplacian(by_distance) * (2 / options.scale(d))
    if options.variant == "infonce_cosine":
        inverse = torch.where(norms <= SMALLEST_NORM**2, 0.0, norms.rsqrt())
        cosine = gram * inverse[:, None] * inverse
        exponent = (cosine - 1) / options.tau
    else:
        distance = _without_rounding(norms, norms, gram * -2)
        exponent = distance * (-1 / (options.tau * options.scale(d)))
    exponent = exponent.masked_fill(own, -math.inf)
    loss = finish_infonce(exponent.flatten().logsumexp(0), n, options)
    by_distance = (exponent - (loss + math.log(count))).exp() * (-2 / options.tau)
    if options.variant == "infonce_l2":
        return loss, _laplacian(by_distance) * (2 / options.scale(d))
    matrix = -by_distance * inverse[:, None] * inverse
    return loss, matrix + torch.diag((by_distance * cosine).sum(1) * inverse.square())


def few_backward(gradient: Tensor, h: Tensor, matrix: Tensor, options: Options) -> Tensor:
    """Return M h [N, D] times the upstream ``gradient``; the columns' means are added apart."""
    n = len(h)
    out = h.new_empty(h.shape)
    matrix = matrix * gradient
    offsets = matrix.sum(1, keepdim=True) if options.variant == "infonce_cosine" else None
    for columns, part in zip(_chunks(h), _chunks(out), strict=True):
        x = wide(columns)
        mean = x.mean(0)
        x = x - mean
        found = matrix @ x
        if offsets is not None:
            found += offsets * mean
        if options.variant == "covariance":
            found -= x.square().sum(0) * x * (gradient * 4 / (n - 1) ** 2)
        part.copy_(found)
    return out


def _laplacian(weights: Tensor) -> Tensor:
    return torch.diag(weights.sum(1)) - weights


def _without_rounding(rows: Tensor, columns: Tensor, products: Tensor) -> Tensor:
    """Squared distances from norms and -2 x the products; 0 where they are only rounding."""
    norms = rows[:, None] + columns
    squared = norms + products
    noise = norms * (ROUNDING * torch.finfo(norms.dtype).eps)
    return torch.where(squared <= noise, 0.0, squared)


def _chunks(h: Tensor) -> tuple[Tensor, ...]:
    chunks: tuple[Tensor, ...] = h.split(max(256, CHUNK // len(h)), dim=1)
    return chunks


class Rows(NamedTuple):
    """Rows made ready: pairs' distances are (norms_i + norms_j - 2 x_i x_j) / scale."""

    x: Tensor  # [N, d], centred; of unit length before centring for the cosine
    norms: Tensor  # [N]
    inverse: Tensor | None  # [N], one over the rows' lengths, for the cosine
    mean: Tensor  # [d]


def prepare(h: Tensor, variant: str) -> Rows:
    """Centre the rows of h [N, D], of unit length for the cosine, in float32 or wider."""
    x, inverse = wide(h), None
    if variant == "infonce_cosine":
        length = x.norm(dim=1)
        inverse = torch.where(length <= SMALLEST_NORM, 0.0, 1 / length)
        x = x * inverse[:, None]
    mean = x.mean(0)
    x = x - mean
    norms = x.square().sum(1)
    if inverse is not None:
        # A row of zeros is at D = 1 from every other, not at the 1 / 2 of its squared distance.
        norms = torch.where(inverse == 0, 1 + mean.square().sum(), norms)
    return Rows(x, norms, inverse, mean)


def finish_gradient(found: Tensor, rows: Rows, dtype: torch.dtype) -> Tensor:
    """Turn the gradient [N, D] by the prepared rows into that by h."""
    if rows.inverse is not None:
        unit = rows.x + rows.mean
        found = (found - unit * (unit * found).sum(1, keepdim=True)) * rows.inverse[:, None]
    return found.to(dtype)


def many_forward(h: Tensor, options: Options) -> Tensor:
    """Return the loss of h [N, D], tile by tile of the pairs' upper triangle."""
    n, d = h.shape
    rows = prepare(h, options.variant)
    if options.variant == "covariance":
        found = sum(panel.square().sum() for _, panel in _covariance_panels(rows.x))
        return torch.as_tensor(found)
    if options.variant == "hinge":
        total = rows.x.new_zeros(())
        for tile, *_ in _hinge_tiles(rows, options):
            total += tile.square_().sum()
        own = n * options.margin**2 if options.include_diagonal else 0.0
        return (2 * total + own) / options.count(n)
    highest, total = rows.x.new_full((), -math.inf), rows.x.new_zeros(())
    for tile, *_ in _exponent_tiles(rows, -1 / (options.tau * options.scale(d))):
        tile.clamp_(max=0)
        higher = torch.maximum(highest, tile.amax())
        total = total * (highest - higher).exp() + tile.sub_(higher).exp_().sum()
        highest = higher
    return finish_infonce(total.log() + highest + math.log(2), n, options)


def many_backward(gradient: Tensor, h: Tensor, loss: Tensor, options: Options) -> Tensor:
    """Return the gradient by h [N, D], computing every tile of pairs again."""
    n, d = h.shape
    rows = prepare(h, options.variant)
    if options.variant == "covariance":
        found = torch.empty_like(rows.x)
        for columns, panel in _covariance_panels(rows.x):
            torch.mm(rows.x, panel, out=found[:, columns])
        return finish_gradient(found * (gradient * 4 / (n - 1)), rows, h.dtype)
    # The products carry the weights' sums in their last column.
    ones = torch.cat([rows.x, rows.x.new_ones(n, 1)], 1)
    sums = torch.zeros_like(ones)
    if options.variant == "hinge":
        tiles, factor = _hinge_tiles(rows, options, slope=True), -2 / options.count(n)
    else:
        shift = loss + math.log(options.count(n))
        tiles = _exponent_tiles(rows, -1 / (options.tau * options.scale(d)), shift)
        factor = -2 / options.tau
    for tile, i, j in tiles:
        weights = tile if options.variant == "hinge" else tile.exp_()
        sums[i].addmm_(weights, ones[j])
        sums[j].addmm_(weights.T, ones[i])
    found = (rows.x * sums[:, -1:]).sub_(sums[:, :-1])
    return finish_gradient(found.mul_(gradient * (factor * 2 / options.scale(d))), rows, h.dtype)


def _covariance_panels(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Columns of the covariance without its diagonal: [d, PANEL] at a time."""
    for first in range(0, x.shape[1], PANEL):
        columns = slice(first, first + PANEL)
        panel = (x.T @ x[:, columns]).div_(len(x) - 1)
        panel[columns].fill_diagonal_(0)
        yield columns, panel


def _tiles(n: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, n, TILE[0]):
        for left in range(top, n, TILE[1]):
            yield slice(top, min(top + TILE[0], n)), slice(left, min(left + TILE[1], n))


def _upper(tile: Tensor, i: slice, j: slice, other: float) -> Tensor:
    """Replace what is not above the diagonal, which only the first tile of a strip crosses."""
    if i.start == j.start:
        side = tile[:, : len(tile)]
        lower = torch.ones(side.shape, dtype=torch.bool, device=tile.device).tril_()
        side.masked_fill_(lower, other)
    return tile


def _exponent_tiles(
    rows: Rows, factor: float, shift: Tensor | float = 0.0
) -> Iterator[tuple[Tensor, slice, slice]]:
    """Tiles of factor x squared distance - shift, factor < 0; -inf outside the upper triangle."""
    norms, one = rows.norms[:, None] * factor, torch.ones_like(rows.norms)[:, None]
    left = torch.cat([rows.x * (-2 * factor), norms - shift, one], 1)
    right = torch.cat([rows.x, one, norms], 1)
    buffer = rows.x.new_empty(TILE)
    for i, j in _tiles(len(rows.x)):
        place = buffer[: i.stop - i.start, : j.stop - j.start]
        tile = torch.mm(left[i], right[j].T, out=place)
        yield _upper(tile, i, j, -math.inf), i, j


def _hinge_tiles(
    rows: Rows, options: Options, slope: bool = False
) -> Iterator[tuple[Tensor, slice, slice]]:
    """Tiles of max(0, margin - distance), divided by the distance for ``slope``."""
    scale = options.scale(rows.x.shape[1])
    for i, j in _tiles(len(rows.x)):
        products = (rows.x[i] @ rows.x[j].T).mul_(-2)
        root = _without_rounding(rows.norms[i], rows.norms[j], products).div_(scale).sqrt_()
        short = (options.margin - root).clamp_(min=0)
        if slope:
            short = short.div_(root).masked_fill_(root == 0, 0)
        yield _upper(short, i, j, 0.0), i, j
