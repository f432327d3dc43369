"""Stand-ins for kernels that are still being written; to be deleted with them in place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def telu(x: Tensor) -> Tensor:
    """x tanh(exp(x))."""
    return x * torch.tanh(torch.exp(x.clamp(max=4.0)))


class _WindowMix(torch.autograd.Function):
    """CDFA window mixing as one 5 x 5 filter a position and head; the backward recomputes it."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, values: Tensor) -> Tensor:
        n, channels, h, w = values.shape
        heads = logits.shape[1] // 81
        grid = logits.contiguous().view(n, heads, 9, 9, h, w)
        attention = grid.softmax(3)
        padded = F.pad(values.contiguous().view(n, heads, channels // heads, h, w), (2, 2, 2, 2))
        filters, out = _filters(attention), torch.zeros_like(padded[..., 2:-2, 2:-2])
        for d in range(25):
            out.addcmul_(filters[:, :, d, None], _shifted(padded, d))
        ctx.save_for_backward(attention, padded)
        return out.view(n, channels, h, w)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        attention, padded = ctx.saved_tensors
        n, heads, depth, h, w = padded.shape
        gradient = gradients[0].contiguous().view(n, heads, depth, h - 4, w - 4)
        filters, dpadded = _filters(attention), torch.zeros_like(padded)
        dfilters = torch.zeros_like(filters)
        for d in range(25):
            _shifted(dpadded, d).addcmul_(filters[:, :, d, None], gradient)
            torch.sum(gradient * _shifted(padded, d), 2, out=dfilters[:, :, d])
        dattention = torch.zeros_like(attention)
        for part, window, inside, outside in _placements(dattention, dfilters):
            part[inside] = window[outside]
        dlogits = attention * (dattention - (attention * dattention).sum(3, keepdim=True))
        dvalues = dpadded[..., 2:-2, 2:-2].reshape(n, heads * depth, h - 4, w - 4)
        return dlogits.view(n, heads * 81, h - 4, w - 4), dvalues


def _shifted(padded: Tensor, d: int) -> Tensor:
    y, x = divmod(d, 5)
    return padded[..., y : y + padded.shape[-2] - 4, x : x + padded.shape[-1] - 4]


def _placements(attention: Tensor, filters: Tensor) -> Iterator[tuple[Any, ...]]:
    """Pair each window output q's 3 x 3 weights with their place among the 5 x 5 filters."""
    n, heads, _, _, h, w = attention.shape
    grid = filters.view(n, heads, 5, 5, h, w)
    for q in range(9):
        y, x = q // 3 - 1, q % 3 - 1
        window = grid[:, :, 1 - y : 4 - y, 1 - x : 4 - x]
        inside = (..., slice(max(-y, 0), h - max(y, 0)), slice(max(-x, 0), w - max(x, 0)))
        outside = (..., slice(max(y, 0), h + min(y, 0)), slice(max(x, 0), w + min(x, 0)))
        yield attention[:, :, q].view(n, heads, 3, 3, h, w), window, inside, outside


def _filters(attention: Tensor) -> Tensor:
    n, heads, _, _, h, w = attention.shape
    filters = attention.new_zeros(n, heads, 25, h, w)
    for part, window, inside, outside in _placements(attention, filters):
        window[outside] += part[inside]
    return filters


def window_mix(logits: Tensor, values: Tensor) -> Tensor:
    """CDFA window mixing: logits [N, heads 81, H, W], values [N, C, H, W] -> [N, C, H, W]."""
    return _WindowMix.apply(logits.float(), values.float())


def window_mix_literal(logits: Tensor, values: Tensor) -> Tensor:
    """The same, unfolded."""
    n, channels, h, w = values.shape
    heads = logits.shape[1] // 81
    attention = logits.reshape(n, heads, 9, 9, h * w).softmax(3)
    windows = F.unfold(values, 3, padding=1).reshape(n, heads, channels // heads, 9, h * w)
    mixed = torch.einsum("nhqkl,nhdkl->nhdql", attention, windows)
    return F.fold(mixed.reshape(n, channels * 9, h * w), (h, w), 3, padding=1)


window_mix_convolution = window_mix_literal


def dispersive_loss(rows: Tensor, variant: str = "infonce_l2", tau: float = 0.8) -> Tensor:
    """InfoNCE-L2 per dimension over distinct pairs."""
    rows = rows.flatten(1).float()
    rows = rows - rows.mean(0)
    squares = rows.square().sum(1)
    distance = (squares[:, None] + squares[None] - 2 * rows @ rows.T).clamp(min=0) / rows.shape[1]
    i, j = torch.triu_indices(len(rows), len(rows), 1)
    logs = torch.logsumexp(-distance[i, j] / tau, 0) - math.log(len(i))
    return torch.logaddexp(logs, torch.tensor(math.log(1e-8)))
