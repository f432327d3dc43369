"""Stand-ins for kernels that are still being written; to be deleted with them in place."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def telu(x: Tensor) -> Tensor:
    """x tanh(exp(x))."""
    return x * torch.tanh(torch.exp(x.clamp(max=4.0)))


def window_mix(logits: Tensor, values: Tensor) -> Tensor:
    """Literal CDFA window mixing."""
    n, channels, h, w = values.shape
    heads = logits.shape[1] // 81
    attention = logits.reshape(n, heads, 9, 9, h * w).softmax(3)
    windows = F.unfold(values, 3, padding=1).reshape(n, heads, channels // heads, 9, h * w)
    mixed = torch.einsum("nhqkl,nhdkl->nhdql", attention, windows)
    return F.fold(mixed.reshape(n, channels * 9, h * w), (h, w), 3, padding=1)


window_mix_convolution = window_mix


def dispersive_loss(rows: Tensor, variant: str = "infonce_l2", tau: float = 0.8) -> Tensor:
    """InfoNCE-L2 per dimension over distinct pairs."""
    rows = rows.flatten(1).float()
    rows = rows - rows.mean(0)
    squares = rows.square().sum(1)
    distance = (squares[:, None] + squares[None] - 2 * rows @ rows.T).clamp(min=0) / rows.shape[1]
    i, j = torch.triu_indices(len(rows), len(rows), 1)
    logs = torch.logsumexp(-distance[i, j] / tau, 0) - math.log(len(i))
    return torch.logaddexp(logs, torch.tensor(math.log(1e-8)))
